"""A run on many GPUs, cores or machines, through Ray."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..errors import DisaError
from ..runtime.outputs.formats.format import Shard
from ..runtime.outputs.run_folder import RunFolder
from ..runtime.stats import Stats
from .actor import Destination, Opened, UnitActor
from .job import Advance, Description, Job, portable
from .ray_resources import connect, share
from .work import Task, WorkQueue

UNITS_AHEAD = 2
"""Units assigned to a worker at a time: it generates one and writes the other."""
MAX_DEATHS = 5
"""Workers that may die one after another before one has opened the plan."""
START_SECONDS = 600.0


@dataclass(eq=False)
class _Slot:
    """A position for a worker; a worker that dies is replaced.

    Attributes:
        actor: Ray's handle of the worker.
        name: host and process; empty until the pipeline is open.
        tasks: number of tasks assigned to it.
    """

    actor: Any
    name: str = ""
    tasks: int = 0


@contextmanager
def ray_workers(job: Job, count: int | None, address: str | None) -> Iterator["RayWorkers"]:
    """Workers on this machine or on a cluster, until the block ends.

    Args:
        count: number of workers; None for one a GPU, or one a machine if there are no GPUs.
        address: of a running cluster, or `auto` for the cluster that this machine belongs to;
            None starts Ray on this machine.

    Raises:
        DisaError: there is no such cluster, it has too few GPUs or cores, or a worker cannot
            open the plan.
    """
    with connect(address, count, job.threads) as ray:
        workers = RayWorkers(ray, job, count)
        try:
            workers.open()
            yield workers
        finally:
            workers.close()


class RayWorkers:
    """Ray actors, each with a GPU or a share of the cores; implements `Workers`.

    The workers write the images; only their numbers and costs are sent here.
    """

    description: Description

    def __init__(self, ray: Any, job: Job, count: int | None) -> None:
        self._ray = ray
        resources = share(ray, job, count)
        self._job = replace(portable(job), threads=resources.threads)
        self._remote = ray.remote(UnitActor).options(
            max_concurrency=UNITS_AHEAD,
            num_gpus=resources.gpus,
            num_cpus=resources.cpus,
            scheduling_strategy="SPREAD",
        )
        self._deaths = 0
        self._opening: dict[Any, _Slot] = {}
        self._slots = [_Slot(None) for _ in range(resources.workers)]

    def open(self) -> None:
        """Start the workers and wait for the first one."""
        for slot in self._slots:
            self._start(slot)
        while not any(slot.name for slot in self._slots):
            ready, _ = self._ray.wait(list(self._opening), timeout=START_SECONDS)
            if not ready:
                raise DisaError(
                    f"no worker started within {START_SECONDS:.0f} s: the cluster has no free "
                    "GPUs or cores"
                )
            for reference in ready:
                self._opened(reference)

    def close(self) -> None:
        """End the workers."""
        for slot in self._slots:
            if slot.actor is not None:
                self._ray.kill(slot.actor)

    def check_prompts(self, prompts: Sequence[str]) -> list[str]:
        slot = next(slot for slot in self._slots if slot.name)
        answer = self._answer(slot.actor.check_prompts.remote(prompts))
        if answer is None:
            raise DisaError(f"worker {slot.name} died while it checked the prompts: run again")
        checked, wrong = answer
        if wrong:
            raise DisaError(wrong)
        return list(checked)

    def run(self, folder: RunFolder, advance: Advance) -> Stats:
        size = self.description.batch_size
        destination = Destination(folder.store.absolute(), folder.layout, size)
        selection = self._ray.put(folder.selection)
        queue = WorkQueue(folder.shards(), folder.units(size))
        doing: dict[Any, tuple[_Slot, Any, Task]] = {}
        total = Stats()
        while queue or doing:
            self._hand_out(queue, doing, destination, selection)
            ready, _ = self._ray.wait([*doing, *self._opening], num_returns=1)
            for reference in ready:
                if reference in self._opening:
                    self._opened(reference)
                    continue
                slot, actor, task = doing.pop(reference)
                answer = self._answer(reference)
                if actor is slot.actor:
                    slot.tasks -= 1
                    if answer is None:
                        self._start(slot)
                if answer is None:
                    queue.lost(task)
                elif isinstance(answer, str):
                    raise DisaError(answer)
                elif isinstance(task, Shard):
                    folder.assembled(task)
                else:
                    queue.add(folder.finished(task, answer, slot.name))
                    advance(answer.images)
                    total.add(answer)
        return total

    def _hand_out(
        self,
        queue: WorkQueue,
        doing: dict[Any, tuple[_Slot, Any, Task]],
        destination: Destination,
        selection: Any,
    ) -> None:
        """Assign tasks to the workers that have the fewest."""
        free = [slot for slot in self._slots if slot.name and slot.tasks < UNITS_AHEAD]
        while free and queue:
            slot = min(free, key=lambda slot: slot.tasks)
            task = queue.next_task()
            if isinstance(task, Shard):
                reference = slot.actor.assemble.remote(destination, task, selection)
            else:
                reference = slot.actor.run.remote(destination, task)
            doing[reference] = slot, slot.actor, task
            slot.tasks += 1
            if slot.tasks == UNITS_AHEAD:
                free.remove(slot)

    def _start(self, slot: _Slot) -> None:
        """Start a worker, in place of the dead one if there was one."""
        if slot.actor is not None:
            self._ray.kill(slot.actor)
        slot.actor, slot.name, slot.tasks = self._remote.remote(self._job), "", 0
        self._opening[slot.actor.open.remote()] = slot

    def _opened(self, reference: Any) -> None:
        slot = self._opening.pop(reference)
        opened: Opened | None = self._answer(reference)
        if opened is None:
            self._deaths += 1
            if self._deaths >= MAX_DEATHS:
                raise DisaError(
                    f"{MAX_DEATHS} workers in turn died while they opened {self._job.plan}: "
                    "perhaps there is not enough memory for so many workers"
                )
            self._start(slot)
            return
        if opened.description is None:
            raise DisaError(f"worker {opened.name}: {opened.error}")
        self._deaths = 0
        if not any(other.name for other in self._slots) and not hasattr(self, "description"):
            self.description = opened.description
        if opened.description != self.description:
            raise DisaError(
                f"worker {opened.name} runs {opened.description.name} on "
                f"{opened.description.engine}, others {self.description.name} on "
                f"{self.description.engine}: images would differ; choose with --engine"
            )
        slot.name = opened.name

    def _answer(self, handle: Any) -> Any:
        """The answer of a worker; None if it died."""
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(handle)
        except exceptions.RayTaskError:
            raise  # a bug: its traceback shows where
        except exceptions.RayError:
            return None
