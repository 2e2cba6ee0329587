import pytest
from hypothesis import given
from hypothesis import strategies as st

from disa.engines.gpu.profile import (
    Piece,
    Range,
    dimension_ranges,
    dimensions,
    graph_profile,
    pieces,
    rung,
)
from disa.engines.session import TensorSpec
from disa.errors import DisaError

from ..tensorrt.graphs import HEAD_INPUTS


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("1:8:64", (1, 8, 64)), ("8", (1, 8, 8)), ("2:2:2", (2, 2, 2)), ("1", (1, 1, 1))],
)
def test_batch_sizes(text: str, wanted: tuple[int, int, int]) -> None:
    assert Range.parse(text) == Range(*wanted)


@pytest.mark.parametrize("text", ["", "8:1:64", "a", "1:2", "1:2:3:4", "0:1:2", "-1", "1:8:4", "0"])
def test_wrong_batch_sizes(text: str) -> None:
    with pytest.raises(DisaError, match=r"batch size|not a range"):
        Range.parse(text)


def test_dimensions_of_mar() -> None:
    tokens = {"count": 256, "dimensions": {"visible": [0, 128, 256], "predicted": [1, 256]}}
    ranges = dimensions(tokens, {"num_iterations": 64}, Range(1, 8, 64))
    assert ranges["visible"] == Range(0, 128, 256)
    assert ranges["predicted"] == Range(1, 5, 256)
    assert ranges["guidance"] == Range(1, 2, 2)
    assert ranges["rows"] == Range(1, 40, 2048)
    assert ranges["steps"].maximum >= max(1000, sum(range(5, 51)))


def test_few_tokens_need_few_rows() -> None:
    assert dimensions({"count": 16}, {}, Range(1, 2, 4))["rows"].maximum == 64


def test_a_family_gives_its_own_dimensions() -> None:
    tokens = {"count": 4, "dimensions": {"prompt": [1, 32, 128], "visible": [0, 1, 3]}}
    ranges = dimensions(tokens, {}, Range(1, 1, 1))
    assert (ranges["prompt"], ranges["visible"]) == (Range(1, 32, 128), Range(0, 1, 3))


def test_a_manifest_that_says_nothing() -> None:
    with pytest.raises(DisaError, match="how many tokens"):
        dimensions({}, {}, Range(1, 1, 1))
    for strange in (
        7,
        {"prompt": 7},
        {"prompt": [1]},
        {"prompt": [1, None, 2]},
        {"prompt": ["1", "2", "3"]},
    ):
        with pytest.raises(DisaError, match="range"):
            dimensions({"count": 4, "dimensions": strange}, {}, Range(1, 1, 1))
    with pytest.raises(DisaError, match="dimension prompt"):
        graph_profile("g", [TensorSpec("p", "int64", ("prompt",))], {})


def test_profiles_and_back() -> None:
    ranges = dimensions({"count": 16}, {}, Range(1, 2, 4))
    profile = graph_profile("head", HEAD_INPUTS, ranges)
    assert profile["condition"].minimum == (1, 1, 8)
    assert profile["condition"].maximum == (2, 64, 8)
    assert profile["coefficients"].usual == (50, 5)
    found = dimension_ranges(HEAD_INPUTS, profile)
    assert found == {name: ranges[name] for name in ("rows", "guidance", "steps")}


@given(st.integers(1, 10_000))
def test_rungs_have_room_and_little_of_it(rows: int) -> None:
    padded = rung(rows)
    assert padded >= rows
    assert rung(padded) == padded
    assert padded <= 2 * rows if rows <= 8 else padded <= 1.8 * rows
    assert rows < 256 or padded <= 1.5 * rows


def test_the_ladder_is_small() -> None:
    assert len({rung(rows) for rows in range(1, 449)}) == 19


@given(st.integers(1, 500), st.integers(1, 20), st.integers(0, 100), st.booleans())
def test_pieces_cover_all_and_fit(size: int, low: int, more: int, ladder: bool) -> None:
    allowed = Range(low, low, low + more)
    cut = pieces(size, allowed, ladder)
    assert [row for p in cut for row in range(p.start, p.stop)] == list(range(size))
    for piece in cut:
        assert piece.count <= piece.size
        assert allowed.minimum <= piece.size <= allowed.maximum


def test_pieces_are_equal() -> None:
    assert pieces(9, Range(1, 2, 4)) == [Piece(0, 3, 3), Piece(3, 6, 3), Piece(6, 9, 3)]
