"""Stores weights that several graphs share only once.

Harmon's prompt and backbone graphs both contain the language model. An ONNX file may refer to any
file for each tensor, so a later graph refers to the weights that an earlier one has written.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from ...errors import DisaError
from ...files import written_whole
from .external_data import ALIGNMENT, place, refer
from .graph_files import ExportedGraph

CHUNK = 1 << 24
SMALLEST = 1 << 12
"""Smaller tensors (in bytes) are not compared."""


class SharedWeights:
    """The weights of the graphs exported so far into one folder."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, int], tuple[str, int]] = {}

    def share(self, exported: ExportedGraph) -> ExportedGraph:
        """Rewrite the graph's files to refer to weights that earlier graphs have already.

        Returns:
            The graph with all files that its ONNX file refers to, its own last.
        """
        import onnx

        if not exported.data:
            return exported
        (own,) = exported.data
        model = onnx.load(exported.onnx, load_external_data=False)
        tensors = [t for t in model.graph.initializer if t.external_data]
        if not tensors:
            return replace(exported, data=())
        places = {tensor.name: place(tensor)[1:] for tensor in tensors}
        digests = _digests(own, places)
        shared = {name: self._known[key] for name, key in digests.items() if key in self._known}
        kept = [tensor for tensor in tensors if tensor.name not in shared]
        offsets = {tensor.name: places[tensor.name][0] for tensor in kept}
        if shared:
            offsets = _rewrite(own, [(t.name, *places[t.name]) for t in kept])
            for tensor in tensors:
                file, offset = shared.get(tensor.name) or (own.name, offsets[tensor.name])
                refer(tensor, file, offset, places[tensor.name][1])
            onnx.save(model, exported.onnx)
        for tensor in kept:
            if tensor.name in digests:
                self._known.setdefault(digests[tensor.name], (own.name, offsets[tensor.name]))
        others = sorted({own.with_name(file) for file, _ in shared.values()})
        return replace(exported, data=(*others, own) if kept else tuple(others))


def _digests(path: Path, places: Mapping[str, tuple[int, int]]) -> dict[str, tuple[bytes, int]]:
    """A digest of the content of each tensor that is large enough."""
    found = {}
    with path.open("rb") as file:
        for name, (offset, length) in places.items():
            if length >= SMALLEST:
                digest = hashlib.sha256()
                for chunk in _chunks(file, offset, length):
                    digest.update(chunk)
                found[name] = (digest.digest(), length)
    return found


def _chunks(file: BinaryIO, offset: int, length: int) -> Iterator[bytes]:
    file.seek(offset)
    while length:
        chunk = file.read(min(length, CHUNK))
        if not chunk:
            raise DisaError(f"{file.name} is shorter than its graph requires: export again")
        yield chunk
        length -= len(chunk)


def _rewrite(path: Path, kept: list[tuple[str, int, int]]) -> dict[str, int]:
    """Leave only the tensors `kept` (name, offset, length) in a file; their new offsets."""
    offsets = {}
    with path.open("rb") as source, written_whole(path) as target:
        for name, offset, length in kept:
            target.write(bytes(-target.tell() % ALIGNMENT))
            offsets[name] = target.tell()
            target.writelines(_chunks(source, offset, length))
    return offsets
