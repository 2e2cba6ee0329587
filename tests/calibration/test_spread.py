"""Classes of measured images."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from disa.calibration.spread import spread_classes


@given(st.integers(1, 1500))
def test_all_classes_occur_before_one_is_repeated(classes: int) -> None:
    assert sorted(spread_classes(classes, classes)) == list(range(classes))


def test_few_images_have_classes_from_the_whole_range() -> None:
    chosen = sorted(spread_classes(1000, 16))
    assert chosen[0] < 100
    assert chosen[-1] > 900
    assert max(after - before for before, after in pairwise(chosen)) < 200
