import numpy as np
import pytest

from disa.runtime.outputs.grid import LABEL_HEIGHT, MARGIN, make_grid


@pytest.mark.parametrize("count", [1, 2, 3, 64])
@pytest.mark.parametrize("side", [8, 32, 256])
def test_every_image_is_on_the_sheet(count: int, side: int) -> None:
    images = [np.full((side, side, 3), 100 + index, np.uint8) for index in range(count)]
    sheet = np.asarray(make_grid(images, [index % 10 for index in range(count)], None))
    for index in range(count):
        same = (sheet == 100 + index).all(axis=-1)
        assert same.sum() >= min(side, 72) ** 2


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
