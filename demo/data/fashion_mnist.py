"""Fashion-MNIST (Xiao et al. 2017, MIT), as Debian's `dataset-fashion-mnist` installs it."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from disa.errors import DisaError

FOLDER = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "dataset-fashion-mnist"
CLASS_NAMES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
SIZE = 32
_UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array in a gzipped IDX file of unsigned bytes.

    The format: two zero bytes, a type code, the number of dimensions, each dimension as a
    big-endian 32-bit integer, then the values.

    Raises:
        DisaError: the file is missing, or is not a whole IDX file of bytes.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise DisaError(
            f"{path} does not exist: install the Debian package {PACKAGE} "
            f"(apt-get install {PACKAGE}) or name the folder of the four .gz files with --data"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DisaError(f"{path} cannot be read: {error}; fetch it again") from error
    if len(content) < 4 or content[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise DisaError(f"{path} is not an IDX file of unsigned bytes: fetch it again")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DisaError(f"{path} ends inside its header: fetch it again")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    values = np.frombuffer(content, np.uint8, offset=start)
    if values.size != int(np.prod(shape, dtype=np.int64)):
        raise DisaError(f"{path} declares {shape} values but has {values.size}: fetch it again")
    return values.reshape(shape)


def load(split: str, folder: Path = FOLDER) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images [n, 32, 32] (background 0, two pixels of it added on every side) and labels [n].

    Args:
        split: "train" (60,000 images) or "t10k" (the 10,000 test images).
        folder: where the four files are.
    """
    images = read_idx(folder / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz")
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DisaError(f"the {split} images and labels in {folder} do not match")
    border = [(SIZE - side) // 2 for side in images.shape[1:]]
    if min(border) < 0 or images.shape[1:] != (SIZE - 2 * border[0], SIZE - 2 * border[1]):
        raise DisaError(f"the images in {folder} do not fit evenly into {SIZE}x{SIZE} pixels")
    padded = np.pad(images, [(0, 0), (border[0], border[0]), (border[1], border[1])])
    return padded, labels.astype(np.int64)


def to_model(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Bytes 0..255 to the model's -1..1."""
    scaled: npt.NDArray[np.float32] = images.astype(np.float32) / 127.5 - 1
    return scaled
