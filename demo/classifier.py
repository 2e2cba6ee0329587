"""A small classifier of Fashion-MNIST that evaluates generated images: `python -m demo.classifier`.

Its classes show whether an image has the requested class, and its last hidden layer is the feature
space of the Fréchet distance.
"""

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from disa.commands.command import DisaCommand
from disa.errors import DisaError
from disa.files import written_whole

from .data import fashion_mnist

WEIGHTS = Path(__file__).with_name("classifier.pt")
FEATURES = 64


class Classifier(nn.Module):
    """Five convolutions, pooled to 64 features, then the classes."""

    def __init__(self, classes: int = len(fashion_mnist.CLASS_NAMES)) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(1, 24),
            *_convolution(24, 24, stride=2),
            *_convolution(24, 48),
            *_convolution(48, 48, stride=2),
            *_convolution(48, 64),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * 64, FEATURES),
        )
        self.classes = nn.Linear(FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        """Images [batch, 1, 32, 32] in -1..1 to [batch, 64]."""
        result: Tensor = self.body(images)
        return result

    def forward(self, images: Tensor) -> Tensor:
        """Images to logits [batch, classes]."""
        result: Tensor = self.classes(F.relu(self.features(images)))
        return result


def _convolution(channels: int, out: int, stride: int = 1) -> Iterator[nn.Module]:
    yield nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
    yield nn.BatchNorm2d(out)
    yield nn.ReLU()


def load(path: Path = WEIGHTS) -> Classifier:
    """Load the trained classifier.

    Raises:
        DisaError: there is no such file.
    """
    model = Classifier()
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError as error:
        raise DisaError(f"{path} does not exist: run `python -m demo.classifier`") from error
    return model.eval()


@torch.inference_mode()
def classify(
    model: Classifier, images: npt.NDArray[np.uint8], batch_size: int = 500
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Compute features [n, 64] and predicted classes [n] of byte images [n, 32, 32]."""
    features, classes = [], []
    for start in range(0, len(images), batch_size):
        pixels = fashion_mnist.to_model(images[start : start + batch_size])
        hidden = model.features(torch.from_numpy(pixels).unsqueeze(1))
        features.append(hidden.numpy())
        classes.append(model.classes(F.relu(hidden)).argmax(1).numpy())
    return np.concatenate(features), np.concatenate(classes)


def train(
    model: Classifier,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    epochs: int,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
) -> Iterator[float]:
    """Train in place; yields the mean loss of every epoch."""
    pixels = torch.from_numpy(fashion_mnist.to_model(images)).unsqueeze(1)
    targets = torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=epochs * -(-len(images) // batch_size)
    )
    model.train()
    for _ in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(images)).split(batch_size):
            batch = pixels[rows]
            mirrored = torch.rand(len(rows)) < 0.5
            batch = torch.where(mirrored[:, None, None, None], batch.flip(3), batch)
            loss = F.cross_entropy(model(batch), targets[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        yield total / len(images)
    model.eval()


@click.command(cls=DisaCommand)
@click.option("--epochs", default=6, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--data", type=click.Path(path_type=Path), default=fashion_mnist.FOLDER)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=WEIGHTS)
def main(epochs: int, seed: int, data: Path, output: Path) -> None:
    """Train the classifier that evaluates generated images."""
    torch.manual_seed(seed)
    model = Classifier()
    images, labels = fashion_mnist.load("train", data)
    test_images, test_labels = fashion_mnist.load("t10k", data)
    for epoch, loss in enumerate(train(model, images, labels, epochs)):
        click.echo(f"epoch {epoch + 1} of {epochs}: loss {loss:.3f}")
    _, classes = classify(model, test_images)
    with written_whole(output) as file:
        torch.save(model.state_dict(), file)
    accuracy = float((classes == test_labels).mean())
    click.echo(f"{output}: {accuracy:.2%} of the test images are classified correctly")


if __name__ == "__main__":
    main()
