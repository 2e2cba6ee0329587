"""A training run with a time limit that can be interrupted and continued, for every demo model.

The learning rate depends on the time used, not on the number of steps, so a run of `minutes` ends
fully annealed on a machine of any speed.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from disa.errors import DisaError
from disa.files import written_whole

LOG_SECONDS = 30.0
GRADIENT_CLIP = 3.0
WEIGHT_DECAY = 0.02

Loss = Callable[[Tensor], dict[str, Tensor]]
"""Rows of the data [batch] -> named losses, scalars; the first one is minimised."""


@dataclass
class Options:
    """Options of a run.

    Attributes:
        minutes: training time, over all runs that resume each other.
        warmup_steps: steps until the learning rate is highest.
        save_minutes: time between two saved states.
    """

    minutes: float
    batch_size: int
    learning_rate: float
    ema_rate: float = 0.999
    warmup_steps: int = 200
    save_minutes: float = 4.0
    seed: int = 0


class Run:
    """The state of a training.

    Args:
        model: trained in place.
        loss: the losses of rows of the data, by `model`.
        examples: number of rows of the data.
    """

    def __init__(self, model: nn.Module, loss: Loss, examples: int, options: Options) -> None:
        self.model, self.loss, self.options = model, loss, options
        self.examples = examples
        self.parameters = {k: p for k, p in model.named_parameters() if p.requires_grad}
        self.average = {k: p.detach().clone() for k, p in self.parameters.items()}
        # No weight decay for norms, biases and one-dimensional embeddings.
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters.values() if p.ndim > 1]},
            {"params": [p for p in self.parameters.values() if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=0.0, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True
        )
        self.step, self.seconds = 0, 0.0
        self.ticked = time.monotonic()

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        return self.step * self.options.batch_size / self.examples

    def learning_rate(self) -> float:
        """Linear warm-up by steps, then half a cosine down to zero by the clock."""
        warm = min(1.0, (self.step + 1) / self.options.warmup_steps)
        passed = min(1.0, self.seconds / 60 / self.options.minutes)
        return self.options.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * passed))

    def train_step(self, rows: Tensor) -> dict[str, float]:
        """One step on the data's `rows`; the losses."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        losses = self.loss(rows)
        self.optimizer.zero_grad()
        next(iter(losses.values())).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), GRADIENT_CLIP)
        if not torch.isfinite(norm):
            raise DisaError(
                f"the gradient is not finite at step {self.step}: train with a lower learning rate"
            )
        self.optimizer.step()
        self.update_average()
        self.step += 1
        before, self.ticked = self.ticked, time.monotonic()
        self.seconds += self.ticked - before
        return {name: float(value.detach()) for name, value in losses.items()}

    @torch.no_grad()
    def update_average(self) -> None:
        """Update the exponential moving average, which at first decays faster to forget the
        start."""
        rate = min(self.options.ema_rate, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - rate)

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights, by the names of the model's parameters."""
        return {key: value.clone() for key, value in self.average.items()}

    def state(self) -> dict[str, Any]:
        """The state that `resume` needs."""
        return {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }

    def resume(self, path: Path) -> None:
        """Continue from a saved state, with a new seed for random numbers."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for key, value in state["average"].items():
            self.average[key].copy_(value)
        self.step, self.seconds = state["step"], state["seconds"]

    def train(self, work: Path, finish: Callable[["Run"], None]) -> None:
        """Train until the time limit; saves the state to `work` and calls `finish` at intervals.

        Args:
            finish: writes the current model; called at every save and at the end.
        """
        if work.exists():
            self.resume(work)
            click.echo(f"continues at step {self.step} ({work})")
        work.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(self.options.seed + self.step)
        self.ticked = saved = logged = time.monotonic()
        sums: dict[str, float] = {}
        count = 0
        order = torch.empty(0, dtype=torch.int64)
        while self.seconds < self.options.minutes * 60:
            if len(order) < self.options.batch_size:
                order = torch.randperm(self.examples)
            rows, order = order.split([batch := self.options.batch_size, len(order) - batch])
            for name, value in self.train_step(rows).items():
                sums[name] = sums.get(name, 0.0) + value
            count += 1
            now = time.monotonic()
            if self.step == 1 or now - logged > LOG_SECONDS:
                losses = "  ".join(f"{name} {value / count:.4f}" for name, value in sums.items())
                click.echo(
                    f"{self.seconds / 60:6.1f} min  step {self.step:6d}  epoch {self.epoch:6.2f}  "
                    f"{losses}  lr {self.learning_rate():.1e}"
                )
                logged, sums, count = now, {}, 0
            if now - saved > self.options.save_minutes * 60:
                self.save(work, finish)
                saved = now
        self.save(work, finish)

    def save(self, work: Path, finish: Callable[["Run"], None]) -> None:
        """Write the state, then the model."""
        with written_whole(work) as file:
            torch.save(self.state(), file)
        finish(self)
