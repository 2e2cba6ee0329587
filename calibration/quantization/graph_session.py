"""A session for an ONNX graph that is not in a plan yet."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...engines.cpu import physical_cores
from ...engines.ort.session import failures, session_options
from ...engines.plan.manifest import GraphInfo
from ...engines.session import Array, iterate_by_run
from ...errors import DisaError
from ...optional import import_failed
from .ranges import Magnitudes


class GraphSession:
    """An ONNX model on the CPU, as a `Session`.

    Args:
        info: inputs and outputs, from the plan's manifest.
        model: the ONNX model; its external data are in `folder`.
        prepack: see `OnnxRuntimeSession`.
    """

    def __init__(
        self,
        info: GraphInfo,
        model: bytes,
        folder: Path,
        precision: str = "fp32",
        threads: int | None = None,
        prepack: bool = True,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise import_failed(error, "onnxruntime", "cpu") from error
        self.inputs, self.outputs = info.inputs, info.outputs
        self.description = f"ONNX Runtime {onnxruntime.__version__} CPUExecutionProvider"
        options = session_options(onnxruntime, threads or physical_cores(), prepack, precision)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
        self._failures = partial(failures, onnxruntime, f"the graph {info.name}", precision)
        with self._failures():
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        self._names = [spec.name for spec in self.outputs]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Session.run`."""
        return self.fetch(inputs, ())

    def fetch(self, inputs: Mapping[str, Array], further: Iterable[str]) -> dict[str, Array]:
        """The outputs of the graph, and further tensors that are outputs of this model."""
        names = [*self._names, *(name for name in further if name not in self._names)]
        given = {name: np.ascontiguousarray(values) for name, values in inputs.items()}
        with self._failures():
            return dict(zip(names, self._session.run(names, given), strict=True))

    def iterate(
        self,
        carry: Mapping[str, str],
        constants: Mapping[str, Array],
        per_step: Mapping[str, Array],
        state: Mapping[str, Array],
    ) -> dict[str, Array]:
        """See `Session.iterate`."""
        return iterate_by_run(self, carry, constants, per_step, state)

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """See `Session.empty`."""
        return np.empty(shape, dtype)


class RangeSession(GraphSession):
    """Also counts the magnitudes of tensors of the graph, while `watching`.

    In a loop, only a few evenly spaced steps are counted. The first of them is one step later in
    each loop, so that all noise levels are included.
    """

    STEPS = 4

    def __init__(
        self,
        info: GraphInfo,
        model: bytes,
        folder: Path,
        watched: Iterable[str],
        threads: int | None,
        prepack: bool = True,
    ) -> None:
        super().__init__(info, model, folder, threads=threads, prepack=prepack)
        self.magnitudes = {name: Magnitudes() for name in watched}
        self._inner = sorted(set(self.magnitudes) - {spec.name for spec in self.inputs})
        self._loops = 0
        self._counted_steps: Iterator[bool] = iter(())
        self.watching = True

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Session.run`."""
        # Outside of a loop every call is counted.
        counted = next(self._counted_steps, True)
        return self._count(inputs) if counted and self.watching else super().run(inputs)

    def iterate(
        self,
        carry: Mapping[str, str],
        constants: Mapping[str, Array],
        per_step: Mapping[str, Array],
        state: Mapping[str, Array],
    ) -> dict[str, Array]:
        """See `Session.iterate`."""
        steps = len(next(iter(per_step.values())))
        spacing = max(1, steps // self.STEPS)
        first = self._loops % spacing
        self._loops += 1
        self._counted_steps = iter([step % spacing == first for step in range(steps)])
        return super().iterate(carry, constants, per_step, state)

    def _count(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        found = self.fetch(inputs, self._inner)
        for name, magnitudes in self.magnitudes.items():
            magnitudes.add(np.asarray(found[name] if name in found else inputs[name]))
        return {name: found[name] for name in self._names}


def scales_of(
    magnitudes: Mapping[str, Magnitudes], largest: float, clip: bool, where: str
) -> dict[str, float]:
    """Scale of each tensor: its range divided by the largest magnitude of the format.

    Args:
        largest: the largest magnitude of the format.
        clip: whether the range has the least squared error, instead of reaching the largest value.
        where: name of the graph, for errors.

    Raises:
        DisaError: a tensor was not finite.
    """
    for name, found in magnitudes.items():
        if not found.finite:
            raise DisaError(
                f"{name} in the graph {where} was not finite while images were generated: the plan "
                "is damaged, or its sampling options are not usable"
            )
    return {
        name: (found.integer_range(int(largest)) if clip else found.largest or 1.0) / largest
        for name, found in magnitudes.items()
    }
