import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from disa.runtime.outputs import grid
from disa.runtime.outputs.grid import LABEL_HEIGHT, MARGIN, make_grid


@pytest.mark.parametrize("count", [1, 2, 3, 64])
@pytest.mark.parametrize("side", [8, 32, 256])
def test_every_image_is_on_the_sheet(count: int, side: int) -> None:
    images = [np.full((side, side, 3), 100 + index, np.uint8) for index in range(count)]
    sheet = np.asarray(make_grid(images, [index % 10 for index in range(count)], None))
    grey = sheet[(sheet == sheet[..., :1]).all(axis=-1)][:, 0]
    shown = np.bincount(grey, minlength=256)[100 : 100 + count]
    assert (shown >= min(side, 72) ** 2).all()


@pytest.mark.parametrize("conditions", [[0, 1, 2, 0, 1, 2], [7] * 6])
@pytest.mark.parametrize(("height", "width"), [(96, 64), (256, 64), (64, 96)])
def test_images_that_are_not_square_do_not_cover_each_other(
    height: int, width: int, conditions: list[int]
) -> None:
    colours = np.array([(0, 200, 40 * index) for index in range(6)], np.uint8)
    images = [np.broadcast_to(colour, (height, width, 3)) for colour in colours]
    sheet = np.asarray(make_grid(images, conditions, None))
    for colour in colours:
        shown = (sheet == colour).all(axis=-1)
        rows, columns = shown.any(axis=1).sum(), shown.any(axis=0).sum()
        assert shown.sum() == rows * columns
        assert rows / columns == pytest.approx(height / width, rel=0.02)


def test_classes_in_turn_are_columns() -> None:
    images = [np.full((8, 8), index % 10 * 20, np.uint8) for index in range(30)]
    sheet = np.asarray(make_grid(images, [index % 10 for index in range(30)], ["name"] * 10))
    height, width = sheet.shape[:2]
    assert width > 3 * height
    column = sheet[height // 2 :, width // 20]
    assert len(np.unique(column[:, 0])) <= 3


def test_prompts_are_labelled() -> None:
    images = [np.zeros((64, 96, 3), np.uint8)] * 2
    labelled = np.asarray(make_grid(images, ["a dog", "a cat that is very long" * 9], None))
    assert (labelled < 200).any(axis=-1).sum() > 2 * 64 * 96 * 0.5


@pytest.mark.parametrize(("conditions", "lower"), [([7] * 4, LABEL_HEIGHT), ([0, 1, 2] * 2, 0)])
def test_rows_leave_room_for_labels_unless_columns_have_them(
    conditions: list[int], lower: int
) -> None:
    images = [np.full((64, 64, 3), 100 + index, np.uint8) for index in range(len(conditions))]
    sheet = np.asarray(make_grid(images, conditions, None))
    columns = 2 if lower else 3
    above, below = (
        np.flatnonzero((sheet == 100 + index).all(axis=-1).any(axis=1)) for index in (0, columns)
    )
    assert len(above) == len(below)
    assert below[0] - above[0] == len(above) + MARGIN + lower
    assert sheet.shape[0] - below[0] == len(above) + MARGIN + lower


@pytest.mark.parametrize(
    ("count", "conditions", "side", "size"),
    [
        # Columns x (tile + margin) + margin, and rows with a line for labels, or one line in all.
        (1, [0], 72, (80, 96)),
        (1, [0], 71, (150, 166)),  # Enlarged by whole factors to at least 72 pixels.
        (1, [0], 24, (80, 96)),
        (1, [0], 25, (83, 99)),
        (1, [0], 100, (108, 124)),
        (1, [0], 257, (264, 280)),
        (4, [0, 1, 2, 0], 72, (232, 172)),  # Three in turn are columns,
        (6, [0, 1] * 3, 72, (232, 188)),  # and two are not.
        (40, [*range(20)] * 2, 72, (1524, 172)),
        (42, [*range(21)] * 2, 72, (536, 556)),
        (21, [*range(21)], 72, (384, 464)),
        (400, [0] * 400, 256, (5204, 5524)),
    ],
)
def test_sizes_of_sheets(
    count: int, conditions: list[int], side: int, size: tuple[int, int]
) -> None:
    images = [np.zeros((side, side), np.uint8)] * count
    assert make_grid(images, conditions, None).size == size


@pytest.mark.parametrize(("largest", "tile"), [(400, 200), (399, 199), (20, 16)])
def test_a_wide_sheet_has_smaller_images(
    largest: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "MAX_SIDE", largest)
    sheet = make_grid([np.zeros((200, 200), np.uint8)] * 4, [0] * 4, None)
    assert sheet.width == 2 * (tile + 4) + 4


@pytest.mark.parametrize(
    ("count", "height", "width", "size"),
    [
        # Without a limit, they are 256 pixels wide.
        (1, 2048, 64, (264, 8216)),
        (1, 4096, 16, (40, 8216)),
        (4, 4096, 16, (44, 8236)),
        (400, 512, 256, (5204, 10644)),
        (400, 513, 256, (5184, 10644)),
        (400, 4096, 16, (124, 10644)),
        (2, 9000, 1, (14, 8216)),  # No narrower than a pixel.
    ],
)
def test_high_images_do_not_make_the_sheet_large(
    count: int, height: int, width: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Made(Exception):
        pass

    def made(_: str, size: tuple[int, int], __: object) -> None:
        raise Made(*size)

    monkeypatch.setattr(grid.Image, "new", made)
    image = np.broadcast_to(np.uint8(7), (height, width))
    with pytest.raises(Made) as caught:
        make_grid([image], [0] * count, None)
    assert caught.value.args == size


def test_the_highest_image_is_shown_whole() -> None:
    """It is not cut off, below the line for its label."""
    image = np.zeros((9000, 1, 3), np.uint8)
    image[4500:] = 200
    sheet = np.asarray(make_grid([image], [0], None))
    assert sheet[20 : 20 + 4090, 4].max() < 20
    assert (sheet[20 + 4102 : 20 + 8192, 4] > 180).all()


class Pen:
    """Remembers what is written where."""

    def __init__(self, sheet: Image.Image) -> None:
        self.texts: list[tuple[tuple[int, int], str]] = []
        PENS.append(self)

    def text(self, place: tuple[int, int], text: str, ink: object, font: object) -> None:
        self.texts.append((place, text))


PENS: list[Pen] = []


def labels(
    monkeypatch: pytest.MonkeyPatch, conditions: list[Any], names: list[str] | None
) -> list[tuple[tuple[int, int], str]]:
    monkeypatch.setattr(grid.ImageDraw, "Draw", Pen)
    make_grid([np.zeros((72, 72), np.uint8)] * len(conditions), conditions, names)
    return PENS.pop().texts


def test_every_image_has_its_label_below(monkeypatch: pytest.MonkeyPatch) -> None:
    found = labels(monkeypatch, [7, 0] * 3, ["cat, tabby", "dog"])
    places = [(x, y) for y in (77, 169) for x in (4, 80, 156)]
    assert found == list(zip(places, ["7", "cat"] * 3, strict=True))
    assert [text for _, text in labels(monkeypatch, [2, 1], ["cat", "dog"])] == ["2", "dog"]
    assert [text for _, text in labels(monkeypatch, ["a, b", "c"], ["cat"])] == ["a, b", "c"]
    assert [text for _, text in labels(monkeypatch, [1], None)] == ["1"]


def test_columns_have_their_label_on_top(monkeypatch: pytest.MonkeyPatch) -> None:
    found = labels(monkeypatch, [5, 6, 7] * 2, None)
    assert found == [((4, 4), "5"), ((80, 4), "6"), ((156, 4), "7")]


def test_a_long_label_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    ((_, text),) = labels(monkeypatch, ["a dog " * 9], None)
    font = ImageFont.load_default(11)
    shown = text.removesuffix(".")
    assert ("a dog " * 9).startswith(shown)
    assert font.getlength(text) <= 72 < font.getlength(shown + "a d.")
    assert grid._fitted("www", 1, font) == "."
    assert grid._fitted("abc", int(font.getlength("abc")) + 1, font) == "abc"
    exact = font.getlength("mmmm")
    assert grid._fitted("mmmm", exact, font) == "mmmm"


def test_the_label_of_a_long_prompt_is_one_short_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cutting it letter by letter would take minutes."""
    ((_, text),) = labels(monkeypatch, ["a dog\n and a cat " * 4000], None)
    assert text.startswith("a dog an")
    assert len(text) < 30


class Ruler:
    """A font whose letters have one width; counts how often it measures."""

    def __init__(self) -> None:
        self.calls = 0

    def getlength(self, text: str) -> int:
        self.calls += 1
        return 5 * len(text)


@pytest.mark.parametrize("letters", [2, 3, 17, 256])
def test_a_label_is_measured_a_few_times(letters: int) -> None:
    """A long label took a quarter of a second, and the 400 of a grid more than a minute."""
    text = "abcdefgh" * 32
    for width in (4, 5, 14, 15, 84, 5 * letters - 1, 5 * letters):
        ruler = Ruler()
        fits = min(letters, max(1, width // 5))
        expected = text[:letters] if fits == letters else text[: fits - 1] + "."
        assert grid._fitted(text[:letters], width, ruler) == expected
        assert ruler.calls <= 10


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(1, 30))
def test_the_period_is_the_least_after_which_all_repeats(cycle: list[int], length: int) -> None:
    conditions = (cycle * length)[:length]
    period = grid._period(conditions)
    for each in range(1, length + 1):
        repeats = all(conditions[i] == conditions[i - each] for i in range(each, length))
        assert repeats or each != period
        if repeats:
            assert each >= period
            break


def test_images_are_read_one_by_one() -> None:
    """Four hundred of 2048x2048 pixels take 5 GB."""
    known: list[weakref.ref[Any]] = []

    def images() -> Iterator[Any]:
        for index in range(9):
            assert sum(image() is not None for image in known) <= 3
            image = np.full((72, 72, 3), index, np.uint8)
            known.append(weakref.ref(image))
            yield image
            del image

    sheet = np.asarray(make_grid(images(), [*range(9)], None))
    assert sheet[60, 40::76, 0].tolist() == [*range(9)]


def test_the_widest_image_has_a_line() -> None:
    """Of Harmon's sizes, this one was reduced to a height of 0, which Pillow refuses."""
    sheet = np.asarray(make_grid([np.full((16, 4096, 3), 7, np.uint8)], [0], None))
    assert (sheet == 7).all(axis=-1).sum() == 80


def test_how_images_are_enlarged_and_reduced() -> None:
    """Small ones without interpolation, large ones smoothly; one that is not square stays so."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (24, 24, 3), np.uint8)
    sheet = np.asarray(make_grid([small], [0], None))
    np.testing.assert_array_equal(sheet[20:92, 4:76], small.repeat(3, axis=0).repeat(3, axis=1))
    large = rng.integers(0, 256, (512, 512, 1), np.uint8)
    sheet = np.asarray(make_grid([large], [0], None))[20:276, 4:260]
    smooth = Image.fromarray(large[..., 0]).convert("RGB")
    np.testing.assert_array_equal(sheet, smooth.resize((256, 256), Image.Resampling.LANCZOS))
    same = rng.integers(0, 256, (72, 72, 4), np.uint8)
    sheet = np.asarray(make_grid([same], [0], None))
    np.testing.assert_array_equal(sheet[20:92, 4:76], same[..., :3])
    wide = np.full((72, 144, 3), 9, np.uint8)
    shown = (np.asarray(make_grid([wide], [0], None)) == 9).all(axis=-1)
    assert (shown.any(axis=1).sum(), shown.any(axis=0).sum()) == (36, 72)
