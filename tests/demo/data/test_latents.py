"""Images as the distributions of their latents."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from demo import autoencoder
from demo.data.latents import Latents, open_latents
from disa.exporter.vae.latents import LATENT_SCALE

Write = Callable[..., None]


def test_samples_have_the_distribution_of_their_image() -> None:
    torch.manual_seed(0)
    mean = torch.tensor([1.0, -1.0])[:, None, None, None].expand(2, 4, 8, 8)
    latents = Latents(mean, 0.1 * mean.abs(), torch.tensor([3, 4]), torch.zeros(2, 32, 32))
    samples = latents.sample(torch.tensor([1, 0, 1]))
    assert len(latents) == 2
    assert samples.mean((1, 2, 3)).tolist() == pytest.approx([-1, 1, -1], abs=0.02)
    assert samples.std((1, 2, 3)).tolist() == pytest.approx([0.1] * 3, abs=0.02)


def test_latents_are_cached_until_the_weights_change(
    tmp_path: Path, write_split: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []

    def encode_all(_model: object, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        encoded.append(len(images))
        return torch.ones(len(images), 4, 8, 8), torch.zeros(len(images), 4, 8, 8)

    monkeypatch.setattr(autoencoder, "load", lambda path: None)
    monkeypatch.setattr(autoencoder, "encode_all", encode_all)
    write_split(np.zeros((5, 28, 28)), np.arange(5))
    weights, cache = tmp_path / "vae.ckpt", tmp_path / "cache" / "latents.pt"
    weights.touch()
    os.utime(weights, (0, 0))
    for _ in range(2):
        latents = open_latents(weights, tmp_path, cache)
        assert latents.mean.float().unique().item() == pytest.approx(LATENT_SCALE, rel=0.01)
        assert latents.labels.tolist() == list(range(5))
    assert encoded == [5]
    os.utime(cache, (0, 0))
    open_latents(weights, tmp_path, cache)
    assert encoded == [5, 5]
