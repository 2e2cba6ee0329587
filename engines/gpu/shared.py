"""The GPU of this process, and the stream that all sessions on it share."""

from collections.abc import Callable

from .array import Stream
from .device import Device, present


class SharedGpu:
    """Opened on first use. With one stream no session waits for another, and an output of one is an
    input of the next without a copy."""

    def __init__(self, open_device: Callable[[], Device | None] = present) -> None:
        self._open_device = open_device
        self._device: Device | None = None
        self._stream: Stream | None = None

    @property
    def device(self) -> Device | None:
        """The GPU, or None."""
        if self._device is None:
            self._device = self._open_device()
        return self._device

    @property
    def stream(self) -> Stream:
        """The stream; there must be a GPU."""
        if self._stream is None:
            assert self.device is not None
            self._stream = Stream(self.device)
        return self._stream


SHARED_GPU = SharedGpu()
