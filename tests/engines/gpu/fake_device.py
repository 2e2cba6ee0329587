"""A GPU made of host memory, with the interface of `disa.engines.gpu.device.Device`.

It does nothing before somebody waits for it, as a GPU that is far behind: memory that is
changed, reused or freed too early shows as a wrong result. New and freed memory is filled with
a pattern, so what was never written shows as well.
"""

import bisect
import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from disa.engines.gpu.device import CudaError, MemoryRows

PATTERN = 0xFF  # NaN as float32, -1 as int64


class Region:
    """A piece of device memory."""

    def __init__(self, size: int) -> None:
        raw = np.full(size + 256, PATTERN, np.uint8)
        start = -raw.ctypes.data % 256
        self.bytes = raw[start : start + size]
        self.address = self.bytes.ctypes.data
        self.alive = True


class Event:
    """A mark; `reached` once the work before it is done."""

    def __init__(self) -> None:
        self.reached = True


class FakeDevice:
    """See the module."""

    name = "Fake GPU"
    memory = 1 << 34

    def __init__(self, sm: int = 89, cuda: int = 13000) -> None:
        self.sm, self.cuda = sm, cuda
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.capture_fails = False
        self.addresses: list[int] = []
        self.regions: dict[int, Region] = {}
        self.waits = 0
        self.uploads: list[int] = []
        self.launches = 0
        self.graphs = 0
        self.abandoned = 0

    def _do(self, action: Callable[[], None]) -> None:
        (self.queue if self.captured is None else self.captured).append(action)

    def _not_while_capturing(self, call: str) -> None:
        if self.captured is not None:
            self.capture_fails = True
            raise CudaError(call, 900, "cudaErrorStreamCaptureUnsupported")

    def enqueue(self, action: Callable[[], None]) -> None:
        """Work of a fake engine."""
        self._do(action)

    def flush(self) -> None:
        """Do all the work that is in the queue."""
        while self.queue:
            self.queue.pop(0)()

    def bytes(self, address: int, size: int) -> np.ndarray:
        """Device memory; fails outside of what is allocated."""
        index = bisect.bisect_right(self.addresses, address) - 1
        assert index >= 0, "an address before all memory"
        region = self.regions[self.addresses[index]]
        offset = address - region.address
        assert offset + size <= len(region.bytes), "beyond the end of a piece of memory"
        assert region.alive, "memory that was freed"
        return region.bytes[offset : offset + size]

    def array(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Device memory as an array."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        return self.bytes(address, size).view(dtype).reshape(shape)

    def create_stream(self) -> int:
        return 7

    def allocate(self, size: int, stream: Any) -> int:
        self._not_while_capturing("cudaMallocAsync")
        region = Region(size)
        bisect.insort(self.addresses, region.address)
        self.regions[region.address] = region
        return region.address

    def free(self, address: int, stream: Any) -> None:
        self._not_while_capturing("cudaFreeAsync")

        def action() -> None:
            region = self.regions[address]
            assert region.alive, "memory freed twice"
            region.alive = False
            region.bytes[:] = PATTERN

        self._do(action)

    def allocate_host(self, size: int) -> np.ndarray:
        return np.full(size, PATTERN, np.uint8)

    def upload(self, address: int, source: np.ndarray, stream: Any) -> None:
        self._not_while_capturing("cudaMemcpyAsync")
        self.uploads.append(source.nbytes)
        self._do(lambda: self.bytes(address, source.nbytes).__setitem__(..., source))

    def download(self, target: np.ndarray, address: int, stream: Any) -> None:
        self._not_while_capturing("cudaMemcpyAsync")
        self.synchronize(stream)
        ctypes.memmove(
            target.ctypes.data, self.bytes(address, target.nbytes).ctypes.data, target.nbytes
        )

    def copy(self, target: int, source: int, size: int, stream: Any) -> None:
        def action() -> None:
            self.bytes(target, size)[:] = self.bytes(source, size)

        self._do(action)

    def copy_rows(
        self, target: MemoryRows, source: MemoryRows, width: int, rows: int, stream: Any
    ) -> None:
        (to, to_pitch), (origin, pitch) = target, source
        assert width <= to_pitch
        assert width <= pitch

        def action() -> None:
            for row in range(rows):
                piece = self.bytes(origin + row * pitch, width)
                self.bytes(to + row * to_pitch, width)[:] = piece

        self._do(action)

    def clear(self, address: int, size: int, stream: Any) -> None:
        self._do(lambda: self.bytes(address, size).fill(0))

    def synchronize(self, stream: Any) -> None:
        self._not_while_capturing("cudaStreamSynchronize")
        self.waits += 1
        self.flush()

    def create_event(self) -> Event:
        return Event()

    def record(self, event: Event, stream: Any) -> None:
        self._not_while_capturing("cudaEventRecord")
        event.reached = False
        self._do(lambda: setattr(event, "reached", True))

    def wait(self, event: Event) -> None:
        if not event.reached:
            self.waits += 1
            self.flush()

    def elapsed(self, start: Event, stop: Event) -> float:
        self.wait(stop)
        return 0.001

    def begin_capture(self, stream: Any) -> None:
        assert self.captured is None, "captures do not nest"
        self.captured, self.capture_fails = [], False

    def end_capture(self, stream: Any) -> list[Callable[[], None]]:
        assert self.captured is not None
        actions, self.captured = self.captured, None
        if self.capture_fails:
            raise CudaError("cudaStreamEndCapture", 901, "cudaErrorStreamCaptureInvalidated")
        self.graphs += 1
        return actions

    def launch(self, graph: list[Callable[[], None]], stream: Any) -> None:
        assert graph is not None
        self.launches += 1
        for action in graph:
            self._do(action)

    def destroy_graph(self, graph: list[Callable[[], None]]) -> None:
        self.graphs -= 1
        self.flush()
        graph.clear()

    def abandon_capture(self, stream: Any) -> None:
        self.abandoned += 1
