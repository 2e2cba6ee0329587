"""A picture of many images with their classes.

Our own, on Pillow alone: torchvision's `make_grid` writes no labels and needs PyTorch, which a
machine that runs plans has not, and matplotlib is 35 MB for the same.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

MIN_TILE, MAX_TILE, MARGIN, LABEL_HEIGHT = 72, 256, 4, 16
MAX_SIDE = 8192
MIN_HIGHEST = 2 * MAX_TILE
"""Up to this height, images are not reduced because of their number."""
MAX_LETTERS = MAX_TILE
"""Letters of a label that are measured: no tile has room for more."""
BACKGROUND, INK = (255, 255, 255), (40, 40, 40)


def make_grid(
    images: Iterable[npt.NDArray[Any]], conditions: Sequence[int | str], names: Sequence[str] | None
) -> Image.Image:
    """Make a labelled contact sheet of uint8 images [H, W] or [H, W, channels] of one size.

    If classes or prompts repeat in turn, each column is one of them and only the top row is
    labelled. Small images are enlarged without interpolation. Images are read one by one.
    """
    count, images = len(conditions), iter(images)
    first = next(images)
    period = _period(conditions)
    columns = period if 2 < period <= 20 else math.ceil(math.sqrt(count))
    headed = columns == period
    rows = math.ceil(count / columns)
    tile, room = _tile(first.shape[0], first.shape[1], columns, rows)
    cell = tile + MARGIN
    lower = 0 if headed else LABEL_HEIGHT
    line = room + MARGIN + lower
    top = LABEL_HEIGHT + MARGIN if headed else MARGIN
    sheet = Image.new("RGB", (columns * cell + MARGIN, top + rows * line), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    shown = zip(itertools.chain([first], images), conditions, strict=True)
    del first
    for index, (image, label) in enumerate(shown):
        row, column = divmod(index, columns)
        x, y = MARGIN + column * cell, top + row * line
        picture = Image.fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image)
        width, height = picture.size
        method = Image.Resampling.NEAREST if tile > width else Image.Resampling.LANCZOS
        size = tile, min(room, max(1, tile * height // width))
        sheet.paste(picture.convert("RGB").resize(size, method), (x, y))
        text_y = y + room + 1 if not headed else MARGIN
        if not headed or row == 0:
            pen.text((x, text_y), _fitted(_title(label, names), tile, font), INK, font)
    return sheet


def _title(label: int | str, names: Sequence[str] | None) -> str:
    if names and isinstance(label, int) and label < len(names):
        return names[label].split(",")[0]
    # A prompt may be long and have several lines; a label has one.
    return " ".join(str(label).split())[:MAX_LETTERS]


def _fitted(text: str, width: int, font: Any) -> str:
    """The text, or its longest beginning that fits with a full stop after it."""
    if len(text) < 2 or font.getlength(text) <= width:
        return text
    # Measuring a text takes up to 2 ms, and a grid has up to 400 labels.
    lengths = range(1, len(text) - 1)
    kept = bisect_right(lengths, width, key=lambda length: font.getlength(text[:length] + "."))
    return text[:kept] + "."


def _tile(height: int, width: int, columns: int, rows: int) -> tuple[int, int]:
    """The width of a picture on the sheet, and the height of its room.

    Images that are wider than high keep the room of a square. Much higher ones become narrow:
    enlarged to a usual width, 400 of 16x4096 pixels would take 20 GB.
    """
    enlarged = height * math.ceil(MIN_TILE / height) if height < MIN_TILE else min(height, MAX_TILE)
    tile = max(16, min(enlarged, MAX_SIDE // columns))
    highest = max(MIN_HIGHEST, MAX_SIDE // rows)
    if tile * height // width > highest:
        return max(1, highest * width // height), highest
    return tile, max(tile, tile * height // width)


def _period(conditions: Sequence[int | str]) -> int:
    """The number of images after which the conditions repeat; all images if they do not."""
    values = np.asarray(conditions)
    for period in range(1, len(values)):
        if (values[period:] == values[:-period]).all():
            return period
    return len(values)
