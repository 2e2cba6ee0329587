"""Small images for tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, count: int, seed: int) -> Path:
    """Write random images of 40x32 pixels; returns the folder."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for index in range(count):
        noise = random.integers(0, 256, (8, 8, 3), np.uint8)
        picture = Image.fromarray(noise).resize((40, 32), Image.Resampling.BICUBIC)
        picture.save(folder / f"{index:03d}.png")
    return folder
