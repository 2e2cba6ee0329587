"""Fashion-MNIST as latents of the demo's autoencoder, in memory."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from disa.exporter.vae.latents import LATENT_SCALE
from disa.files import written_whole

from .. import autoencoder
from . import fashion_mnist


@dataclass(frozen=True)
class Latents:
    """Images as the distributions of their latents.

    Attributes:
        mean, deviation: of the latents times the models' scale, [n, channels, h, w] in bf16.
        labels: class of each image, [n].
        pixels: the images, bytes [n, H, W].
    """

    mean: Tensor
    deviation: Tensor
    labels: Tensor
    pixels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, rows: Tensor) -> Tensor:
        """Random latents of the images `rows`, [batch, channels, h, w]."""
        mean, deviation = self.mean[rows].float(), self.deviation[rows].float()
        return mean + deviation * torch.randn_like(mean)


def open_latents(weights: Path, data: Path, cache: Path) -> Latents:
    """The training images as latents.

    Args:
        weights: the autoencoder.
        data: folder of the images.
        cache: file of the latents; made again if `weights` is newer.
    """
    pixels, classes = fashion_mnist.load("train", data)
    images, labels = torch.from_numpy(pixels.copy()), torch.from_numpy(classes)
    if cache.exists() and cache.stat().st_mtime > weights.stat().st_mtime:
        return Latents(**torch.load(cache, weights_only=True), labels=labels, pixels=images)
    model = autoencoder.load(weights)
    mean, log_variance = autoencoder.encode_all(model, images)
    encoded = {
        "mean": (mean * LATENT_SCALE).bfloat16(),
        "deviation": ((0.5 * log_variance).exp() * LATENT_SCALE).bfloat16(),
    }
    cache.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(cache) as file:
        torch.save(encoded, file)
    return Latents(**encoded, labels=labels, pixels=images)
