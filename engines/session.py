"""What every backend offers: a graph that runs by names, once or as a loop."""

from collections.abc import Mapping
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

    Arrays that come out may live on a device. They offer `shape`, `dtype`, `np.asarray(a)`,
    `a.reshape(...)` and slices along the first axis, `a[i:j]`, to get (a view) and to set;
    a loop that keeps to these runs on any backend.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    description: str
    """What really runs, such as "ONNX Runtime 1.32.0 CPUExecutionProvider fp32"."""

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

        carry: output name -> the input that takes it in the next step.
        constants: inputs that stay the same. per_step: inputs with a leading step axis.
        state: the carried inputs of the first step, by input name; left unchanged.

        Returns the outputs of the last step by name; for no steps, `state` under the names
        of the carried outputs.
        """
        ...

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
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
    steps = step_count(carry, per_step, state)
    outputs = {output: state[taken] for output, taken in carry.items()}
    for step in range(steps):
        carried = {taken: outputs[output] for output, taken in carry.items()}
        current = {name: values[step] for name, values in per_step.items()}
        outputs = session.run({**constants, **current, **carried})
    return outputs


def step_count(
    carry: Mapping[str, str], per_step: Mapping[str, Array], state: Mapping[str, Array]
) -> int:
    """The number of steps that `Session.iterate` is asked for.

    Raises DisaError if `per_step` does not say, or if `carry` and `state` differ.
    """
    lengths = {len(values) for values in per_step.values()}
    if len(lengths) != 1:
        raise DisaError(
            "a loop over a graph needs inputs that change at every step, all for the same number "
            f"of steps, and was given {_lengths(per_step)}"
        )
    if set(carry.values()) != set(state):
        raise DisaError(
            f"a loop over a graph carries {_names(carry.values())} from step to step, and was "
            f"given a start for {_names(state)}"
        )
    return int(lengths.pop())


def _lengths(per_step: Mapping[str, Array]) -> str:
    return ", ".join(f"{name}: {len(values)}" for name, values in per_step.items()) or "none"


def _names(names: Any) -> str:
    return ", ".join(sorted(names)) or "nothing"
