"""A process for each engine, so that one's threads and memory are not counted as another's."""

import multiprocessing
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from ..engines.providers import CPU, OPENVINO
from ..errors import DisaError
from .bench_machine import matrix_rate, peak_memory, reset_peak_memory
from .bench_variant import Variant
from .bench_work import count_work
from .noise import PhiloxNoise
from .pipeline import Pipeline
from .stats import Stats

HOST_PROVIDERS = (CPU, OPENVINO)


@dataclass(frozen=True)
class Loaded:
    """What a worker says once its plan is loaded.

    Attributes:
        engine: what really runs.
        precision: what it computes in.
        load_seconds: opening the plan and loading its graphs, with ONNX Runtime's import.
    """

    engine: str
    precision: str
    load_seconds: float


@dataclass(frozen=True)
class Draw:
    """What one batch cost.

    Attributes:
        seconds: wall time by part.
        cpu_seconds: of all threads; what remains comparable on a machine that others use too.
        head_calls, head_rows: the head's work.
        peak_memory: in bytes.
    """

    seconds: dict[str, float]
    cpu_seconds: float
    head_calls: int
    head_rows: int
    peak_memory: int | None


class Worker:
    """Draws with one engine in a process of its own.

    Raises DisaError with the process's own words if the plan cannot be loaded or drawn with.

    Attributes:
        loaded: what it said once the plan was loaded.
        first_image_seconds: from the start of the process to the end of its first draw, less
            the time that it waited for others.
    """

    def __init__(self, plan: Path, engine: str, threads: int | None, exact: bool = False) -> None:
        self.engine = engine
        start = time.perf_counter()
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=serve, args=(theirs, plan, engine, threads, exact), daemon=True
        )
        self._process.start()
        theirs.close()
        self.first_image_seconds: float | None = None
        self.loaded: Loaded = self._receive()
        self._ready_seconds = time.perf_counter() - start

    def rate(self) -> float | None:
        """Operations a second of a large matrix product now; None off the host's processor."""
        rate: float | None = self._ask("rate")
        return rate

    def draw(self, variant: Variant, seed: int) -> Draw:
        """Draw one batch."""
        start = time.perf_counter()
        drawn: Draw = self._ask(("draw", variant, seed))
        if self.first_image_seconds is None:
            self.first_image_seconds = self._ready_seconds + time.perf_counter() - start
        return drawn

    def describe(self, variant: Variant) -> dict[str, Any]:
        """A variant's `options` in full, its `iterations`, and its `work` (None if unknown)."""
        described: dict[str, Any] = self._ask(("describe", variant))
        return described

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()
        self._connection.close()

    def _ask(self, request: object) -> Any:
        self._connection.send(request)
        return self._receive()

    def _receive(self) -> Any:
        try:
            kind, content = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise DisaError(
                f"the process that ran {self.engine} ended with code {self._process.exitcode}: "
                "if memory ran out, use a smaller --batch-size"
            ) from None
        if kind == "error":
            raise DisaError(content)
        return content

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def serve(
    connection: Connection, plan: Path, engine: str, threads: int | None, exact: bool
) -> None:
    """What the process does: load, then answer until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        start = time.perf_counter()
        pipe = Pipeline.from_plan(plan, engine, threads=threads, exact=exact)
        seconds = time.perf_counter() - start
        precision = _precision(pipe)
        connection.send(("ok", Loaded(pipe.engine, precision, seconds)))
        while True:
            request = connection.recv()
            if request == "rate":
                answer: object = _rate(pipe, engine, threads)
            elif request[0] == "describe":
                answer = _describe(pipe, request[1], precision)
            else:
                answer = _draw(pipe, *request[1:])
            connection.send(("ok", answer))
    except EOFError:
        return
    except DisaError as error:
        connection.send(("error", str(error)))
    except MemoryError:
        connection.send(("error", "not enough memory: use a smaller --batch-size"))


def _draw(pipe: Pipeline, variant: Variant, seed: int) -> Draw:
    settings = pipe.settings(**variant.options)
    conditions = _conditions(pipe, variant.batch_size)
    stats = Stats()
    reset_peak_memory()
    start = time.process_time()
    pipe.draw(conditions, settings, PhiloxNoise(seed, range(len(conditions))), stats)
    used = time.process_time() - start
    return Draw(dict(stats.seconds), used, stats.head_calls, stats.head_rows, peak_memory())


def _conditions(pipe: Pipeline, count: int) -> list[Any]:
    if pipe.family.classes is None:
        return pipe.conditions(None, ["a dog and a cat"] * count)
    return pipe.conditions([index % pipe.family.classes for index in range(count)])


def _describe(pipe: Pipeline, variant: Variant, precision: str) -> dict[str, Any]:
    settings = pipe.settings(**variant.options)
    options = {**pipe.plan.manifest.defaults, **variant.options}
    return {
        "options": options,
        "iterations": pipe.family.iterations(settings),
        "work": count_work(pipe.plan, settings, variant.batch_size, precision),
    }


def _precision(pipe: Pipeline) -> str:
    """The precision of the head, at the end of what its session says."""
    words = pipe.sessions["head"].description.partition(",")[0].split()
    return words[-1] if words else pipe.plan.manifest.precision


def _rate(pipe: Pipeline, engine: str, threads: int | None) -> float | None:
    if not any(name in pipe.engine for name in HOST_PROVIDERS):
        return None
    return matrix_rate(engine, threads)
