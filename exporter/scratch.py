"""A folder for files on their way into a plan."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DisaError


@contextmanager
def scratch_folder(plan: Path) -> Iterator[Path]:
    """A folder beside the plan, where there must be room anyway; it goes with what is in it.

    Raises:
        DisaError: the plan's folder cannot be written.
    """
    parent = plan.resolve().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".disa-", dir=parent)
    except OSError as error:
        reason = error.strerror or error
        raise DisaError(f"{plan} cannot be written: {reason} ({parent})") from error
    with scratch as folder:
        yield Path(folder)
