"""How fast: eager PyTorch, torch.compile, the engines, and the floor under them all."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disa.engines.tensorrt.profile import Range
from disa.exporter.mar_config import Config
from disa.runtime.masked import prediction_counts
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampler import SamplerName, StepTable, step_table
from disa.runtime.schedule import AnnealedSchedule

from .gpu_parity import head_arrays, with_engines
from .official_model import OfficialMAR
from .random_plan import config_of, write_random_plan

HEAD_STEPS = 20


@dataclass(frozen=True)
class Speed:
    """One measured way of running one size."""

    size: str
    batch: int
    engine: str
    seconds_per_image: float
    head_step_ms: float
    runs: int


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

    def seconds(self, work: Callable[[], object], most: int = 3) -> tuple[float, int]:
        """Median of up to `most` runs after one to warm up, within 15 seconds or so."""
        work()
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


class Eager:
    """The original way in PyTorch: autocast, 2N rows, the condition embedded at every step."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self.config, self.clock = config, clock
        model = OfficialMAR(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        self.model = model.to(clock.device)
        self.plain = self.model.diffloss["net"]

    def speed(self, size: str, batch: int, iterations: int, compiled: bool) -> Speed:
        """With `compiled`, head and transformer blocks go through torch.compile."""
        net = torch.compile(self.plain, dynamic=True) if compiled else self.plain
        self.model.diffloss["net"] = net
        for blocks in (self.model.encoder_blocks, self.model.decoder_blocks):
            for index, block in enumerate(blocks):
                original = getattr(block, "_orig_mod", block)
                blocks[index] = torch.compile(original, dynamic=True) if compiled else original
        tables = [step_table(SamplerName.DDPM, steps) for steps in schedule(iterations)]
        device, kind = self.clock.device, torch.float16
        if device == "cpu":
            kind = torch.bfloat16
        rows = batch * usual_count(self.config, iterations)
        with torch.device(device), torch.autocast(device, kind), torch.inference_mode():
            z = torch.randn(2 * rows, self.config.decoder_embed_dim)
            table = step_table(SamplerName.DDPM, HEAD_STEPS)
            image, runs = self.clock.seconds(lambda: self._image(batch, tables), most=2)
            head, _ = self.clock.seconds(lambda: self._sample(z, table, rows))
        name = "torch.compile" if compiled else "eager PyTorch"
        return Speed(size, batch, name, image / batch, 1000 * head / len(table), runs)

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


def engine_speed(
    plan: Path, size: str, batch: int, engine: str, clock: Clock, iterations: int
) -> Speed:
    """A plan on an engine, by way of the pipeline that users call."""
    path = with_engines(plan, engine, Range(1, 8, 64))
    pipe = Pipeline.from_plan(path, engine)
    config = config_of(size)
    labels = [index % config.class_num for index in range(batch)]

    def draw() -> object:
        return pipe(labels, num_iterations=iterations, batch_size=batch)

    draw()  # CUDA graphs are made when shapes come for the second time.
    image, runs = clock.seconds(draw)
    session = pipe.sessions["head"]
    arrays = head_arrays(pipe, batch * usual_count(config, iterations), HEAD_STEPS)

    def steps() -> object:
        return np.asarray(session.iterate({"next_x": "x"}, *arrays)["next_x"])

    steps()
    head, _ = clock.seconds(steps, most=20)
    return Speed(size, batch, pipe.engine, image / batch, 1000 * head / HEAD_STEPS, runs)


class Benchmark:
    """All sizes, batches and engines, as far as the time goes; what is left out is said."""

    def __init__(
        self,
        clock: Clock,
        folder: Path,
        engines: list[str],
        batches: list[int],
        iterations: int,
        precision: str,
        report: Callable[[str], None],
    ) -> None:
        self.clock, self.folder, self.report = clock, folder, report
        self.engines, self.batches = engines, batches
        self.iterations, self.precision = iterations, precision
        self.speeds: list[Speed] = []
        self.floors: list[dict[str, Any]] = []
        self.skipped: list[str] = []

    def run(self, sizes: list[str]) -> dict[str, Any]:
        """Measure and return everything as JSON."""
        machine = measure_machine(self.clock)
        self.report(
            f"measured: {machine.bytes_per_second / 1e12:.3f} TB/s, "
            f"{machine.flops / 1e12:.2f} TFLOP/s"
        )
        for size in sizes:
            self._measure_size(size, machine)
        return {
            "precision": self.precision,
            "iterations": self.iterations,
            "steps": "50:5",
            "machine": asdict(machine),
            "speeds": [asdict(speed) for speed in self.speeds],
            "floors": self.floors,
            "skipped": self.skipped,
        }

    def _measure_size(self, size: str, machine: Machine) -> None:
        config = config_of(size)
        iterations = min(self.iterations, config.tokens)
        for batch in self.batches:
            image, step = floors(config, machine, batch, iterations)
            entry = {"seconds_per_image": image, "head_step_ms": step}
            self.floors.append({"size": size, "batch": batch, **entry})
        plan = write_random_plan(size, self.precision, self.folder / f"{size}.plan")
        for engine in self.engines:
            for batch in self.batches:
                run = partial(engine_speed, plan, size, batch, engine, self.clock, iterations)
                self._attempt(f"{size}, batch {batch}, {engine}", run)
        torch_model = Eager(config, self.clock)
        ways = [(False, "eager PyTorch"), (True, "torch.compile")]
        # Compiling for a CPU takes minutes and says nothing about a GPU.
        for compiled, name in ways if self.clock.device == "cuda" else ways[:1]:
            for batch in self.batches:
                way = partial(torch_model.speed, size, batch, iterations, compiled)
                self._attempt(f"{size}, batch {batch}, {name}", way)

    def _attempt(self, what: str, run: Callable[[], Speed]) -> None:
        if self.clock.left < 20:
            self.skipped.append(f"{what}: no time left")
            return
        try:
            speed = run()
        # A comparison of many ways goes on without the one that does not work here.
        except Exception as error:
            self.skipped.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")
            self.report(self.skipped[-1])
            return
        self.speeds.append(speed)
        self.report(
            f"{what}: {speed.seconds_per_image:.4f} s an image, "
            f"{speed.head_step_ms:.3f} ms a head step"
        )
