"""Runs each engine in its own process, so that threads and memory are measured separately."""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from ..engines.open import choose_engine
from ..engines.ort.providers import CPU
from ..engines.plan.manifest import QUANTIZED
from ..engines.plan.traits import Role
from ..errors import DisaError
from ..optional import is_memory_failure
from ..runtime.families.options import canonical_defaults
from ..runtime.pipeline import Pipeline, check_finite
from ..runtime.stats import Stats
from .calls import Work
from .machine import matrix_rate, peak_memory, reset_peak_memory
from .variant import Variant
from .work import count_work

CPU_SESSIONS = (CPU, "OpenVINO")
"""Names that occur in the descriptions of sessions on the CPU."""


@dataclass(frozen=True)
class LoadedEngine:
    """The engine of a worker after it has loaded the plan.

    Attributes:
        engine: the engine that really runs.
        precision: precision in which it computes.
        load_seconds: time to import the engine, open the plan and load its graphs.
    """

    engine: str
    precision: str
    load_seconds: float


@dataclass(frozen=True)
class BatchCost:
    """The cost of generating one batch.

    Attributes:
        seconds: wall time of each part, and "total".
        cpu_seconds: CPU time of all threads, which other programs on the machine change little.
        head_calls: calls of the head.
        head_rows: rows of these calls.
        peak_memory: in bytes; None if unknown.
    """

    seconds: dict[str, float]
    cpu_seconds: float
    head_calls: int
    head_rows: int
    peak_memory: int | None


class Worker:
    """Generates batches with one engine in its own process.

    Args:
        plan: path of the plan.
        engine: engine of the graphs.
        threads: CPU threads; None for all cores.

    Attributes:
        loaded: the engine after it has loaded the plan.
        first_image_seconds: time from the start of the process to the end of its first batch,
            without the time in which it waited for other workers; None before the first batch.

    Raises:
        DisaError: the plan cannot be loaded. Also raised by the methods if the process fails.
    """

    def __init__(self, plan: Path, engine: str, threads: int | None) -> None:
        self.engine = engine
        start = time.perf_counter()
        context = multiprocessing.get_context("spawn")
        self._connection, other_end = context.Pipe()
        self._process = context.Process(
            target=serve, args=(other_end, plan, engine, threads), daemon=True
        )
        self._process.start()
        other_end.close()
        self.first_image_seconds: float | None = None
        self.loaded: LoadedEngine = self._receive()
        self._ready_seconds = time.perf_counter() - start

    def rate(self) -> float | None:
        """The current operations per second of a large matmul; None if not on the CPU."""
        rate: float | None = self._call("rate")
        return rate

    def generate(self, variant: Variant, seed: int) -> BatchCost:
        """Generate one batch; returns its cost."""
        start = time.perf_counter()
        cost: BatchCost = self._call(("generate", variant, seed))
        if self.first_image_seconds is None:
            self.first_image_seconds = self._ready_seconds + time.perf_counter() - start
        return cost

    def describe(self, variant: Variant) -> dict[str, Any]:
        """Describe a variant.

        Returns:
            options, all sampling options; iterations, the number of AR iterations; work, a `Work`
            or None if unknown.
        """
        described: dict[str, Any] = self._call(("describe", variant))
        return described

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()
        self._connection.close()

    def _call(self, request: object) -> Any:
        # That the process has ended is reported when its answer is read.
        with suppress(ConnectionError):
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


def serve(connection: Connection, plan: Path, engine: str, threads: int | None) -> None:
    """The code of the process: load the plan, then answer requests until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        start = time.perf_counter()
        pipe = Pipeline.from_plan(plan, engine, threads=threads)
        seconds = time.perf_counter() - start
        precision = _precision(pipe)
        connection.send(("ok", LoadedEngine(pipe.engine, precision, seconds)))
        while True:
            request = connection.recv()
            if request == "rate":
                answer: object = _rate(pipe, engine, threads, precision)
            elif request[0] == "describe":
                answer = _describe(pipe, request[1], precision)
            else:
                answer = _generate(pipe, *request[1:])
            connection.send(("ok", answer))
    except (EOFError, ConnectionError):
        return
    except DisaError as error:
        connection.send(("error", str(error)))
    except Exception as error:
        if not is_memory_failure(error):
            raise
        connection.send(("error", "not enough memory: use a smaller --batch-size"))


def _end_with_parent() -> None:
    """End this process, even in the middle of a batch, when its parent process ends."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _generate(pipe: Pipeline, variant: Variant, seed: int) -> BatchCost:
    options = pipe.options(**variant.options)
    conditions = _conditions(pipe, variant.batch_size)
    stats = Stats()
    reset_peak_memory()
    start = time.process_time()
    requests = pipe.requests(conditions, options, seed, range(len(conditions)))
    check_finite(pipe.generate(requests, stats))
    used = time.process_time() - start
    return BatchCost(dict(stats.seconds), used, stats.head_calls, stats.head_rows, peak_memory())


def _conditions(pipe: Pipeline, count: int) -> list[Any]:
    if pipe.family.classes is None:
        return pipe.conditions(None, ["a dog and a cat"] * count)
    return pipe.conditions([index % pipe.family.classes for index in range(count)])


def _describe(pipe: Pipeline, variant: Variant, precision: str) -> dict[str, Any]:
    options = pipe.options(**variant.options)
    shown = {**canonical_defaults(pipe.plan.manifest.defaults), **variant.options}
    if {"steps", "strategy"} & variant.options.keys():
        shown.pop("schedule", None)
    return {
        "options": shown,
        "iterations": pipe.family.iterations(options),
        "work": _work(pipe, options, variant.batch_size, precision),
    }


def _work(pipe: Pipeline, options: Any, batch: int, precision: str) -> Work | None:
    """The work whose time is the floor; None if it is not known.

    Skipped steps and passes that reuse caches leave some of it out, and matmuls in 8 bits are
    faster than the large one whose rate is measured.
    """
    approximate = options.tolerance or getattr(options, "refresh", None) is not None
    if approximate or pipe.plan.manifest.precision in QUANTIZED:
        return None
    return count_work(pipe.plan, options, batch, precision)


def _precision(pipe: Pipeline) -> str:
    """The precision of the backbone: the last word of its session's description of the provider."""
    (graph, *_) = pipe.plan.manifest.with_role(Role.ITERATION)
    words = pipe.sessions[graph.name].description.partition(",")[0].split()
    return words[-1] if words else pipe.plan.manifest.precision


def _rate(pipe: Pipeline, engine: str, threads: int | None, precision: str) -> float | None:
    if not any(name in pipe.engine for name in CPU_SESSIONS):
        return None
    # By itself "auto" would decide for the matmul's own plan, which is in fp32.
    chosen = choose_engine(pipe.plan, engine)
    known = chosen == "openvino" and precision in ("fp32", "bf16")
    return matrix_rate(chosen, threads, precision=precision if known else None)
