"""The files of an exported graph before they are written into a plan."""

from dataclasses import dataclass
from pathlib import Path

from ..session import Dimension


@dataclass(frozen=True)
class ExportedGraph:
    """An ONNX file, the files with its weights, and its inputs and outputs."""

    name: str
    onnx: Path
    data: tuple[Path, ...]
    inputs: tuple[tuple[str, str, tuple[Dimension, ...]], ...]
    outputs: tuple[tuple[str, str, tuple[Dimension, ...]], ...]
