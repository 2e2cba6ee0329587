"""The queue of a run's tasks, with the number of attempts for each."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator

from ..errors import DisaError
from ..runtime.outputs.formats.format import Shard, Unit

Task = Unit | Shard

MAX_TRIES = 5
"""Workers that a task may lose before it is considered the cause."""


class WorkQueue:
    """Tasks to assign; tasks that came back are first.

    Args:
        shards: shards that only need to be assembled.
        units: consumed one by one, so that there may be millions.
    """

    def __init__(self, shards: Iterable[Shard], units: Iterator[Unit]) -> None:
        self._first: deque[Task] = deque(shards)
        self._units = units
        self._lost: Counter[tuple[type, int]] = Counter()

    def __bool__(self) -> bool:
        if not self._first:
            self._first.extend(unit for unit in [next(self._units, None)] if unit)
        return bool(self._first)

    def next_task(self) -> Task:
        """Remove and return the next task; there must be one."""
        assert self
        return self._first.popleft()

    def add(self, tasks: Iterable[Task]) -> None:
        """Add tasks that can be done now."""
        self._first.extendleft(tasks)

    def lost(self, task: Task) -> None:
        """Put back a task whose worker died.

        Raises:
            DisaError: too many workers died with it.
        """
        key = type(task), task.start
        self._lost[key] += 1
        if self._lost[key] >= MAX_TRIES:
            raise DisaError(
                f"{MAX_TRIES} workers died while they generated the images from position "
                f"{task.start} to {task.stop}: perhaps there is not enough memory; "
                "use a smaller --batch-size"
            )
        self._first.appendleft(task)
