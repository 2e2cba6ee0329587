from pathlib import Path

import pytest
import torch

from demo import autoencoder
from demo.autoencoder import Autoencoder, Perception, encode_all, rescale
from demo.classifier import Classifier
from disa.exporter.vae.files import open_vae
from disa.exporter.vae.latents import LATENT_SCALE


@pytest.fixture
def model() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder().eval()


def pixels(count: int = 8) -> torch.Tensor:
    return torch.randint(256, (count, 32, 32), generator=torch.manual_seed(1), dtype=torch.uint8)


def as_images(values: torch.Tensor) -> torch.Tensor:
    return values.unsqueeze(1).float() / 127.5 - 1


@torch.no_grad()
def test_rescaling_fixes_the_scale_and_leaves_the_images(model: Autoencoder) -> None:
    images = as_images(pixels())
    before = model.decode(model.encode(images).mean)
    rescale(model, pixels())
    posterior = model.encode(images)
    variance = posterior.mean.var((0, 2, 3)) + posterior.log_variance.exp().mean((0, 2, 3))
    torch.testing.assert_close(variance.sqrt() * LATENT_SCALE, torch.ones(4), rtol=0, atol=0.02)
    torch.testing.assert_close(model.decode(posterior.mean), before, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_file_has_the_official_layout(model: Autoencoder, tmp_path: Path) -> None:
    path = tmp_path / "vae.ckpt"
    autoencoder.save(model, path)
    assert path.stat().st_size < 2_000_000
    latents = encode_all(model, pixels())[0]
    decoder = open_vae(path).build(latent_channels=4, stride=4)
    drawn = decoder(latents * LATENT_SCALE)
    assert drawn.shape == (8, 3, 32, 32)
    for colour in drawn.split(1, dim=1):
        torch.testing.assert_close(colour, model.decode(latents), rtol=0, atol=0.02)


@torch.no_grad()
def test_the_encoder_comes_back(model: Autoencoder, tmp_path: Path) -> None:
    autoencoder.save(model, tmp_path / "vae.ckpt")
    again = autoencoder.load(tmp_path / "vae.ckpt")
    found, expected = (m.encode(as_images(pixels())).mean for m in (again, model))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


def test_a_step_changes_every_weight(model: Autoencoder) -> None:
    perception = Perception(Classifier())
    losses = autoencoder.training_loss(model, perception, as_images(pixels()))
    losses["loss"].backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
    assert not any(parameter.requires_grad for parameter in perception.parameters())


def test_nothing_seen_in_equal_images() -> None:
    perception = Perception(Classifier())
    images = as_images(pixels())
    assert perception(images, images) == 0
    assert perception(images, -images) > 0
