"""Records calls and loops of a plan's graphs, to compare other graphs with them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...engines.session import Array, Session
from ...relative_error import relative_error

Arrays = dict[str, npt.NDArray[Any]]

RECORDED_CALLS = (0.0, 0.1, 0.4, 0.7, 1.0)
"""The single calls that are recorded in a batch, from 0, the first one, to 1, the last one."""
RECORDED_LOOPS = (0.0, 0.4, 0.9)
"""The loops that are recorded, in the same way."""


class State(Protocol):
    """A recorded call or loop of a graph: its inputs and its results."""

    def error(self, session: Session) -> float:
        """The error of another session with the same inputs."""
        ...


@dataclass
class Differences:
    """Differences between tokens that two sessions sampled from the same states and noise."""

    own: list[npt.NDArray[Any]] = field(default_factory=list)
    right: list[npt.NDArray[Any]] = field(default_factory=list)

    def add(self, own: npt.NDArray[Any], right: npt.NDArray[Any]) -> None:
        """Add some tokens, and the tokens that they are compared with."""
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
        """The relative change of the tokens' standard deviation.

        Random errors hardly change it. If it falls, images vary less.
        """
        return _finite(np.concatenate(self.own).std() / np.concatenate(self.right).std() - 1)


def _finite(value: float) -> float:
    return float(value) if np.isfinite(value) else float("inf")


@dataclass(frozen=True)
class RecordedCall:
    """A recorded single call of a graph."""

    inputs: Arrays
    outputs: Arrays

    def error(self, session: Session) -> float:
        """The largest relative L2 error of an output."""
        found = session.run(self.inputs)
        return max(
            relative_error(np.asarray(found[name]), wanted) for name, wanted in self.outputs.items()
        )


@dataclass(frozen=True)
class RecordedLoop:
    """A recorded loop of a graph: all denoising steps of an AR iteration.

    Attributes:
        carry, constants, per_step, state: the arguments of `Session.iterate`.
        results: the outputs of the last step.
    """

    carry: Mapping[str, str]
    constants: Arrays
    per_step: Arrays
    state: Arrays
    results: Arrays

    def error(self, session: Session) -> float:
        """The largest L2 error of an output of the last step, relative to its deviation."""
        found = session.iterate(self.carry, self.constants, self.per_step, self.state)
        return max(
            relative_error(np.asarray(found[name]), wanted, float(wanted.mean()))
            for name, wanted in self.results.items()
        )


class CountingSession:
    """A session that counts its single calls and its loops.

    FlowAR and xAR may divide the steps of an AR iteration into parts, which count as one loop: a
    part begins with the very array that the one before returned.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.inputs, self.outputs = session.inputs, session.outputs
        self.description = session.description
        self.calls = self.loops = 0
        self._last: Mapping[str, Array] = {}

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
        self.loops += not self._continues(carry, state)
        outputs = self._session.iterate(carry, constants, per_step, state)
        self._last = {name: outputs[name] for name in carry}
        return outputs

    def _continues(self, carry: Mapping[str, str], state: Mapping[str, Array]) -> bool:
        """Whether these steps continue those before."""
        return bool(carry) and all(
            state[taken] is self._last.get(name) for name, taken in carry.items()
        )

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """See `Session.empty`."""
        return self._session.empty(shape, dtype)


class RecordingSession(CountingSession):
    """Records some calls and loops of a batch, and the results of all loops.

    Args:
        calls, loops: number of single calls and of loops in a batch.
        ignored: outputs of calls that are not compared.

    Attributes:
        states: the recorded calls and loops.
        results: the outputs of every part of a loop; None for all but the last part, whose outputs
            are the sampled tokens.
    """

    def __init__(
        self, session: Session, calls: int, loops: int, ignored: Collection[str] = ()
    ) -> None:
        super().__init__(session)
        self._ignored = ignored
        self._recorded_calls = spread(RECORDED_CALLS, calls)
        self._recorded_loops = spread(RECORDED_LOOPS, loops)
        self.states: list[State] = []
        self.results: list[npt.NDArray[Any] | None] = []

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Session.run`."""
        recorded = self.calls in self._recorded_calls
        outputs = super().run(inputs)
        if recorded:
            compared = {name: v for name, v in outputs.items() if name not in self._ignored}
            self.states.append(RecordedCall(_copies(inputs), _copies(compared)))
        return outputs

    def iterate(
        self,
        carry: Mapping[str, str],
        constants: Mapping[str, Array],
        per_step: Mapping[str, Array],
        state: Mapping[str, Array],
    ) -> dict[str, Array]:
        """See `Session.iterate`."""
        if self._continues(carry, state):
            self.results[-len(carry) :] = [None] * len(carry)
        outputs = super().iterate(carry, constants, per_step, state)
        results = {name: np.array(outputs[name]) for name in carry}
        self.results.extend(results.values())
        if self.loops - 1 in self._recorded_loops and len(next(iter(per_step.values()))):
            self.states.append(
                RecordedLoop(
                    dict(carry), _copies(constants), _copies(per_step), _copies(state), results
                )
            )
        return outputs


class FollowingSession(CountingSession):
    """Runs the same loops as another session, and returns the other session's results.

    So every loop begins in the same state as the loop of the other session, and the tokens that
    both sample from it with the same noise can be compared.

    Args:
        results: results of the other session's loops, from `RecordingSession`.
        differences: collects the results of both sessions.
    """

    def __init__(
        self,
        session: Session,
        results: Iterable[npt.NDArray[Any] | None],
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
            if right is None:
                continue
            self._differences.add(np.asarray(outputs[name]), right)
            outputs[name] = right
        return outputs


def spread(parts: Iterable[float], count: int) -> list[int]:
    """The indices, among `count`, at these parts of the whole; 0 is the first and 1 the last."""
    return [round(part * (count - 1)) for part in parts]


def _copies(arrays: Mapping[str, Array]) -> Arrays:
    return {name: np.array(values) for name, values in arrays.items()}
