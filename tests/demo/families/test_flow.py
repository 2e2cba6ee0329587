"""Labels, times and velocities in the training of flow models."""

import pytest
import torch
from torch import Tensor

from demo.families import flow


def test_some_labels_are_dropped() -> None:
    labels = flow.drop_labels(torch.zeros(4000, dtype=torch.int64), 10)
    assert set(labels.tolist()) == {0, 10}
    assert (labels == 10).float().mean().item() == pytest.approx(flow.LABEL_DROP, abs=0.02)


def line(x: Tensor, noise: Tensor, time: float) -> Tensor:
    return flow.on_the_line(x, noise, torch.tensor(time))


def test_the_velocity_leads_from_noise_to_data() -> None:
    x, noise = torch.randn(2, 3, 5, 4)
    assert torch.equal(line(x, noise, 0.0), x)
    assert torch.equal(line(x, noise, 1.0), noise)
    moved = (line(x, noise, 0.75) - line(x, noise, 0.25)) / 0.5
    assert flow.velocity_error(moved, x, noise).max() < 1e-10
