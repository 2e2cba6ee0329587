"""The code that runs in the process of a Ray worker."""

import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import DisaError
from ..runtime.outputs.formats.format import Shard, Unit
from ..runtime.outputs.layout import Layout
from ..runtime.outputs.record import RECORD
from ..runtime.outputs.selection import Selection
from ..runtime.outputs.store import Store, open_store, storing
from ..runtime.stats import Stats
from .job import Description, Job, describe
from .unit_worker import UnitWorker

SETTLING_SECONDS = 5
"""Until a network file system shows on one machine what another one has written."""


@dataclass(frozen=True)
class Destination:
    """Where images are written.

    Attributes:
        place: path or URL of the run, valid on every machine.
    """

    place: str
    layout: Layout
    batch_size: int


@dataclass(frozen=True)
class Opened:
    """The answer of a worker after it has tried to open its pipeline.

    Attributes:
        name: host and process.
        description: None if opening failed.
        error: why it failed.
    """

    name: str
    description: Description | None
    error: str = ""


class UnitActor:
    """A pipeline that is opened once and generates one unit after another.

    Two threads call `run`: one generates while the other writes. Errors that the user can fix are
    returned as text, because Ray would wrap an exception in tracebacks.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._generating = threading.Lock()
        self._found = False

    def open(self) -> Opened:
        """Open the pipeline."""
        name = f"{socket.gethostname()}:{os.getpid()}"
        try:
            self._pipe = self._job.open()
            self._options = self._pipe.options(**self._job.options)
            return Opened(name, describe(self._pipe, self._options, self._job.batch_size))
        except DisaError as error:
            return Opened(name, None, str(error))

    def check_prompts(self, prompts: Sequence[str]) -> tuple[list[str], str]:
        """The prompts in the form that the model accepts, or why it does not accept one."""
        try:
            return self._pipe.family.conditions(prompts), ""
        except DisaError as error:
            return [], str(error)

    def run(self, destination: Destination, unit: Unit) -> Stats | str:
        """Generate and write a unit; returns its cost, or the error message."""
        try:
            worker = self._worker(destination)
            with self._generating:
                images, stats = worker.generate(unit)
            worker.write(unit, images)
            return stats
        except DisaError as error:
            return str(error)

    def assemble(self, destination: Destination, shard: Shard, selection: Selection) -> Stats | str:
        """Join the units of a shard; returns the cost, or the error message."""
        try:
            self._worker(destination).assemble(shard, selection)
            return Stats()
        except DisaError as error:
            return str(error)

    def _worker(self, to: Destination) -> UnitWorker:
        store = open_store(to.place)
        if not self._found:
            with storing(store):
                find_run(store)
            self._found = True
        return UnitWorker(self._pipe, self._options, store, to.layout, to.batch_size)


def find_run(store: Store) -> None:
    """Check that the driver's run is there.

    Raises:
        DisaError: it is not: images would be lost on the disk of this machine.
        OSError: the place cannot be read.
    """
    for _ in range(SETTLING_SECONDS):
        if store.exists(RECORD):
            return
        time.sleep(1)
    raise DisaError(
        f"{store} on {socket.gethostname()} is not the folder of this run: give one with -o that "
        "all machines share, or a URL"
    )
