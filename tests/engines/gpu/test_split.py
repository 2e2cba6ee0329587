"""Requests that are cut along a dimension, and results that are put together again."""

import numpy as np
import pytest

from disa.engines.gpu.array import Stream
from disa.engines.gpu.profile import Piece
from disa.engines.gpu.split import Splitter
from disa.engines.session import TensorSpec
from disa.errors import InvalidRequest

from .fake_device import FakeDevice

TOKENS = TensorSpec("tokens", "float32", ("visible", "batch", 3))
PREDICTED = TensorSpec("predicted", "int64", ("predicted", "batch"))
SCALE = TensorSpec("scale", "float32", (1,))
PIECES = [Piece(0, 2, 2), Piece(2, 3, 2)]
"""Of a batch of three, the last padded."""


@pytest.fixture
def splitter() -> Splitter:
    return Splitter([TOKENS, PREDICTED, SCALE], "batch")


def test_a_request_is_cut_where_it_has_the_dimension(splitter: Splitter) -> None:
    tokens = np.arange(30).reshape(2, 5, 3)
    cut = splitter.cut_host(TOKENS, tokens, Piece(1, 3, 2))
    np.testing.assert_array_equal(cut, tokens[:, 1:3])
    assert cut.base is not None  # A view.
    steps = np.stack([tokens, -tokens])  # Of two steps.
    np.testing.assert_array_equal(splitter.cut_host(TOKENS, steps, Piece(4, 5, 2)), steps[:, :, 4:])
    scale = np.ones(1)
    assert splitter.cut_host(SCALE, scale, PIECES[0]) is scale
    assert splitter.cut_host(TOKENS, tokens, None) is tokens


def joined(splitter: Splitter, spec: TensorSpec, parts: list[np.ndarray]) -> np.ndarray:
    stream = Stream(FakeDevice())  # type: ignore[arg-type]
    results: dict[str, object] = {}
    for piece, part in zip(PIECES, parts, strict=True):
        source = stream.put(part)
        address = source.address, part.shape, part.dtype
        splitter.place(stream, results, spec, address, piece, 3)
    return np.asarray(results[spec.name])


def test_results_stand_side_by_side(splitter: Splitter) -> None:
    whole = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    spec = TensorSpec("image", "float32", (2, "batch", 4))
    padded = np.concatenate([whole[:, 2:], np.full((2, 1, 4), -1, np.float32)], axis=1)
    np.testing.assert_array_equal(joined(splitter, spec, [whole[:, :2], padded]), whole)


def test_rows_of_tokens_and_images_keep_their_order(splitter: Splitter) -> None:
    """A dimension that no input has is tokens times images, token after token."""
    whole = np.arange(2 * 5 * 3 * 4, dtype=np.float32).reshape(2, 5, 3, 4)
    spec = TensorSpec("condition", "float32", (2, "rows", 4))
    padded = np.concatenate([whole[:, :, 2:], np.full((2, 5, 1, 4), -1, np.float32)], axis=2)
    parts = [np.ascontiguousarray(part).reshape(2, 10, 4) for part in (whole[:, :, :2], padded)]
    np.testing.assert_array_equal(joined(splitter, spec, parts), whole.reshape(2, 15, 4))


def test_rows_that_are_no_multiple_are_refused(splitter: Splitter) -> None:
    spec = TensorSpec("condition", "float32", ("rows", 4))
    with pytest.raises(InvalidRequest, match="not a multiple of 2 batch"):
        joined(splitter, spec, [np.zeros((5, 4), np.float32)] * 2)


def test_what_has_no_such_dimension_is_taken_whole(splitter: Splitter) -> None:
    spec = TensorSpec("table", "float32", ("predicted", 2))
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.testing.assert_array_equal(joined(splitter, spec, [table, table]), table)
    uncut = Splitter([TOKENS], None)
    assert uncut.axis(TOKENS) is None
