"""What the tests of the families share: random weights, latents and tokens."""

import torch
from torch import nn

from demo.data.latents import Latents

IMAGES, LENGTH, VISIBLE = 3, 16, 5


def random_latents() -> Latents:
    """Latents of three images."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(IMAGES, 4, 8, 8, generator=generator)
    pixels = torch.zeros(IMAGES, 32, 32, dtype=torch.uint8)
    return Latents(mean, 0 * mean, torch.tensor([3, 0, 9]), pixels)


def randomise(model: nn.Module) -> None:
    """Weights as large as trained ones, modulations included."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def random_tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens in generation order, and this order."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(IMAGES, LENGTH, 16, generator=generator)
    order = torch.rand(IMAGES, LENGTH, generator=generator).argsort(1)
    return tokens, order
