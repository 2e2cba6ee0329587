"""Encodes and decodes image files."""

import io
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...engines.array_types import Floats
from ...errors import DisaError

IMAGE_TYPES = ("png", "jpeg", "webp")
SUFFIXES = {"png": "png", "jpeg": "jpg", "webp": "webp", "latents": "npy"}
MAX_PIXELS = 1 << 28
MAX_FILE_BYTES = 4 * MAX_PIXELS
_CHANNELS = (1, 3, 4)
_PLAIN_MODES = ("L", "RGB", "RGBA")
"""Pillow's modes of 8-bit pixels with those channels."""
AGAIN = "delete it and run again to generate it"
"""What to do about a damaged image of a run."""
_CONVERTED_MODES = ("1", "P", "PA", "LA", "CMYK", "YCbCr")
"""Modes that are converted to RGB, as FID tools do: palettes, two levels, inks."""


@dataclass(frozen=True)
class ImageType:
    """How images are encoded.

    Attributes:
        name: png, jpeg or webp.
        quality: 1 to 100 of JPEG and lossy WebP; None is 95 for JPEG and lossless WebP.
    """

    name: str = "png"
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.name not in IMAGE_TYPES:
            names = ", ".join(IMAGE_TYPES)
            raise DisaError(f"the image type must be one of {names}, not {self.name!r}")
        if self.name == "png" and self.quality is not None:
            raise DisaError(
                "PNG is lossless and has no quality: leave out the quality, or choose jpeg or webp"
            )
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise DisaError(f"the quality of an image must be 1 to 100, not {self.quality}")


@dataclass(frozen=True)
class ImageFile:
    """An encoded image, or latents if there are no pixels.

    Attributes:
        suffix: png, jpg, webp, npy, or raw for pixels that are not encoded.
        data: content of the file, or uint8 [H, W, channels].
        height, width: in pixels; None for latents.
    """

    suffix: str
    data: bytes
    height: int | None = None
    width: int | None = None


def encode_image(image: npt.NDArray[np.uint8], kind: ImageType) -> ImageFile:
    """Encode uint8 [H, W, channels] with 1, 3 or 4 channels.

    Raises:
        DisaError: another number of channels, or four channels as JPEG.
    """
    channels = image.shape[2]
    if channels not in _CHANNELS or (channels == 4 and kind.name == "jpeg"):
        raise DisaError(f"an image of {channels} channels cannot be written as {kind.name}")
    buffer = io.BytesIO()
    pixels = image[..., 0] if channels == 1 else image
    Image.fromarray(pixels).save(buffer, kind.name.upper(), **_save_options(kind))
    return ImageFile(SUFFIXES[kind.name], buffer.getvalue(), *image.shape[:2])


def _save_options(kind: ImageType) -> dict[str, Any]:
    if kind.name == "png":
        return {}
    if kind.name == "webp" and kind.quality is None:
        # Without `exact`, colours under full transparency are lost.
        return {"lossless": True, "exact": True}
    return {"quality": kind.quality or 95}


def encode_latents(latents: Floats) -> ImageFile:
    """Encode latents [c, h, w] as .npy."""
    buffer = io.BytesIO()
    np.save(buffer, latents)
    return ImageFile(SUFFIXES["latents"], buffer.getvalue())


def decode_image(file: BinaryIO | bytes, where: str, advice: str = AGAIN) -> npt.NDArray[np.uint8]:
    """Decode an image to pixels [H, W, channels].

    Other kinds of 8-bit images than disa writes, such as images with a palette, become RGB.

    Args:
        where: name of the source, for the error.
        advice: what to do about a damaged one, for the error.

    Raises:
        DisaError: it is damaged, not of a type that disa writes, or has more than 8 bits.
    """
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        with Image.open(source, formats=[name.upper() for name in IMAGE_TYPES]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DisaError(f"{where} has more than {MAX_PIXELS} pixels")
            if image.mode not in (*_PLAIN_MODES, *_CONVERTED_MODES):
                raise DisaError(
                    f"{where} does not have 8 bits a channel (it has the mode {image.mode}): "
                    "convert it"
                )
            plain = image.mode in _PLAIN_MODES
            pixels = np.asarray(image if plain else image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DisaError(f"{where} is damaged: {advice}") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels
