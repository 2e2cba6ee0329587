import gzip
import struct
import sys
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

# The demo is no part of the installed package: it is imported from the repository.
sys.path.insert(0, str(Path(__file__).parents[2]))


class Write(Protocol):
    def __call__(self, images: np.ndarray, labels: np.ndarray, split: str = "train") -> None: ...


@pytest.fixture
def write_split(tmp_path: Path) -> Write:
    """Writes images and labels to `tmp_path` as a split of the data."""

    def write(images: np.ndarray, labels: np.ndarray, split: str = "train") -> None:
        for name, values in [("images-idx3", images), ("labels-idx1", labels)]:
            header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
            content = gzip.compress(header + values.astype(np.uint8).tobytes())
            (tmp_path / f"{split}-{name}-ubyte.gz").write_bytes(content)

    return write
