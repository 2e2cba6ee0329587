"""What every backend offers: a graph that runs by names, once or as a loop."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import DisaError

Dimension = int | str
Array = Any
"""`np.ndarray`, or a backend's device array with the part of its interface named in `Session`."""

DTYPES: Mapping[str, type[np.generic]] = {"float32": np.float32, "int64": np.int64}
"""What may cross a graph boundary, whatever the precision inside the graph."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph; a dimension given by name is chosen at run time."""

    name: str
    dtype: str
    shape: tuple[Dimension, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.shape))}]"


class Session(Protocol):
    """A loaded graph.

    Arrays that come out may live on a device. They offer `shape`, `dtype`, `len(a)`,
    `np.asarray(a)`, `a.reshape(...)` and slices along the first axis, `a[i:j]`, to get (a view)
    and to set; a loop that keeps to these runs on any backend. Host arrays are taken everywhere.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def description(self) -> str:
        """What really runs, such as "ONNX Runtime 1.32.0 CPUExecutionProvider fp32"."""
        ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises DisaError if an input does not fit the graph."""
        ...

    def iterate(
        self,
        carry: Mapping[str, str],
        constants: Mapping[str, Array],
        per_step: Mapping[str, Array],
        state: Mapping[str, Array],
    ) -> dict[str, Array]:
        """Run the graph once for each leading index of the arrays in `per_step`.

        carry: output name -> the input, of the same shape, that takes it in the next step.
        constants: inputs that stay the same. per_step: inputs with a leading step axis.
        state: the carried inputs of the first step, by input name; left unchanged.

        Returns the outputs of the last step by name; for no steps, `state` under the names
        of the carried outputs.
        """
        ...

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """An uninitialised array where this session's outputs live."""
        ...


def iterate_by_run(
    session: Session,
    carry: Mapping[str, str],
    constants: Mapping[str, Array],
    per_step: Mapping[str, Array],
    state: Mapping[str, Array],
) -> dict[str, Array]:
    """`Session.iterate` by way of `Session.run`, for backends without a better one."""
    steps = check_loop(session, carry, constants, per_step, state)
    outputs = {output: state[taken] for output, taken in carry.items()}
    for step in range(steps):
        carried = {taken: outputs[output] for output, taken in carry.items()}
        current = {name: values[step] for name, values in per_step.items()}
        outputs = session.run({**constants, **current, **carried})
    return outputs


def check_inputs(specs: Iterable[TensorSpec], inputs: Mapping[str, Array]) -> None:
    """Raise DisaError unless `inputs` has the names, types and shapes of `specs`."""
    _check(specs, {name: (values.dtype, values.shape) for name, values in inputs.items()})


def check_loop(
    session: Session,
    carry: Mapping[str, str],
    constants: Mapping[str, Array],
    per_step: Mapping[str, Array],
    state: Mapping[str, Array],
) -> int:
    """The number of steps that `Session.iterate` is asked for; DisaError if it cannot be done."""
    steps = {len(values) for values in per_step.values()}
    if len(steps) != 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in per_step.items())
        raise DisaError(
            "a loop needs inputs that change at every step, all for the same number of steps, "
            f"and was given {lengths or 'none'}"
        )
    outputs = {spec.name: spec.shape for spec in session.outputs}
    inputs = {spec.name: spec.shape for spec in session.inputs}
    fitting = all(
        output in outputs and outputs[output] == inputs.get(taken)
        for output, taken in carry.items()
    )
    if not fitting or set(carry.values()) != set(state):
        raise DisaError(
            f"a loop cannot carry {_join(carry)} to {_join(carry.values())} beginning with "
            f"{_join(state)}: the graph has the outputs {', '.join(map(str, session.outputs))}"
        )
    names = [*constants, *per_step, *state]
    if len(set(names)) != len(names):
        raise DisaError(f"a loop was given an input twice among {_join(names)}")
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
            raise DisaError(f"the graph's input {spec} is missing: given were {_join(given)}")
        left.remove(spec.name)
        dtype, shape = given[spec.name]
        if dtype != spec.dtype:
            raise DisaError(f"the graph's input {spec} was given an array of type {dtype}")
        if len(shape) != len(spec.shape):
            raise DisaError(f"the graph's input {spec} was given an array of shape {shape}")
        for dimension, size in zip(spec.shape, shape, strict=True):
            wanted = dimension if isinstance(dimension, int) else sizes.setdefault(dimension, size)
            if size != wanted:
                where = "" if dimension == wanted else f", where {dimension} is {wanted}"
                raise DisaError(
                    f"the graph's input {spec} was given an array of shape {shape}{where}"
                )
    if left:
        raise DisaError(f"the graph has no input named {_join(left)}")


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
