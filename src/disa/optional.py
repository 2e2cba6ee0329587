"""Reasons why an optional package cannot be imported: missing, broken, or not enough memory."""

from collections.abc import Iterator

from .errors import DisaError, MissingDependency, OutOfMemory

_MEMORY_WORDS = (
    "bad_alloc",
    "allocate memory",
    "not enough memory",
    "out of memory",
    "failed to map segment",
    "memory allocation",
)


def import_failed(error: ImportError, package: str, extra: str) -> DisaError:
    """The error to raise instead of an ImportError.

    Args:
        package: the package's name in the package index.
        extra: the extra of disa that installs it.
    """
    if is_memory_failure(error):
        return OutOfMemory(
            f"there is not enough memory to load the package {package}: end other programs, or "
            "raise the limit (ulimit -v)"
        )
    if isinstance(error, ModuleNotFoundError):
        return MissingDependency(package, extra)
    reason = " ".join(str(error).split())[:300]
    return DisaError(
        f"the package {package} is installed but cannot be loaded ({reason}): install it again "
        f"with `pip install --force-reinstall 'disa[{extra}]'`"
    )


def first_line(error: BaseException, most: int = 300) -> str:
    """The first line of a library's error message, for an error of disa."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:most]


def is_memory_failure(error: BaseException) -> bool:
    """Whether an error, or one of its causes, means that memory ran out."""
    return any(
        isinstance(cause, MemoryError)
        or (
            isinstance(cause, RuntimeError | ImportError | OSError | SystemError)
            and any(words in str(cause).lower() for words in _MEMORY_WORDS)
        )
        for cause in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
