import gzip
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

# The demo is no part of the installed package: it is imported from the repository.
sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture
def write_split(tmp_path: Path) -> Callable[[np.ndarray, np.ndarray], None]:
    """Writes images and labels to `tmp_path` as the training split."""

    def write(images: np.ndarray, labels: np.ndarray) -> None:
        for name, values in [("images-idx3", images), ("labels-idx1", labels)]:
            header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
            content = gzip.compress(header + values.astype(np.uint8).tobytes())
            (tmp_path / f"train-{name}-ubyte.gz").write_bytes(content)

    return write
