import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disa.errors import DisaError
from disa.runtime.masked import prediction_counts

from ..conftest import GOLDEN


@given(st.integers(1, 600), st.data())
def test_every_iteration_predicts_and_all_tokens_are_predicted(
    tokens: int, data: st.DataObject
) -> None:
    iterations = data.draw(st.integers(1, tokens))
    counts = prediction_counts(tokens, iterations)
    assert len(counts) == iterations
    assert min(counts) >= 1
    assert sum(counts) == tokens


def test_the_official_counts() -> None:
    meta = json.loads(str(np.load(GOLDEN / "mar" / "linear_cfg.npz")["meta"]))
    halves_and_images = 2 * meta["batch"]
    recorded = [step["rows"] // halves_and_images for step in meta["steps"]]
    assert prediction_counts(64, meta["num_iter"]) == recorded


def test_more_iterations_than_tokens_are_refused() -> None:
    with pytest.raises(DisaError, match="at most 16"):
        prediction_counts(16, 17)
