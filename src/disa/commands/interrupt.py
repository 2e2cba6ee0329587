"""Handling of Ctrl-C: one sentence and exit code 130, at any time and if pressed repeatedly."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_INTERRUPTED = 130
SENTENCE = "interrupted; complete files are kept"


class Interrupts:
    """A handler of SIGINT that raises KeyboardInterrupt, but not twice in quick succession.

    Attributes:
        patience: seconds after a Ctrl-C in which another one does not interrupt the cleanup.
        pressed: time of the last Ctrl-C on the monotonic clock; None if there was none.
    """

    def __init__(self, patience: float = 3.0) -> None:
        self.patience = patience
        self.pressed: float | None = None

    def install(self) -> bool:
        """Replace Python's handler of SIGINT; returns whether that was possible."""
        if threading.current_thread() is not threading.main_thread():
            return False
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            return False
        self.pressed = None
        signal.signal(signal.SIGINT, self._handle)
        return True

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle SIGINT inside the block, unless it is handled already."""
        if not self.install():
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def recently(self) -> bool:
        """Whether Ctrl-C was pressed in the last `patience` seconds, even if a library hides it."""
        return self.pressed is not None and time.monotonic() - self.pressed < self.patience

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if self.recently():
            return
        self.pressed = time.monotonic()
        raise KeyboardInterrupt


INTERRUPTS = Interrupts()


def leave(command: str) -> None:
    """End the process with the message for Ctrl-C, before the command has started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.stderr is not None:
        print(f"{command}: {SENTENCE}", file=sys.stderr, flush=True)
    # Partly imported libraries crash at a normal exit.
    os._exit(EXIT_INTERRUPTED)
