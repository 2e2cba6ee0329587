"""A run in this process."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ..runtime.generation import Output
from ..runtime.outputs.formats.format import Unit
from ..runtime.outputs.run_folder import RunFolder
from ..runtime.stats import Stats
from .job import Advance, Description, Job, describe
from .unit_worker import UnitWorker


class LocalWorker:
    """One pipeline in this process; implements `Workers`."""

    def __init__(self, job: Job) -> None:
        self._pipe = job.open()
        self._options = self._pipe.options(**job.options)
        self.description: Description = describe(self._pipe, self._options, job.batch_size)

    def check_prompts(self, prompts: Sequence[str]) -> list[str]:
        return self._pipe.family.conditions(prompts)

    def run(self, folder: RunFolder, advance: Advance) -> Stats:
        size = self.description.batch_size
        worker = UnitWorker(self._pipe, self._options, folder.store, folder.layout, size)
        total = Stats()
        for shard in folder.shards():
            worker.assemble(shard, folder.selection)
            folder.assembled(shard)
        # A unit is encoded and written while the next one is generated.
        with ThreadPoolExecutor(1) as writer:
            writing: Future[None] | None = None
            try:
                for unit in folder.units(size):
                    images, stats = worker.generate(unit, advance)
                    if writing:
                        writing.result()
                    writing = writer.submit(_write, worker, folder, unit, images, stats)
                    total.add(stats)
            finally:
                if writing:
                    writing.result()
        return total


def _write(
    worker: UnitWorker,
    folder: RunFolder,
    unit: Unit,
    images: Sequence[Output],
    stats: Stats,
) -> None:
    worker.write(unit, images)
    for shard in folder.finished(unit, stats):
        worker.assemble(shard, folder.selection)
        folder.assembled(shard)
