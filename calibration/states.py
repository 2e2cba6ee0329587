"""Calls and loops of a plan's graphs while images are drawn, kept to judge other graphs by."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..engines.session import Array, Session

Arrays = dict[str, npt.NDArray[Any]]

KEPT_CALLS = (0.0, 0.1, 0.4, 0.7, 1.0)
"""Which single calls of a draw are kept, 0 the first and 1 the last."""
KEPT_LOOPS = (0.0, 0.4, 0.9)


class State(Protocol):
    """Something that a graph was asked for, and what it gave."""

    def error(self, session: Session) -> float:
        """How far another session is off when it is asked for the same."""
        ...


@dataclass
class Differences:
    """How tokens differ from those that another session drew from the same states and noise."""

    own: list[npt.NDArray[Any]] = field(default_factory=list)
    right: list[npt.NDArray[Any]] = field(default_factory=list)

    def add(self, own: npt.NDArray[Any], right: npt.NDArray[Any]) -> None:
        """Take in some tokens, and those that they should have been."""
        self.own.append(np.array(own, np.float64).ravel())
        self.right.append(np.array(right, np.float64).ravel())

    @property
    def distance(self) -> float:
        """Root mean square of the differences, in standard deviations of a token.

        This bounds the Wasserstein distance of order 2 between the distributions of the
        tokens given the states.
        """
        own, right = np.concatenate(self.own), np.concatenate(self.right)
        return _finite(np.sqrt(np.mean(np.square(own - right))) / right.std())

    @property
    def spread(self) -> float:
        """By how much larger their standard deviation is, as a share of the right one.

        Errors without a direction leave it alone. Where tokens spread less, images vary less.
        """
        return _finite(np.concatenate(self.own).std() / np.concatenate(self.right).std() - 1)


def _finite(value: float) -> float:
    return float(value) if np.isfinite(value) else float("inf")


@dataclass(frozen=True)
class Call:
    """A single call of a graph."""

    inputs: Arrays
    outputs: Arrays

    def error(self, session: Session) -> float:
        """The largest relative L2 error of an output."""
        found = session.run(self.inputs)
        return max(
            _relative(np.asarray(found[name]), wanted, 0.0) for name, wanted in self.outputs.items()
        )


@dataclass(frozen=True)
class Loop:
    """A loop over a graph: all denoising steps of an AR iteration.

    Attributes: as the arguments of `Session.iterate`, and what came out at the end.
    """

    carry: Mapping[str, str]
    constants: Arrays
    per_step: Arrays
    state: Arrays
    results: Arrays

    def error(self, session: Session) -> float:
        """L2 error of what comes out at the end, relative to how much that varies."""
        found = session.iterate(self.carry, self.constants, self.per_step, self.state)
        return max(
            _relative(np.asarray(found[name]), wanted, float(wanted.mean()))
            for name, wanted in self.results.items()
        )


def _relative(got: npt.NDArray[Any], wanted: npt.NDArray[Any], origin: float) -> float:
    difference = np.linalg.norm((got - wanted).astype(np.float64))
    size = np.linalg.norm(wanted.astype(np.float64) - origin)
    error = float(difference / (size or 1.0))
    return error if np.isfinite(error) else float("inf")


class CountingSession:
    """A session that counts its single calls and its loops."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.inputs, self.outputs = session.inputs, session.outputs
        self.description = session.description
        self.calls = self.loops = 0

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Session.run`."""
        self.calls += 1
        return self._session.run(inputs)

    def iterate(
        self,
        carry: Mapping[str, str],
        constants: Mapping[str, Array],
        per_step: Mapping[str, Array],
        state: Mapping[str, Array],
    ) -> dict[str, Array]:
        """See `Session.iterate`."""
        self.loops += 1
        return self._session.iterate(carry, constants, per_step, state)

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """See `Session.empty`."""
        return self._session.empty(shape, dtype)


class KeepingSession(CountingSession):
    """Keeps some calls and loops of a draw, and the result of every loop.

    Args:
        calls, loops: how many of them the draw makes.

    Attributes:
        states: what was kept.
        results: what every loop gave.
    """

    def __init__(self, session: Session, calls: int, loops: int) -> None:
        super().__init__(session)
        self._kept_calls, self._kept_loops = spread(KEPT_CALLS, calls), spread(KEPT_LOOPS, loops)
        self.states: list[State] = []
        self.results: list[npt.NDArray[Any]] = []

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Session.run`."""
        kept = self.calls in self._kept_calls
        outputs = super().run(inputs)
        if kept:
            self.states.append(Call(_copies(inputs), _copies(outputs)))
        return outputs

    def iterate(
        self,
        carry: Mapping[str, str],
        constants: Mapping[str, Array],
        per_step: Mapping[str, Array],
        state: Mapping[str, Array],
    ) -> dict[str, Array]:
        """See `Session.iterate`."""
        kept = self.loops in self._kept_loops and len(next(iter(per_step.values()))) > 0
        outputs = super().iterate(carry, constants, per_step, state)
        results = {name: np.array(outputs[name]) for name in carry}
        self.results.extend(results.values())
        if kept:
            self.states.append(
                Loop(dict(carry), _copies(constants), _copies(per_step), _copies(state), results)
            )
        return outputs


class FollowingSession(CountingSession):
    """Goes through the loops of another session's draw, and is put right after each of them.

    So every loop begins in the state in which the other one's began, and what the two draw
    from it with the same noise can be compared.

    Args:
        results: what the other session's loops gave.
        differences: takes in what each loop gives here and there.
    """

    def __init__(
        self,
        session: Session,
        results: Iterable[npt.NDArray[Any]],
        differences: Differences,
    ) -> None:
        super().__init__(session)
        self._results, self._differences = iter(results), differences

    def iterate(
        self,
        carry: Mapping[str, str],
        constants: Mapping[str, Array],
        per_step: Mapping[str, Array],
        state: Mapping[str, Array],
    ) -> dict[str, Array]:
        """See `Session.iterate`."""
        outputs = dict(super().iterate(carry, constants, per_step, state))
        for name in carry:
            right = next(self._results)
            self._differences.add(np.asarray(outputs[name]), right)
            outputs[name] = right
        return outputs


def spread(parts: Iterable[float], count: int) -> list[int]:
    """The index at each part, 0 the first and 1 the last, of `count` things."""
    return [round(part * (count - 1)) for part in parts]


def _copies(arrays: Mapping[str, Array]) -> Arrays:
    return {name: np.array(values) for name, values in arrays.items()}
