"""References that generated images are compared with."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DisaError
from ..files import open_regular
from ..runtime.outputs.record import RECORD
from ..runtime.replay.npz_file import NpzFile
from .frechet import Moments
from .image_sets import ImageFiles, ImageSet, NpzImages, Runs

MAX_WIDTH = 8192


@dataclass(frozen=True)
class Statistics:
    """Precomputed moments, such as ADM's adm_in256_stats.npz.

    Attributes:
        moments: of the features.
        source: where they come from, for the result.
        images: for precision and recall; None if they are not needed, or not in the file.
    """

    moments: Moments
    source: dict[str, Any]
    images: ImageSet | None = None


def open_reference(path: Path, width: int, images: bool = False) -> Statistics | ImageSet:
    """Open a reference: .npz with `mu` and `sigma` or images in `arr_0`, a run, or an image folder.

    Args:
        width: number of features of an image.
        images: whether images are needed beside statistics, as ADM's reference batches have them.

    Raises:
        DisaError: it is none of these, or its statistics belong to other features.
    """
    if path.is_dir():
        return Runs([str(path)]) if (path / RECORD).exists() else ImageFiles(path)
    arrays = NpzFile(path)
    if not {"mu", "sigma"} <= arrays.names:
        return NpzImages(path)
    mean = _array(arrays, "mu", (width,))
    covariance = _array(arrays, "sigma", (width, width))
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    both = NpzImages(path) if images and "arr_0" in arrays.names else None
    return Statistics(Moments(mean, covariance), {"file": str(path), "sha256": digest}, both)


def _array(arrays: NpzFile, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    array = arrays.read(name, kinds="f")
    if array.shape != shape:
        raise DisaError(
            f"{arrays.path} has statistics of the shape {array.shape}, but the features need "
            f"{shape}: they belong to another network or layer"
        )
    return array.astype(np.float64)
