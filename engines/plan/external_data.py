"""The external data of ONNX tensors: bytes outside the ONNX file."""

from typing import Any

ALIGNMENT = 64
"""Offsets are multiples of this, so that weights can be used without a copy."""


def place(tensor: Any) -> tuple[str, int, int]:
    """File, offset and length of a tensor's bytes."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return entries["location"], int(entries.get("offset", 0)), int(entries["length"])


def refer(tensor: Any, file: str, offset: int, length: int) -> None:
    """Let a tensor refer to its bytes in a file beside the ONNX file."""
    from onnx import TensorProto

    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", offset), ("length", length)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
