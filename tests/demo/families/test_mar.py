"""Training MAR computes what the exported graphs compute."""

import numpy as np
import pytest
import torch

from demo.families import mar
from demo.families.diffusion import DiffusionLoss
from disa.exporter.families import mar as mar_graphs

from .weights import IMAGES, VISIBLE, random_latents, random_tokens, randomise


def test_patches_are_row_major() -> None:
    latents = torch.arange(2 * 4 * 8 * 8).view(2, 4, 8, 8)
    tokens = mar.patchify(latents, 2)
    assert tokens.shape == (2, 16, 16)
    assert torch.equal(tokens[1, 1].view(4, 2, 2), latents[1, :, :2, 2:4])


def test_mask_counts_lie_in_the_range() -> None:
    torch.manual_seed(0)
    counts = [mar.masked_count(64, 0.7) for _ in range(2000)]
    assert min(counts) == 45
    assert max(counts) == 64
    # the mean of 1 - 0.25 |n|, cut to 0.7..1
    assert np.mean(counts) / 64 == pytest.approx(0.876, abs=0.01)


@torch.no_grad()
def test_mar_sees_what_a_plan_sees() -> None:
    model = mar.build()
    randomise(model)
    tokens, order = random_tokens()
    labels, dropped = torch.tensor([1, 2, 3]), torch.tensor([False, False, True])
    condition = mar.Training(model, random_latents()).condition(
        tokens[:, :VISIBLE], labels, order, dropped
    )
    found = model.head.cond_embed(condition)
    known, positions = tokens[:, :VISIBLE].transpose(0, 1), order.T
    index = torch.tensor([[1, 2, mar.CONFIG.class_num]])
    expected = mar_graphs.Backbone(model)(known, positions, positions[VISIBLE:], index)
    expected = expected[0].unflatten(0, (-1, IMAGES)).transpose(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_losses_of_a_new_model() -> None:
    torch.manual_seed(0)
    losses = mar.Training(mar.build(), random_latents())(torch.arange(IMAGES))
    # The head's output starts at zero, so its error is the variance of the noise.
    assert losses["error"].item() == pytest.approx(1, abs=0.25)
    losses["loss"].backward()


def test_the_head_loss_is_a_mean_over_all_tokens() -> None:
    torch.manual_seed(0)
    head, diffusion = mar.build().head, DiffusionLoss()
    tokens, condition = torch.randn(2, 3, 16), torch.randn(2, 3, 128)
    assert mar.head_loss(head, diffusion, tokens, condition)["error"].ndim == 0
