"""Collects TensorRT's messages and turns them into one sentence after a failure."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ...errors import DisaError


@dataclass
class Messages:
    """The messages of one piece of work."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    information: list[str] = field(default_factory=list)


MEMORY = re.compile(
    r"bad_alloc|out of memory|outofmemory|cuda ?error 2\b|cannot allocate|insufficient memory",
    re.IGNORECASE,
)
WORKSPACE = re.compile(r"workspace (limit|size)|insufficient workspace", re.IGNORECASE)
NO_KERNEL = re.compile(r"could not find any implementation|no tactics to implement", re.IGNORECASE)
_SOURCE = re.compile(r"\s*In \w+ at /\S+|\[\w+\.cpp:\d+: \w+\]\s*|\w+\.cpp:\d+:?\s*")


# TensorRT uses one logger for the life of the process and ignores all later ones.
_loggers: dict[str, Any] = {}


def logger_of(trt: Any) -> Any:
    """The logger of the module `trt`; its messages go to the innermost `collect`."""
    if trt.__name__ not in _loggers:
        _loggers[trt.__name__] = _new_logger(trt)
    return _loggers[trt.__name__]


@contextmanager
def collect(trt: Any) -> Iterator[Messages]:
    """Collect the messages of the module `trt` until the block ends."""
    logger = logger_of(trt)
    outer, logger.messages = logger.messages, Messages()
    try:
        yield logger.messages
    finally:
        logger.messages = outer


def _new_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages = Messages()

        def log(self, severity: Any, message: str) -> None:
            kinds = trt.ILogger.Severity
            if severity in (kinds.INTERNAL_ERROR, kinds.ERROR):
                self.messages.errors.append(message)
            elif severity == kinds.WARNING:
                self.messages.warnings.append(message)
            elif severity == kinds.INFO:
                self.messages.information.append(message)

    return Logger()


def build_error(messages: Messages, what: str, workspace: int | None) -> DisaError:
    """The error for a failed build.

    Args:
        what: the graph, for the sentence.
        workspace: the limit that was set, in bytes.
    """
    text = " ".join(messages.errors)
    if WORKSPACE.search(text) or (NO_KERNEL.search(text) and workspace is not None):
        limit = f"{workspace / 2**20:.0f} MiB" if workspace is not None else "what is free"
        return DisaError(
            f"{what} needs more workspace than {limit}: give more with --workspace, "
            f"or leave the option out ({last_error(messages)})"
        )
    if MEMORY.search(text) or NO_KERNEL.search(text):
        # A builder that runs out of memory drops kernels and then has none left.
        return DisaError(
            f"not enough memory to build {what}: free memory, use a smaller --batch-size "
            f"or a lower --optimization-level ({last_error(messages)})"
        )
    return DisaError(f"{what} could not be built: {last_error(messages)}")


def last_error(messages: Messages) -> str:
    """The last error, without positions in TensorRT's own sources, at most 300 characters."""
    for message in reversed(messages.errors):
        text = _SOURCE.sub(" ", message)
        text = re.sub(r"\s+", " ", text).strip(" :")
        if len(text) > 300:
            text = text[:297] + "..."
        if text:
            return text
    return "TensorRT gave no reason"
