"""Image files of responses."""

import io

import numpy as np
import pytest
from PIL import Image

from disa.server.images.encoding import Encoding, Format


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_encoded(kind: Format, channels: int) -> None:
    pixels = np.full((4, 6, channels), 90, np.uint8)
    with Image.open(io.BytesIO(Encoding(kind).encode(pixels))) as image:
        assert (image.format, image.size) == (kind.upper(), (6, 4))
        assert abs(int(np.asarray(image).mean()) - 90) <= 2
    assert Encoding(kind).media_type == f"image/{kind}"


def test_png_is_lossless_and_quality_changes_jpeg() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    with Image.open(io.BytesIO(Encoding("png").encode(pixels))) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
    small, large = (len(Encoding("jpeg", quality).encode(pixels)) for quality in (5, 95))
    assert small < large
