"""How fast: eager PyTorch, torch.compile, the engines, and the floor under them all."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disa.engines.gpu.profile import Range
from disa.exporter.mar_config import Config
from disa.runtime.masked import prediction_counts
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampler import SamplerName, StepTable, step_table
from disa.runtime.schedule import AnnealedSchedule

from .gpu_check import random_plan
from .gpu_parity import head_arrays, switch_graphs, with_engines
from .official_model import OfficialMAR
from .random_plan import config_of, write_random_plan

HEAD_STEPS = 20


@dataclass(frozen=True)
class Speed:
    """One measured way of running one size."""

    size: str
    batch: int
    way: str
    """"eager", "compile", or an engine."""
    description: str
    """What really ran."""
    seconds_per_image: float
    head_step_ms: float
    runs: int
    plain_head_step_ms: float | None = None
    """Without CUDA graphs, where they can be left out."""


@dataclass(frozen=True)
class Machine:
    """What the GPU can do, as measured by plain PyTorch."""

    bytes_per_second: float
    flops: float


class Clock:
    """Times what runs on a device, and how much time is left."""

    def __init__(self, device: str, minutes: float) -> None:
        self.device = device
        self.end = time.perf_counter() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds until the check should end."""
        return self.end - time.perf_counter()

    def wait(self) -> None:
        """Until the device has done its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(
        self, work: Callable[[], object], most: int = 3, warm: Callable[[], object] | None = None
    ) -> tuple[float, int]:
        """Median of up to `most` runs after `warm`, or one to warm up, within 15 seconds or so."""
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


def measure_machine(clock: Clock) -> Machine:
    """Bandwidth of a large copy (read and written bytes) and the rate of a large product."""
    size = 2**28 if clock.device == "cuda" else 2**22
    source = torch.empty(size, device=clock.device).normal_()
    target = torch.empty_like(source)
    copied, _ = clock.seconds(lambda: target.copy_(source), most=10)
    side = 8192 if clock.device == "cuda" else 256
    dtype = torch.float16 if clock.device == "cuda" else torch.float32
    matrix = torch.randn(side, side, device=clock.device).to(dtype)
    product = torch.empty_like(matrix)
    multiplied, _ = clock.seconds(lambda: torch.mm(matrix, matrix, out=product), most=10)
    return Machine(2 * source.nbytes / copied, 2 * side**3 / multiplied)


def head_weights(config: Config) -> int:
    """Numbers in the matrices that a head step reads; the condition is embedded outside."""
    width, depth = config.diffloss_w, config.diffloss_d
    blocks = depth * (2 * width**2 + 3 * width**2)
    return blocks + 2 * width**2 + 3 * config.channels * width


def floors(config: Config, machine: Machine, batch: int, iterations: int) -> tuple[float, float]:
    """Seconds an image, and milliseconds a head step, that no fp16 engine can go below.

    Each pass takes at least the time to read its weights once and at least the time of its
    products; attention and norms are left out.
    """
    weights = head_weights(config)
    counts = prediction_counts(config.tokens, iterations)
    steps = schedule(iterations)
    width = config.encoder_embed_dim
    block = 12 * width**2
    total = known = 0.0
    for count, calls in zip(counts, steps, strict=True):
        total += calls * _pass(machine, weights, 2 * batch * count)
        seen = config.buffer_size + known
        encoder = config.encoder_depth * block
        decoder = config.decoder_depth * block
        total += _pass(machine, encoder, 2 * batch * seen)
        total += _pass(machine, decoder, 2 * batch * (config.buffer_size + config.tokens))
        known += count
    rows = 2 * batch * usual_count(config, iterations)
    return total / batch, 1000 * _pass(machine, weights, rows)


def _pass(machine: Machine, weights: float, rows: float) -> float:
    return max(2 * weights / machine.bytes_per_second, 2 * weights * rows / machine.flops)


def schedule(iterations: int) -> list[int]:
    """Denoising steps of every AR iteration, 50 to 5."""
    annealed = AnnealedSchedule(50, 5)
    return [annealed.steps(index, iterations) for index in range(iterations)]


def usual_count(config: Config, iterations: int) -> int:
    """Tokens an iteration predicts in the mean."""
    return max(1, round(config.tokens / iterations))


def compile_module(module: torch.nn.Module) -> torch.nn.Module:
    """The module, compiled for all sizes at once."""
    compiled: Any = torch.compile(module, dynamic=True)
    return compiled  # A module, though its type says function.


class Eager:
    """The original way in PyTorch: autocast, 2N rows, the condition embedded at every step."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self.config, self.clock = config, clock
        # Making up a billion weights takes the host half a minute.
        with torch.device(clock.device):
            self.model = OfficialMAR(config).eval().requires_grad_(False)
        for parameter in self.model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        self.plain = self.model.diffloss["net"]

    def speed(self, size: str, batch: int, iterations: int, compiled: bool) -> Speed:
        """With `compiled`, head and transformer blocks go through torch.compile."""
        self.model.diffloss["net"] = compile_module(self.plain) if compiled else self.plain
        for blocks in (self.model.encoder_blocks, self.model.decoder_blocks):
            for index, block in enumerate(blocks):
                original = getattr(block, "_orig_mod", block)
                blocks[index] = compile_module(original) if compiled else original
        iterations = min(iterations, self.config.tokens)
        tables = [step_table(SamplerName.DDPM, steps) for steps in schedule(iterations)]
        device, kind = self.clock.device, torch.float16
        if device == "cpu":
            kind = torch.bfloat16
        rows = batch * usual_count(self.config, iterations)
        with torch.device(device), torch.autocast(device, kind), torch.inference_mode():
            z = torch.randn(2 * rows, self.config.decoder_embed_dim)
            table = step_table(SamplerName.DDPM, HEAD_STEPS)
            # A whole image takes many seconds this way: a few of its iterations warm up as well.
            image, runs = self.clock.seconds(
                lambda: self._image(batch, tables),
                most=1,
                warm=lambda: self._image(batch, tables[:: max(1, len(tables) // 4)]),
            )
            head, _ = self.clock.seconds(lambda: self._sample(z, table, rows))
        way, name = ("compile", "torch.compile") if compiled else ("eager", "eager PyTorch")
        name = f"{name} {torch.__version__}, autocast {str(kind).removeprefix('torch.')}"
        return Speed(size, batch, way, name, image / batch, 1000 * head / len(table), runs)

    def _sample(self, z: Tensor, table: StepTable, rows: int) -> Tensor:
        timesteps, coefficients = (
            torch.from_numpy(np.asarray(array, np.float32)).to(self.clock.device)
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
    """A plan with random weights, drawn by way of the pipeline that users call."""

    def __init__(self, size: str, precision: str, engine: str, folder: Path, clock: Clock) -> None:
        self.size, self.way, self.clock, self.config = size, engine, clock, config_of(size)
        path = random_plan_of(size, precision, folder)
        self.pipe = Pipeline.from_plan(with_engines(path, engine, Range(1, 8, 64)), engine)

    def measure(self, batch: int, iterations: int) -> Speed:
        """Seconds an image, and milliseconds a head step with CUDA graphs and without."""
        iterations = min(iterations, self.config.tokens)
        labels = [index % self.config.class_num for index in range(batch)]

        def draw() -> object:
            return self.pipe(labels, num_iterations=iterations, batch_size=batch)

        draw()  # CUDA graphs are made when shapes come for the second time.
        image, runs = self.clock.seconds(draw)
        session = self.pipe.sessions["head"]
        rows = batch * usual_count(self.config, iterations)
        arrays = head_arrays(self.pipe, rows, HEAD_STEPS)

        def steps() -> object:
            return np.asarray(session.iterate({"next_x": "x"}, *arrays)["next_x"])

        steps()
        head, _ = self.clock.seconds(steps, most=20)
        switch_graphs(session, False)
        plain, _ = self.clock.seconds(steps, most=20)
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
    """A plan with random weights, exported if it is not there."""
    path = folder / random_plan(size, precision)
    return path if path.exists() else write_random_plan(size, precision, path)


def floor_of(size: str, batch: int, iterations: int, machine: Machine) -> dict[str, Any]:
    """See `floors`."""
    config = config_of(size)
    image, step = floors(config, machine, batch, min(iterations, config.tokens))
    return {"size": size, "batch": batch, "seconds_per_image": image, "head_step_ms": step}
