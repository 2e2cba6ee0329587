"""Train the demo model: `python -m demo.train`.

The learning rate follows the clock, not the step count, so a run of `--minutes` ends annealed
however slow or busy the machine is. A run that was stopped goes on with the same command.

On a CPU, one process a core with averaged gradients is faster than one process of many threads,
above all when the cores are shared: `torchrun --nproc-per-node 2 -m demo.train --threads 1`.
"""

import argparse
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed as dist
from torch import Tensor

from disa.cli import DisaCommand
from disa.errors import DisaError
from disa.exporter.mar import MAR
from disa.exporter.mar_config import Config
from disa.files import written_whole

from . import fashion_mnist
from .model import CONFIG, TrainingMAR, initialise, masked_count, patchify

CHECKPOINT = Path(__file__).with_name("fashion_mar.pth")
LABEL_DROP = 0.1
LOWEST_MASK_RATIO = 0.7
GRADIENT_CLIP = 3.0
WEIGHT_DECAY = 0.02


@dataclass
class Options:
    """What a run is asked for."""

    minutes: float
    batch_size: int
    learning_rate: float
    ema_rate: float
    warmup_steps: int
    seed: int


class Run:
    """Everything that changes while training, so that it can be stopped and resumed."""

    def __init__(self, options: Options, device: torch.device, config: Config = CONFIG) -> None:
        torch.manual_seed(options.seed)
        self.options, self.device = options, device
        self.model = MAR(config)
        initialise(self.model)
        self.training = TrainingMAR(self.model).to(device)
        self.parameters = dict(self.model.named_parameters())
        self.average = {k: p.detach().clone() for k, p in self.parameters.items()}
        # Norms, biases and embeddings of one dimension are not decayed.
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters.values() if p.ndim > 1]},
            {"params": [p for p in self.parameters.values() if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=0.0, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True
        )
        # Mask counts are the same in all processes, so that none waits for another.
        self.generator = torch.Generator()
        self.step, self.images, self.seconds = 0, 0, 0.0
        self.ticked = time.monotonic()
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.processes = dist.get_world_size() if dist.is_initialized() else 1
        self.seed()

    def seed(self) -> None:
        """Start the random draws, another sequence in every process and after every resumption."""
        torch.manual_seed((self.options.seed + self.step) * 1000 + self.rank)
        self.generator.manual_seed(self.options.seed + self.step)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "images": self.images,
            "seconds": self.seconds,
        }

    def resume(self, path: Path) -> None:
        """Go on from a saved state. Random draws go on with a seed of their own."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for key, value in state["average"].items():
            self.average[key].copy_(value)
        self.step, self.images, self.seconds = state["step"], state["images"], state["seconds"]
        self.seed()

    def learning_rate(self) -> float:
        """Linear warm-up by steps, then half a cosine down to zero by the clock."""
        warm = min(1.0, (self.step + 1) / self.options.warmup_steps)
        passed = min(1.0, self.seconds / 60 / self.options.minutes)
        return self.options.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * passed))

    def train_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step on images [batch, 1, H, W] in -1..1; squared error and bound, [2]."""
        config, batch = self.model.config, len(images)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        tokens = patchify(images, config.patch_size).to(self.device)
        order = torch.rand(batch, config.tokens).argsort(1).to(self.device)
        dropped = (torch.rand(batch) < LABEL_DROP).to(self.device)
        masked = masked_count(config.tokens, LOWEST_MASK_RATIO, self.generator)
        with torch.autocast(self.device.type, torch.bfloat16):
            error, bound = self.training(
                tokens, labels.to(self.device), order, config.tokens - masked, dropped
            )
        self.optimizer.zero_grad()
        (error + bound).backward()
        losses = torch.stack([error.detach(), bound.detach()])
        seconds = self.average_over_processes(losses, self.tick())
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_CLIP)
        if not torch.isfinite(norm):
            raise DisaError(f"the gradient is not finite at step {self.step}: lower --lr")
        self.optimizer.step()
        self.update_average()
        self.step, self.images = self.step + 1, self.images + batch * self.processes
        self.seconds += seconds
        return losses

    def tick(self) -> float:
        """Seconds since the last tick, so that the sum of all is the time of the run."""
        before, self.ticked = self.ticked, time.monotonic()
        return self.ticked - before

    def average_over_processes(self, losses: Tensor, seconds: float) -> float:
        """Average gradients and `losses` in place; the average of `seconds` is returned.

        The clock is averaged too: it sets the learning rate, which must not differ.
        """
        if self.processes == 1:
            return seconds
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        clock = torch.tensor([seconds], device=self.device)
        parts = [*gradients, losses, clock]
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(flat)
        flat /= self.processes
        for part, mean in zip(parts, flat.split([p.numel() for p in parts]), strict=True):
            part.copy_(mean.view_as(part))
        return float(clock)

    @torch.no_grad()
    def update_average(self) -> None:
        """Exponential moving average; early on it forgets faster, so that the start leaves it."""
        rate = min(self.options.ema_rate, (1 + self.step) / (10 + self.step))
        average = [self.average[key] for key in self.parameters]
        torch._foreach_lerp_(average, list(self.parameters.values()), 1 - rate)

    def checkpoint(self, epoch: int) -> dict[str, Any]:
        """The averaged weights in the layout of the official training checkpoints."""
        weights = {key: value.clone().cpu() for key, value in self.average.items()}
        options = self.options
        args = argparse.Namespace(
            model="mar_demo",
            **asdict(self.model.config),
            class_names=list(fashion_mnist.CLASS_NAMES),
            label_drop_prob=LABEL_DROP,
            mask_ratio_min=LOWEST_MASK_RATIO,
            grad_clip=GRADIENT_CLIP,
            weight_decay=WEIGHT_DECAY,
            lr=options.learning_rate,
            ema_rate=options.ema_rate,
            batch_size=options.batch_size,
            seed=options.seed,
            diffusion_batch_mul=1,
        )
        # The same tensors under both names: torch.save stores them once.
        return {
            "model": weights,
            "model_ema": weights,
            "optimizer": {},
            "epoch": epoch,
            "args": args,
        }


def batches(
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    generator: torch.Generator,
    rank: int = 0,
    processes: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless shuffled batches of images [batch, 1, H, W] in -1..1 and their labels.

    Each of several processes gets its share of every batch. Incomplete batches are left out.
    """
    while True:
        order = torch.randperm(len(images), generator=generator)
        for rows in order[: len(order) // batch_size * batch_size].split(batch_size):
            rows = rows[rank::processes]
            yield images[rows].unsqueeze(1).float() / 127.5 - 1, labels[rows]


def save(content: dict[str, Any], path: Path) -> None:
    with written_whole(path) as file:
        torch.save(content, file)


def train(run: Run, data: Path, work: Path, output: Path, save_minutes: float) -> None:
    """Train until the time is up; writes `work`/state.pt and `output` again and again."""
    pixels, classes = fashion_mnist.load("train", data)
    images, labels = torch.from_numpy(pixels.copy()), torch.from_numpy(classes)
    order = torch.Generator().manual_seed(run.options.seed + run.step)
    feed = batches(images, labels, run.options.batch_size, order, run.rank, run.processes)
    saved = logged = time.monotonic()
    sums, count = torch.zeros(2), 0
    while run.seconds < run.options.minutes * 60:
        sums += run.train_step(*next(feed)).cpu()
        count += 1
        if run.rank:
            continue
        if run.step == 1 or time.monotonic() - logged > 30:
            error, bound = (sums / count).tolist()
            click.echo(
                f"{run.seconds / 60:6.1f} min  step {run.step:6d}  epoch "
                f"{run.images / len(images):5.2f}  error {error:.4f}  bound {bound:.4f}  "
                f"lr {run.learning_rate():.1e}"
            )
            logged = time.monotonic()
            sums, count = torch.zeros(2), 0
        if time.monotonic() - saved > save_minutes * 60:
            finish(run, len(images), work, output)
            saved = time.monotonic()
    if run.rank == 0:
        finish(run, len(images), work, output)


def finish(run: Run, epoch_images: int, work: Path, output: Path) -> None:
    save(run.state(), work / "state.pt")
    save(run.checkpoint(run.images // epoch_images), output)


@click.command(cls=DisaCommand)
@click.option("--minutes", default=75.0, show_default=True, help="Training time, over all runs.")
@click.option("--batch-size", default=128, show_default=True)
@click.option("--lr", default=1.5e-3, show_default=True, help="Highest learning rate.")
@click.option("--ema-rate", default=0.999, show_default=True)
@click.option("--warmup-steps", default=200, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 lets PyTorch choose.")
@click.option("--device", default=None, help="cuda or cpu; the GPU if there is one.")
@click.option("--save-minutes", default=5.0, show_default=True)
@click.option("--data", type=click.Path(path_type=Path), default=fashion_mnist.FOLDER)
@click.option("--work", type=click.Path(path_type=Path), default=Path("outputs/train-demo"))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=CHECKPOINT)
def main(
    minutes: float,
    batch_size: int,
    lr: float,
    ema_rate: float,
    warmup_steps: int,
    seed: int,
    threads: int,
    device: str | None,
    save_minutes: float,
    data: Path,
    work: Path,
    output: Path,
) -> None:
    """Train the demo's MAR on Fashion-MNIST."""
    if threads:
        torch.set_num_threads(threads)
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo" if name == "cpu" else "nccl")
    options = Options(minutes, batch_size, lr, ema_rate, warmup_steps, seed)
    run = Run(options, torch.device(name))
    work.mkdir(parents=True, exist_ok=True)
    if (work / "state.pt").exists():
        run.resume(work / "state.pt")
        click.echo(f"goes on at step {run.step} ({work / 'state.pt'})")
    train(run, data, work, output, save_minutes)


if __name__ == "__main__":
    main()
