"""The image file formats of responses."""

import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image as Pillow

from ...runtime.generation import Image

Format = Literal["png", "jpeg", "webp"]


@dataclass(frozen=True)
class Encoding:
    """File format and quality.

    Attributes:
        format: "png", "jpeg" or "webp".
        quality: 0 to 100, for JPEG and WebP; PNG is lossless.
    """

    format: Format = "png"
    quality: int = 100

    @property
    def media_type(self) -> str:
        return f"image/{self.format}"

    def encode(self, image: Image) -> bytes:
        """Encode an image [H, W, 3 or 1] as a file."""
        file = io.BytesIO()
        picture = Pillow.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
        if self.format == "png":
            picture.save(file, "PNG")
        else:
            picture.save(file, self.format.upper(), quality=self.quality)
        return file.getvalue()
