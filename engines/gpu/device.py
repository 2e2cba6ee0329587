"""The GPU: a thin layer over CUDA's runtime, and the only code that calls it.

Addresses, streams, events and graphs are integers or handles of CUDA. All functions except
`synchronize`, `wait` and those that say so return before the GPU has done the work.
"""

import ctypes
from typing import Any, Protocol

import numpy as np

from ...errors import EngineError, OutOfMemory
from ...optional import import_failed

_OUT_OF_MEMORY = 2
"""cudaErrorMemoryAllocation."""

MemoryRows = tuple[int, int]
"""Address of the first of some rows, and the distance in bytes from one row to the next."""


class Device(Protocol):
    """The GPU functions that the rest of this package needs."""

    name: str
    sm: int
    """Architecture, 89 for sm_89."""
    memory: int
    """Total memory in bytes."""
    cuda: int
    """Newest CUDA version that the driver supports, 13000 for 13.0."""

    def create_stream(self) -> Any: ...
    def allocate(self, size: int, stream: Any) -> int: ...
    def free(self, address: int, stream: Any) -> None: ...
    def allocate_host(self, size: int) -> np.ndarray: ...
    def upload(self, address: int, source: np.ndarray, stream: Any) -> None: ...
    def download(self, target: np.ndarray, address: int, stream: Any) -> None: ...
    def copy(self, target: int, source: int, size: int, stream: Any) -> None: ...
    def copy_rows(
        self, target: MemoryRows, source: MemoryRows, width: int, rows: int, stream: Any
    ) -> None: ...
    def clear(self, address: int, size: int, stream: Any) -> None: ...
    def synchronize(self, stream: Any) -> None: ...
    def create_event(self) -> Any: ...
    def record(self, event: Any, stream: Any) -> None: ...
    def wait(self, event: Any) -> None: ...
    def elapsed(self, start: Any, stop: Any) -> float: ...
    def begin_capture(self, stream: Any) -> None: ...
    def end_capture(self, stream: Any) -> Any: ...
    def launch(self, graph: Any, stream: Any) -> None: ...
    def destroy_graph(self, graph: Any) -> None: ...
    def abandon_capture(self, stream: Any) -> None: ...


class CudaError(EngineError):
    """A CUDA call failed."""

    def __init__(self, call: str, code: int, name: str) -> None:
        advice = {
            _OUT_OF_MEMORY: "use a smaller --batch-size, or end other programs on this GPU",
            35: "install or update the NVIDIA driver",
            100: "this machine has no NVIDIA GPU",
        }.get(code, "see the driver's log")
        super().__init__(f"CUDA failed in {call}: {name} (error {code}): {advice}")
        self.code = code


class CudaOutOfMemory(CudaError, OutOfMemory):
    """The GPU does not have enough memory for a CUDA call."""


class CudaDevice:
    """A GPU, through cuda-bindings.

    Raises:
        CudaError: from all methods, if CUDA fails.
    """

    def __init__(self, index: int = 0) -> None:
        try:
            from cuda.bindings import driver, runtime
        except ImportError as error:
            raise import_failed(error, "cuda-bindings", "gpu") from error
        self._cuda = runtime
        self._call("cudaSetDevice", index)
        attribute = runtime.cudaDeviceAttr
        properties = self._call("cudaGetDeviceProperties", index)
        self.name = properties.name.decode()
        self.sm = 10 * properties.major + properties.minor
        self.memory = int(properties.totalGlobalMem)
        self.cuda = int(self._call("cudaDriverGetVersion"))
        self._pooled = bool(
            self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrMemoryPoolsSupported, index)
        )
        if self._pooled:
            # Keep freed memory: without this every synchronisation returns it to the system.
            pool = self._call("cudaDeviceGetDefaultMemPool", index)
            threshold = runtime.cudaMemPoolAttr.cudaMemPoolAttrReleaseThreshold
            keep_all = driver.cuuint64_t(2**63)
            self._call("cudaMemPoolSetAttribute", pool, threshold, keep_all)

    def _call(self, name: str, *arguments: Any) -> Any:
        code, *results = getattr(self._cuda, name)(*arguments)
        if int(code) != 0:
            # Errors stay pending in the thread until they are read.
            self._cuda.cudaGetLastError()
            kind = CudaOutOfMemory if int(code) == _OUT_OF_MEMORY else CudaError
            raise kind(name, int(code), code.name)
        return results[0] if results else None

    def create_stream(self) -> Any:
        """Create a stream that does not wait for the default stream, as capturing requires."""
        flag = self._cuda.cudaStreamNonBlocking
        return int(self._call("cudaStreamCreateWithFlags", flag))

    def allocate(self, size: int, stream: Any) -> int:
        """Allocate memory for work that is enqueued in `stream` later. Its content is undefined."""
        if self._pooled:
            return int(self._call("cudaMallocAsync", size, stream))
        return int(self._call("cudaMalloc", size))

    def free(self, address: int, stream: Any) -> None:
        """Free memory after the work in `stream`."""
        if self._pooled:
            self._call("cudaFreeAsync", address, stream)
        else:
            self._call("cudaFree", address)

    def allocate_host(self, size: int) -> np.ndarray:
        """Allocate pinned host memory, as bytes, for copies without a wait; never freed."""
        address = int(self._call("cudaHostAlloc", size, self._cuda.cudaHostAllocDefault))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def upload(self, address: int, source: np.ndarray, stream: Any) -> None:
        """Copy from memory of `allocate_host`, which must not change until the copy is done."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, source.ctypes.data, source.nbytes, kind, stream)

    def download(self, target: np.ndarray, address: int, stream: Any) -> None:
        """Copy to host memory, and wait for the copy."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.ctypes.data, address, target.nbytes, kind, stream)
        self.synchronize(stream)

    def copy(self, target: int, source: int, size: int, stream: Any) -> None:
        """Copy on the GPU."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def copy_rows(
        self, target: MemoryRows, source: MemoryRows, width: int, rows: int, stream: Any
    ) -> None:
        """Copy the first `width` bytes of each of `rows` rows on the GPU."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy2DAsync", *target, *source, width, rows, kind, stream)

    def clear(self, address: int, size: int, stream: Any) -> None:
        """Fill memory with zero bytes."""
        self._call("cudaMemsetAsync", address, 0, size, stream)

    def synchronize(self, stream: Any) -> None:
        """Wait until the work in a stream is done."""
        self._call("cudaStreamSynchronize", stream)

    def create_event(self) -> Any:
        """Create an event; one that was never recorded counts as reached."""
        return self._call("cudaEventCreate")

    def record(self, event: Any, stream: Any) -> None:
        """Record the event after the work that is in the stream now."""
        self._call("cudaEventRecord", event, stream)

    def wait(self, event: Any) -> None:
        """Wait until the stream has reached the event."""
        self._call("cudaEventSynchronize", event)

    def elapsed(self, start: Any, stop: Any) -> float:
        """Seconds between two events, after waiting for the second."""
        self.wait(stop)
        return float(self._call("cudaEventElapsedTime", start, stop)) / 1000

    def begin_capture(self, stream: Any) -> None:
        """Start to record the work enqueued in the stream instead of executing it."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Any) -> Any:
        """Return the recorded work, ready to launch.

        Raises:
            CudaError: the work cannot be replayed.
        """
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: Any) -> None:
        """Enqueue recorded work in a stream."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Delete recorded work."""
        self._call("cudaGraphExecDestroy", graph)

    def abandon_capture(self, stream: Any) -> None:
        """Return a stream to normal execution after a failed capture."""
        code, graph = self._cuda.cudaStreamEndCapture(stream)
        if int(code) == 0 and graph:
            self._cuda.cudaGraphDestroy(graph)
        # It is expected that the stream was not recording, or that its recording was broken.
        self._cuda.cudaGetLastError()


def present(index: int = 0) -> CudaDevice | None:
    """The GPU of this machine, or None.

    Raises:
        DisaError: cuda-bindings is not installed.
    """
    try:
        return CudaDevice(index)
    # cuda-bindings before 12.9 raise RuntimeError if the driver's library is missing.
    except (CudaError, RuntimeError):
        return None
