import numpy as np
import pytest
import torch

from disa.errors import DisaError
from disa.evaluation.inception_score import InceptionScoreSum


def test_the_score_is_that_of_torch_fidelity() -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = np.random.default_rng(0).normal(0, 3, (137, 20)).astype(np.float32)
    expected = isc_features_to_metric(torch.from_numpy(logits))
    score = InceptionScoreSum(137)
    for start in range(0, 137, 10):
        score.add(logits[start : start + 10])
    assert score.score() == pytest.approx(tuple(expected.values()), rel=1e-9)


def test_a_score_needs_an_image_in_each_split() -> None:
    with pytest.raises(DisaError, match="at least 10 images, not 9"):
        InceptionScoreSum(9)
