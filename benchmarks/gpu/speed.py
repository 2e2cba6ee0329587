"""Measures eager PyTorch, torch.compile and the engines, and computes the floor."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disa.bench.work import count_work
from disa.engines.gpu.profile import Range
from disa.engines.plan.traits import Role
from disa.exporter.families.configs.mar import MARConfig
from disa.runtime.families.masked.partition import prediction_counts
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampling.sampler import SamplerName, StepTable, step_table
from disa.runtime.sampling.schedule import AnnealedSchedule

from ..gpu_check import random_plan
from ..official.contenders import session_of
from ..official.mar import OfficialMAR
from ..random_plan import config_of, write_plan
from .parity import head_arrays, switch_graphs, with_engines

HEAD_STEPS = 20


@dataclass(frozen=True)
class Speed:
    """The speed of a model size.

    Attributes:
        size: name of the size.
        batch: images generated together.
        way: "eager", "compile", or an engine.
        description: the engine or the version that really ran.
        seconds_per_image: seconds.
        head_step_ms: milliseconds of a denoising step of the head.
        runs: number of measured runs.
        plain_head_step_ms: the same without CUDA graphs, if they can be turned off.
    """

    size: str
    batch: int
    way: str
    description: str
    seconds_per_image: float
    head_step_ms: float
    runs: int
    plain_head_step_ms: float | None = None


@dataclass(frozen=True)
class Machine:
    """Memory bandwidth and matmul rate of the GPU, measured with PyTorch."""

    bytes_per_second: float
    flops: float


class Timer:
    """Measures time on a device, and the time left for the check."""

    def __init__(self, device: str, minutes: float) -> None:
        self.device = device
        self.end = time.perf_counter() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds until the check should end."""
        return self.end - time.perf_counter()

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(
        self, work: Callable[[], object], most: int = 3, warm: Callable[[], object] | None = None
    ) -> tuple[float, int]:
        """Measure `work` after a warm-up.

        Args:
            most: largest number of runs; no run starts after about 15 seconds.
            warm: the warm-up; by default one run of `work`.

        Returns:
            The median in seconds, and the number of runs.
        """
        (warm or work)()
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < most and (not times or time.perf_counter() - began < 15):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - started)
        return statistics.median(times), len(times)


def measure_machine(timer: Timer) -> Machine:
    """Measure the bandwidth of a large copy (bytes read and written) and the rate of a matmul."""
    size = 2**28 if timer.device == "cuda" else 2**22
    source = torch.empty(size, device=timer.device).normal_()
    target = torch.empty_like(source)
    copied, _ = timer.seconds(lambda: target.copy_(source), most=10)
    side = 8192 if timer.device == "cuda" else 256
    dtype = torch.float16 if timer.device == "cuda" else torch.float32
    matrix = torch.randn(side, side, device=timer.device).to(dtype)
    result = torch.empty_like(matrix)
    multiplied, _ = timer.seconds(lambda: torch.mm(matrix, matrix, out=result), most=10)
    return Machine(2 * source.nbytes / copied, 2 * side**3 / multiplied)


def schedule(iterations: int) -> list[int]:
    """Denoising steps of every AR iteration, annealed from 50 to 5."""
    annealed = AnnealedSchedule(50, 5)
    return [annealed.steps(index, iterations) for index in range(iterations)]


def usual_count(config: MARConfig, iterations: int) -> int:
    """Mean number of tokens that an iteration predicts."""
    return max(1, round(config.tokens / iterations))


class Eager:
    """PyTorch as in the original code: autocast, 2N rows, the condition embedded in every step.

    Args:
        compiled: whether head and transformer blocks go through torch.compile.
    """

    def __init__(self, config: MARConfig, timer: Timer, compiled: bool = False) -> None:
        self.config, self.timer = config, timer
        # Initialising a billion weights on the host takes half a minute.
        with torch.device(timer.device):
            self.model = OfficialMAR(config).eval().requires_grad_(False)
        for parameter in self.model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        if compiled:
            self.model.compile_parts()

    def speed(self, size: str, batch: int, iterations: int) -> Speed:
        """Measure the model."""
        iterations = min(iterations, self.config.tokens)
        tables = [step_table(SamplerName.DDPM, steps) for steps in schedule(iterations)]
        device, kind = self.timer.device, torch.float16
        if device == "cpu":
            kind = torch.bfloat16
        rows = batch * usual_count(self.config, iterations)
        with torch.device(device), torch.autocast(device, kind), torch.inference_mode():
            z = torch.randn(2 * rows, self.config.decoder_embed_dim)
            table = step_table(SamplerName.DDPM, HEAD_STEPS)
            # A whole image takes many seconds, and a few of its iterations suffice as a warm-up.
            image, runs = self.timer.seconds(
                lambda: self._image(batch, tables),
                most=1,
                warm=lambda: self._image(batch, tables[:: max(1, len(tables) // 4)]),
            )
            head, _ = self.timer.seconds(lambda: self._sample(z, table, rows))
        compiled = self.model.compiled
        way, name = ("compile", "torch.compile") if compiled else ("eager", "eager PyTorch")
        name = f"{name} {torch.__version__}, autocast {str(kind).removeprefix('torch.')}"
        return Speed(size, batch, way, name, image / batch, 1000 * head / len(table), runs)

    def _sample(self, z: Tensor, table: StepTable, rows: int) -> Tensor:
        timesteps, coefficients = (
            torch.from_numpy(np.asarray(array, np.float32)).to(self.timer.device)
            for array in (table.timesteps, table.coefficients)
        )
        noise = torch.randn(1 + len(table), rows, self.config.channels)
        return self.model.sample(z, noise, timesteps, coefficients, 3.0, True)

    def _image(self, batch: int, tables: list[StepTable]) -> Tensor:
        length, channels = self.config.tokens, self.config.channels
        labels = torch.arange(batch) % self.config.class_num
        orders = torch.stack([torch.randperm(length) for _ in range(batch)])
        masked = torch.ones(batch, length, dtype=torch.bool)
        tokens, known = torch.zeros(batch, length, channels), 0
        counts = prediction_counts(length, len(tables))
        for count, table in zip(counts, tables, strict=True):
            predicted = torch.zeros_like(masked)
            predicted.scatter_(1, orders[:, known : known + count], True)
            z = self.model.condition(tokens, masked, predicted, labels, True)
            sampled = self._sample(z, table, batch * count)
            tokens[predicted.nonzero(as_tuple=True)] = sampled.float()
            masked, known = masked & ~predicted, known + count
        return tokens


class EngineSpeed:
    """A plan with random weights on an engine, measured through `Pipeline`."""

    def __init__(self, size: str, precision: str, engine: str, folder: Path, timer: Timer) -> None:
        self.size, self.way, self.timer, self.config = size, engine, timer, config_of(size)
        self.precision = precision
        path = random_plan_of(size, precision, folder)
        self.pipe = Pipeline.from_plan(with_engines(path, engine, Range(1, 8, 64)), engine)

    def floor(self, batch: int, iterations: int, machine: Machine) -> dict[str, Any]:
        """The floor of an image, and of a head step in the middle iteration.

        See `disa.bench.calls`.
        """
        options = self.pipe.options(num_iterations=min(iterations, self.config.tokens))
        work = count_work(self.pipe.plan, options, batch, self.precision)
        assert work is not None
        least = work.floor(machine.flops, machine.bytes_per_second)
        step = statistics.median(
            max(call.flops / machine.flops, call.weight_bytes / machine.bytes_per_second)
            for call in work.calls["head"]
        )
        image = sum(least.values()) / batch
        about = {"size": self.size, "batch": batch}
        return {**about, "seconds_per_image": image, "head_step_ms": 1000 * step}

    def measure(self, batch: int, iterations: int) -> Speed:
        """Measure an image, and a head step with and without CUDA graphs."""
        iterations = min(iterations, self.config.tokens)
        labels = [index % self.config.class_num for index in range(batch)]

        def generate() -> object:
            return self.pipe(labels, num_iterations=iterations, batch_size=batch)

        generate()  # CUDA graphs are captured when a shape occurs for the second time.
        image, runs = self.timer.seconds(generate)
        session = session_of(self.pipe, Role.STEP)
        rows = batch * usual_count(self.config, iterations)
        arrays = head_arrays(self.pipe, rows, HEAD_STEPS)

        def steps() -> object:
            return np.asarray(session.iterate({"next_x": "x"}, *arrays)["next_x"])

        steps()
        head, _ = self.timer.seconds(steps, most=20)
        switch_graphs(session, False)
        plain, _ = self.timer.seconds(steps, most=20)
        switch_graphs(session, True)
        return Speed(
            self.size,
            batch,
            self.way,
            self.pipe.engine,
            image / batch,
            1000 * head / HEAD_STEPS,
            runs,
            1000 * plain / HEAD_STEPS,
        )


def random_plan_of(size: str, precision: str, folder: Path) -> Path:
    """Export a plan with random weights, unless it exists."""
    path = folder / random_plan(size, precision)
    return path if path.exists() else write_plan(config_of(size), precision, path)
