import io

import numpy as np
import pytest
from PIL import Image

from disa.errors import DisaError
from disa.runtime.outputs import image_files
from disa.runtime.outputs.image_files import (
    ImageType,
    decode_image,
    encode_image,
    encode_latents,
)


def pixels(channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 4, channels), np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", ["png", "webp"])
def test_lossless_types_give_the_same_pixels(name: str, channels: int) -> None:
    image = pixels(channels)
    if channels == 4:
        image[0, :, 3] = 0  # Colours under full transparency count too.
    file = encode_image(image, ImageType(name))
    assert (file.suffix, file.height, file.width) == (name, 6, 4)
    found = decode_image(file.data, "it")
    shown = np.repeat(image, 3, axis=2) if (name, channels) == ("webp", 1) else image
    np.testing.assert_array_equal(found, shown)
    np.testing.assert_array_equal(decode_image(io.BytesIO(file.data), "it"), found)


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_quality_counts(name: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    sizes = [len(encode_image(image, ImageType(name, quality)).data) for quality in (1, 50, 100)]
    assert sizes == sorted(set(sizes))
    if name == "jpeg":
        assert encode_image(image, ImageType("jpeg")) == encode_image(image, ImageType("jpeg", 95))
        assert encode_image(image, ImageType("jpeg")).suffix == "jpg"


@pytest.mark.parametrize(
    ("name", "quality"), [("gif", None), ("png", 90), ("jpeg", 0), ("webp", 101)]
)
def test_types_that_do_not_exist(name: str, quality: int | None) -> None:
    with pytest.raises(DisaError):
        ImageType(name, quality)
    assert ImageType("jpeg", 1) != ImageType("jpeg", 100)


@pytest.mark.parametrize(("channels", "name"), [(2, "png"), (5, "webp"), (4, "jpeg")])
def test_channels_that_cannot_be_written(channels: int, name: str) -> None:
    with pytest.raises(DisaError, match=f"{channels} channels cannot be written as {name}"):
        encode_image(pixels(channels), ImageType(name))


@pytest.mark.parametrize(
    ("mode", "name"), [("P", "PNG"), ("1", "PNG"), ("LA", "PNG"), ("CMYK", "JPEG")]
)
def test_other_images_of_eight_bits_become_rgb(mode: str, name: str) -> None:
    """The numbers in an image with a palette are not its colours."""
    image = Image.fromarray(pixels(3)).convert(mode)
    file = io.BytesIO()
    image.save(file, name)
    found = decode_image(file.getvalue(), "it")
    with Image.open(file) as saved:
        np.testing.assert_array_equal(found, saved.convert("RGB"))


def test_images_of_more_bits_are_refused() -> None:
    file = io.BytesIO()
    Image.new("I;16", (2, 2), 1000).save(file, "PNG")
    with pytest.raises(DisaError, match="it does not have 8 bits a channel"):
        decode_image(file.getvalue(), "it")


def test_latents() -> None:
    latents = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    file = encode_latents(latents)
    assert (file.suffix, file.height, file.width) == ("npy", None, None)
    np.testing.assert_array_equal(np.load(io.BytesIO(file.data)), latents)


def test_damaged_files(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_image(pixels(3), ImageType()).data
    gif = io.BytesIO()
    Image.new("L", (2, 2)).save(gif, "GIF")
    for wrong in (b"", data[:40], gif.getvalue()):
        with pytest.raises(DisaError, match="it is damaged: delete it"):
            decode_image(wrong, "it")
    with pytest.raises(DisaError, match=r"it is damaged: find another$"):
        decode_image(b"", "it", "find another")
    monkeypatch.setattr(image_files, "MAX_PIXELS", 24)
    decode_image(data, "it")
    monkeypatch.setattr(image_files, "MAX_PIXELS", 23)
    with pytest.raises(DisaError, match="more than 23 pixels"):
        decode_image(data, "it")
