"""The demo's KL autoencoder: `python -m demo.autoencoder`.

32x32 pixels to 8x8 latents of 4 channels and back, in the layout of the official KL-16 file
(arXiv 2112.10752): the decoder of `disa.exporter.vae`, with an encoder for training.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import click
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from disa.commands.command import DisaCommand
from disa.exporter.checkpoints.checkpoint import open_checkpoint
from disa.exporter.checkpoints.state_dict import load_strict
from disa.exporter.vae.decoder import (
    Conv2d,
    GroupNorm,
    KLConfig,
    KLDecoder,
    Middle,
    ResnetBlock,
)
from disa.exporter.vae.latents import LATENT_SCALE
from disa.files import written_whole

from .classifier import Classifier
from .classifier import load as load_classifier
from .data import fashion_mnist
from .training import Options, Run

WEIGHTS = Path(__file__).with_name("weights") / "fashion_vae.ckpt"
CONFIG = KLConfig(
    latent_channels=4, inner_channels=4, channels=(32, 32, 64), res_blocks=2, out_channels=1
)
COLOURS = 3
"""Channels of images in the file, which are all equal: the official layout is for colour."""
KL_WEIGHT = 2e-4
PERCEPTUAL_WEIGHT = 0.1
LOUDEST_LOG_VARIANCE = 20.0
_COMPARED = (2, 5, 8)
"""Layers of the classifier's body whose activations are compared."""


class Downsample(nn.Module):
    """Halves the sides, padded at the right and the bottom as in the official model."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [batch, channels, h, w] -> [batch, channels, h / 2, w / 2]."""
        result: Tensor = self.conv(F.pad(x, (0, 1, 0, 1))).float()
        return result


class Level(nn.Module):
    """The residual blocks of one resolution, and the downsampling to the next coarser one."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, last: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (blocks - 1)
        self.block = nn.ModuleList(ResnetBlock(width, out_channels) for width in widths)
        self.downsample: nn.Module = nn.Identity() if last else Downsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        result: Tensor = self.downsample(x)
        return result


class Encoder(nn.Module):
    """Maps an image to mean and log-variance; levels are numbered from the finest."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        widths, last = config.channels, len(config.channels) - 1
        self.conv_in = Conv2d(config.out_channels, widths[0], 3)
        self.down = nn.ModuleList(
            # One block fewer than in the decoder, as in the official model.
            Level(widths[max(n - 1, 0)], width, config.res_blocks - 1, last=n == last)
            for n, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1])
        self.norm_out = GroupNorm(widths[-1])
        self.conv_out = Conv2d(widths[-1], 2 * config.inner_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        result: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        return result


@dataclass(frozen=True)
class Posterior:
    """A normal distribution of latents, each [batch, channels, h, w]."""

    mean: Tensor
    log_variance: Tensor

    def sample(self) -> Tensor:
        """Random latents of this distribution."""
        return self.mean + (0.5 * self.log_variance).exp() * torch.randn_like(self.mean)

    def divergence(self) -> Tensor:
        """KL divergence from the standard normal distribution in nats a number, a scalar."""
        terms = self.mean.square() + self.log_variance.exp() - 1 - self.log_variance
        return 0.5 * terms.mean()


class Autoencoder(KLDecoder):
    """Encoder and decoder, with the keys of the official file."""

    def __init__(self, config: KLConfig = CONFIG) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.quant_conv = Conv2d(2 * config.inner_channels, 2 * config.latent_channels, 1)

    def encode(self, images: Tensor) -> Posterior:
        """Images [batch, channels, H, W] in -1..1 to their latents, before the latent scale."""
        mean, log_variance = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        return Posterior(mean, log_variance.clamp(-LOUDEST_LOG_VARIANCE, LOUDEST_LOG_VARIANCE))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents before the latent scale to images."""
        result: Tensor = self.decoder(self.post_quant_conv(latents))
        return result


class Perception(nn.Module):
    """The difference between two images in the first layers of the demo's classifier.

    Its last layer, in which the evaluation measures distances, is not used.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.layers = nn.ModuleList(list(classifier.body)[: max(_COMPARED) + 1])
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Mean squared difference of the activations, a scalar."""
        x, total = torch.cat([images, others]), images.new_zeros(())
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in _COMPARED:
                total = total + F.mse_loss(*x.float().chunk(2))
        return total


def training_loss(model: Autoencoder, perception: Perception, images: Tensor) -> dict[str, Tensor]:
    """Losses of images [batch, 1, H, W] in -1..1; a random half of them is mirrored."""
    mirrored = torch.rand(len(images)) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.encode(images)
        decoded = model.decode(posterior.sample())
        seen = perception(images, decoded)
    error = F.mse_loss(decoded, images) + 0.1 * F.l1_loss(decoded, images)
    divergence = posterior.divergence()
    total = error + PERCEPTUAL_WEIGHT * seen + KL_WEIGHT * divergence
    return {"loss": total, "error": error, "seen": seen, "kl": divergence}


@torch.inference_mode()
def encode_all(model: Autoencoder, images: Tensor, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of byte images [n, H, W], each [n, channels, h, w]."""
    with torch.autocast("cpu", torch.bfloat16):
        found = [
            model.encode(part.unsqueeze(1).float() / 127.5 - 1) for part in images.split(batch_size)
        ]
    return torch.cat([p.mean for p in found]), torch.cat([p.log_variance for p in found])


@torch.no_grad()
def rescale(model: Autoencoder, images: Tensor) -> None:
    """Change the 1x1 convolutions so that latents have mean 0 and deviation 1 / LATENT_SCALE.

    Afterwards the models' fixed scale is correct for these latents. The images do not change.
    """
    mean, log_variance = encode_all(model, images)
    variance = mean.var((0, 2, 3)) + log_variance.exp().mean((0, 2, 3))
    shift, factor = mean.mean((0, 2, 3)), 1 / (LATENT_SCALE * variance.sqrt())
    channels, enter, leave = len(shift), model.quant_conv, cast(Conv2d, model.post_quant_conv)
    assert enter.bias is not None
    assert leave.bias is not None
    enter.weight[:channels] *= factor[:, None, None, None]
    enter.bias[:channels] = (enter.bias[:channels] - shift) * factor
    enter.bias[channels:] += 2 * factor.log()
    leave.bias += leave.weight[:, :, 0, 0] @ shift
    leave.weight /= factor[:, None, None]


def coloured(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the weights of a grey autoencoder to those of one with three equal colours."""
    result = dict(state)
    first, last = "encoder.conv_in.weight", "decoder.conv_out"
    result[first] = state[first].repeat(1, COLOURS, 1, 1) / COLOURS
    for part in ("weight", "bias"):
        name = f"{last}.{part}"
        result[name] = state[name].repeat(COLOURS, *[1] * (state[name].ndim - 1))
    return result


def grey(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `coloured`."""
    result = dict(state)
    first, last = "encoder.conv_in.weight", "decoder.conv_out"
    result[first] = state[first].sum(1, keepdim=True)
    for part in ("weight", "bias"):
        result[f"{last}.{part}"] = state[f"{last}.{part}"][:1]
    return result


def load(path: Path = WEIGHTS) -> Autoencoder:
    """The trained autoencoder, for grey images [batch, 1, 32, 32]."""
    state = {key: value.float() for key, value in open_checkpoint(path).state.items()}
    model = Autoencoder()
    load_strict(model, grey(state), where=path)
    return model.eval().requires_grad_(False)


def save(model: Autoencoder, path: Path) -> None:
    """Write the autoencoder in the official layout, as fp16."""
    state = {key: value.half() for key, value in coloured(model.state_dict()).items()}
    with written_whole(path) as file:
        torch.save({"model": state}, file)


@click.command(cls=DisaCommand)
@click.option("--minutes", default=10.0, show_default=True, help="Training time, over all runs.")
@click.option("--batch-size", default=64, show_default=True)
@click.option("--lr", default=2e-3, show_default=True, help="Highest learning rate.")
@click.option("--threads", default=0, help="CPU threads; 0 lets PyTorch choose.")
@click.option("--data", type=click.Path(path_type=Path), default=fashion_mnist.FOLDER)
@click.option("--work", type=click.Path(path_type=Path), default=Path("outputs/train-demo/vae.pt"))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=WEIGHTS)
def main(
    minutes: float, batch_size: int, lr: float, threads: int, data: Path, work: Path, output: Path
) -> None:
    """Train the autoencoder on Fashion-MNIST."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Autoencoder()
    perception = Perception(load_classifier())
    pixels = torch.from_numpy(fashion_mnist.load("train", data)[0].copy())

    def loss(rows: Tensor) -> dict[str, Tensor]:
        return training_loss(model, perception, pixels[rows].unsqueeze(1).float() / 127.5 - 1)

    def finish(run: Run) -> None:
        final = Autoencoder()
        final.load_state_dict(run.averaged())
        rescale(final, pixels[:5000])
        save(final, output)

    options = Options(minutes, batch_size, lr, ema_rate=0.998)
    Run(model, loss, len(pixels), options).train(work, finish)
    click.echo(f"written: {output}")


if __name__ == "__main__":
    main()
