"""A graph of a plan, extracted for editing."""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ...engines.array_types import Floats
from ...engines.plan.external_data import ALIGNMENT, place, refer
from ...engines.plan.graph_files import ExportedGraph
from ...engines.plan.manifest import GraphInfo
from ...engines.plan.onnx_file import relocate
from ...engines.plan.plan import Plan
from ...errors import DisaError
from ...optional import import_failed
from .matmuls import Matmul, find_matmuls
from .qdq import Format, QuantizedMatrix, insert_quantization, quantize_matrix

WEIGHTS = "weights.plan"
"""The plan's file name in the folder of its extracted graphs."""


class PlanGraph:
    """An ONNX graph of a plan whose weights stay in the plan.

    Attributes:
        info: the graph's entry in the manifest.
        model: the ONNX model; its external data are in `WEIGHTS`.
        matmuls: the matmuls that can be quantised.
        folder: the folder of its files.
    """

    def __init__(self, plan: Plan, info: GraphInfo, folder: Path) -> None:
        try:
            import onnx
        except ImportError as error:
            raise import_failed(error, "onnx", "export") from error
        self.info, self.folder = info, folder
        self.model = onnx.load_from_string(
            relocate(plan.read(info.onnx), plan.extents(info), WEIGHTS)
        )
        self.matmuls = find_matmuls(self.model)
        _link_or_copy(plan.path.resolve(), folder / WEIGHTS)
        self._tensors = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self._matrices: dict[str, Any] = {}
        self._scales: dict[str, Floats] = {}
        self._form: Format | None = None

    def weight(self, name: str) -> npt.NDArray[Any]:
        """An initializer of the model; a view of the file if it is external."""
        from onnx import helper, numpy_helper

        tensor = self._tensors[name]
        if not tensor.external_data:
            return np.asarray(numpy_helper.to_array(tensor))
        file, offset, length = place(tensor)
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        data = np.memmap(self.folder / file, np.uint8, "r", offset, (length,))
        return data.view(dtype).reshape(tuple(tensor.dims))

    def origin(self, matmul: Matmul) -> tuple[int, int] | None:
        """The place of a matmul's matrix in the plan, which is equal for graphs that share it.

        Returns:
            Offset and length in bytes; None for a matrix that is in the graph itself.
        """
        tensor = self._tensors[matmul.weight]
        return place(tensor)[1:] if tensor.external_data else None

    def with_outputs(self, names: Iterable[str]) -> bytes:
        """The model with additional tensors as outputs."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        present = {value.name for value in (*model.graph.output, *model.graph.input)}
        for name in names:
            if name not in present:
                model.graph.output.add().name = name
        result: bytes = model.SerializeToString()
        return result

    def quantize_weights(self, form: Format) -> None:
        """Write the 8-bit matrices of all matmuls to a file in the folder."""
        self._form = form
        self._matrices, self._scales = {}, {}
        with (self.folder / f"{self.info.name}.{form}.data").open("wb") as file:
            for matmul in self.matmuls:
                if matmul.weight not in self._matrices:
                    matrix = quantize_matrix(self.weight(matmul.weight), matmul.axis, form)
                    self._scales[matmul.weight] = matrix.scales
                    self._matrices[matmul.weight] = _append(file, matmul.weight, matrix, form)

    def quantized(self, chosen: Iterable[Matmul], scales: Mapping[str, float]) -> Any:
        """The model with some matmuls in 8 bits; `scales` are those of their activations."""
        assert self._form is not None, "quantize_weights comes first"
        return insert_quantization(
            self.model, list(chosen), scales, self._matrices, self._scales, self._form
        )

    def write(self, model: Any) -> ExportedGraph:
        """Write a model of `quantized` with all its weights beside it, like an export."""
        import onnx

        path = self.folder / f"{self.info.name}.onnx"
        data = self.folder / f"{self.info.name}.data"
        try:
            with data.open("wb") as target:
                for tensor in model.graph.initializer:
                    if tensor.external_data:
                        _copy(self.folder, tensor, target, data.name)
            onnx.save(model, path)
        except OSError as error:
            raise DisaError(
                f"the graph {self.info.name} cannot be written to {self.folder}: "
                f"{error.strerror or error}"
            ) from error
        return ExportedGraph(
            self.info.name,
            path,
            (data,) if data.stat().st_size else (),
            tuple((spec.name, spec.dtype, spec.shape) for spec in self.info.inputs),
            tuple((spec.name, spec.dtype, spec.shape) for spec in self.info.outputs),
        )


def _link_or_copy(plan: Path, target: Path) -> None:
    """Make the plan's bytes available at `target`; ONNX Runtime does not follow symbolic links."""
    if target.exists():
        return
    try:
        os.link(plan, target)
    except OSError:
        try:
            shutil.copyfile(plan, target)
        except OSError as error:
            raise DisaError(
                f"{plan} cannot be copied to {target.parent}: {error.strerror or error}"
            ) from error


def _append(file: BinaryIO, weight: str, matrix: QuantizedMatrix, form: Format) -> Any:
    """Append a matrix to a file; returns the initializer that refers to it."""
    from onnx import TensorProto

    file.write(bytes(-file.tell() % ALIGNMENT))
    offset = file.tell()
    file.write(matrix.values.tobytes())
    tensor = TensorProto(
        name=f"{weight}.quantized", data_type=form.onnx_type, dims=matrix.values.shape
    )
    refer(tensor, Path(file.name).name, offset, matrix.values.nbytes)
    return tensor


def _copy(folder: Path, tensor: Any, target: BinaryIO, name: str) -> None:
    """Append the bytes of a tensor to `target`, and make the tensor refer to them."""
    location, offset, length = place(tensor)
    target.write(bytes(-target.tell() % ALIGNMENT))
    start = target.tell()
    np.memmap(folder / location, np.uint8, "r", offset, (length,)).tofile(target)
    refer(tensor, name, start, length)
