"""The interface of every backend: a graph that runs once or as a loop, with tensors by name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import InvalidRequest

Dimension = int | str
Array = Any
"""`np.ndarray`, or a backend's device array with the interface described in `Session`."""

DTYPES: Mapping[str, type[np.generic]] = {"float32": np.float32, "int64": np.int64}
"""The types of a graph's inputs and outputs, in any precision inside the graph."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph; the size of a dimension with a name is chosen at run time."""

    name: str
    dtype: str
    shape: tuple[Dimension, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.shape))}]"


class Session(Protocol):
    """A loaded graph.

    Output arrays may be on a device. They offer `shape`, `dtype`, `len(a)`, `np.asarray(a)`,
    `a.reshape(...)` and slices along the first axis, `a[i:j]`, to get (a view) and to set; slices
    along a later axis, such as `a[:, :, i:j]`, can be set only. A loop that uses only these runs on
    any backend. Host arrays are accepted everywhere.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def description(self) -> str:
        """What really runs, such as "ONNX Runtime 1.32.0 CPUExecutionProvider fp32"."""
        ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once.

        Returns:
            The outputs by name. Arrays in host memory belong to the caller, who may change them.

        Raises:
            InvalidRequest: an input does not fit the graph.
        """
        ...

    def iterate(
        self,
        carry: Mapping[str, str],
        constants: Mapping[str, Array],
        per_step: Mapping[str, Array],
        state: Mapping[str, Array],
    ) -> dict[str, Array]:
        """Run the graph once for each leading index of the arrays in `per_step`.

        Args:
            constants: inputs that are equal in all steps.
            per_step: inputs with a leading step axis.
            state: the carried inputs of the first step, by input name; not modified.
            carry: output name -> name of the input, of the same shape, that receives it in the
                next step.

        Returns:
            The outputs of the last step by name; for zero steps, `state` under the names of the
            carried outputs.
        """
        ...

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """An uninitialised array in the memory of this session's outputs."""
        ...


def iterate_by_run(
    session: Session,
    carry: Mapping[str, str],
    constants: Mapping[str, Array],
    per_step: Mapping[str, Array],
    state: Mapping[str, Array],
) -> dict[str, Array]:
    """Implements `Session.iterate` with `Session.run`, for backends without a better method."""
    steps = check_loop(session, carry, constants, per_step, state)
    outputs = {output: state[taken] for output, taken in carry.items()}
    for step in range(steps):
        carried = {taken: outputs[output] for output, taken in carry.items()}
        current = {name: values[step] for name, values in per_step.items()}
        outputs = session.run({**constants, **current, **carried})
    return outputs


def check_inputs(specs: Iterable[TensorSpec], inputs: Mapping[str, Array]) -> None:
    """Check inputs against the names, types and shapes of `specs`.

    Raises:
        InvalidRequest: they do not match.
    """
    _check(specs, {name: (values.dtype, values.shape) for name, values in inputs.items()})


def check_loop(
    session: Session,
    carry: Mapping[str, str],
    constants: Mapping[str, Array],
    per_step: Mapping[str, Array],
    state: Mapping[str, Array],
) -> int:
    """The number of steps of a call of `Session.iterate`.

    Raises:
        InvalidRequest: the call is not valid.
    """
    steps = {len(values) for values in per_step.values()}
    if len(steps) != 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in per_step.items())
        raise InvalidRequest(
            "a loop needs inputs that change at every step, all for the same number of steps, "
            f"but got {lengths or 'none'}"
        )
    outputs = {spec.name: spec.shape for spec in session.outputs}
    inputs = {spec.name: spec.shape for spec in session.inputs}
    fitting = all(
        output in outputs and outputs[output] == inputs.get(taken)
        for output, taken in carry.items()
    )
    if not fitting or set(carry.values()) != set(state):
        raise InvalidRequest(
            f"a loop cannot carry {_join(carry)} to {_join(carry.values())} starting with "
            f"{_join(state)}: the graph has the outputs {', '.join(map(str, session.outputs))}"
        )
    names = [*constants, *per_step, *state]
    if len(set(names)) != len(names):
        raise InvalidRequest(f"a loop got an input twice among {_join(names)}")
    given = {name: (values.dtype, values.shape) for name, values in {**constants, **state}.items()}
    given |= {name: (values.dtype, values.shape[1:]) for name, values in per_step.items()}
    _check(session.inputs, given)
    return steps.pop()


def _check(
    specs: Iterable[TensorSpec], given: Mapping[str, tuple[np.dtype, tuple[int, ...]]]
) -> None:
    sizes: dict[str, int] = {}
    left = set(given)
    for spec in specs:
        if spec.name not in given:
            raise InvalidRequest(
                f"the graph's input {spec} is missing: the inputs are {_join(given)}"
            )
        left.remove(spec.name)
        dtype, shape = given[spec.name]
        if dtype != spec.dtype:
            raise InvalidRequest(f"the graph's input {spec} got an array of type {dtype}")
        if len(shape) != len(spec.shape):
            raise InvalidRequest(f"the graph's input {spec} got an array of shape {shape}")
        for dimension, size in zip(spec.shape, shape, strict=True):
            wanted = dimension if isinstance(dimension, int) else sizes.setdefault(dimension, size)
            if size != wanted:
                where = "" if dimension == wanted else f", where {dimension} is {wanted}"
                raise InvalidRequest(
                    f"the graph's input {spec} got an array of shape {shape}{where}"
                )
    if left:
        raise InvalidRequest(f"the graph has no input named {_join(left)}")


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
