"""Writes the output of commands to the terminal as plain text, without control characters."""

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

_COMMANDS = re.compile(
    # Control characters, which change the terminal, and characters that reverse or hide text.
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
_STANDARD = (0, 1, 2)


class OutputClosed(Exception):
    """The reader of standard output or standard error has closed its end, as `head` does.

    Not an OSError: click would end the process as after a failure, without a message.
    """


def printable(text: str) -> str:
    """`text` with its control characters written as escapes, such as `\\x1b`.

    Line ends, tabs and carriage returns are not changed.
    """
    return _COMMANDS.sub(lambda found: ascii(found[0])[1:-1], text)


class PlainWriter(io.TextIOWrapper):
    """A text stream that writes `printable` text, and escapes characters outside its encoding.

    Raises:
        OutputClosed: from `write` and `flush`, if nobody reads the stream any more.
    """

    def __init__(self, stream: Any) -> None:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        self.ascii_only = encoding.lower() in ("ascii", "us-ascii", "ansi_x3.4-1968", "646")
        super().__init__(
            stream.buffer,
            # click replaces a stream whose encoding is ASCII.
            encoding="utf-8" if self.ascii_only else encoding,
            errors="backslashreplace",
            newline=None,
            line_buffering=getattr(stream, "line_buffering", False),
        )

    def write(self, text: str) -> int:
        """Write `text`; returns the number of characters in it."""
        shown = printable(text)
        if self.ascii_only:
            shown = shown.encode("ascii", "backslashreplace").decode("ascii")
        with self._until_closed():
            super().write(shown)
        return len(text)

    def flush(self) -> None:
        with self._until_closed():
            super().flush()

    @contextmanager
    def _until_closed(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError as error:
            self._discard()
            raise OutputClosed from error

    def _discard(self) -> None:
        """Connect the descriptor to the null device.

        The text that is left in the buffer would fail again when the process ends.
        """
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(null, self.fileno())
            finally:
                os.close(null)


@contextmanager
def plain_streams() -> Iterator[None]:
    """Replace standard output and error with `PlainWriter`s inside the block."""
    before = sys.stdout, sys.stderr
    writers = [_plain(stream) for stream in before]
    sys.stdout, sys.stderr = writers
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for writer in writers:
            if isinstance(writer, PlainWriter):
                _release(writer)


def _plain(stream: TextIO | None) -> Any:
    if stream is None or not hasattr(stream, "buffer"):
        return stream
    try:
        stream.flush()
    except (OSError, ValueError):
        return stream
    return PlainWriter(stream)


def _release(writer: PlainWriter) -> None:
    """Flush the writer and leave the underlying stream open."""
    try:
        writer.detach()
    except (OSError, ValueError, OutputClosed):
        return


def fill_closed_descriptors() -> None:
    """Connect closed standard streams to the null device.

    A file opened later would otherwise get descriptor 2 and receive the error output of
    libraries.
    """
    for descriptor in _STANDARD:
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
