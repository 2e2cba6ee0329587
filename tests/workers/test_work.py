import pytest

from disa.errors import DisaError
from disa.runtime.outputs.formats.format import Shard, Unit
from disa.runtime.outputs.selection import ImageRow
from disa.workers.work import MAX_TRIES, WorkQueue


def unit(start: int) -> Unit:
    return Unit(start, [ImageRow(start, 0, 0)], [0])


def test_tasks_that_came_back_are_first() -> None:
    queue = WorkQueue([Shard(0, 4)], map(unit, range(4, 7)))
    assert queue.next_task() == Shard(0, 4)
    first = queue.next_task()
    assert first == unit(4)
    queue.lost(first)
    assert queue.next_task() == first
    queue.add([Shard(4, 7)])
    assert [queue.next_task() for _ in range(3)] == [Shard(4, 7), unit(5), unit(6)]
    assert not queue


def test_units_are_taken_one_by_one() -> None:
    taken = []

    def units():  # type: ignore[no-untyped-def]
        for start in range(10):
            taken.append(start)
            yield unit(start)

    queue = WorkQueue([], units())
    queue.next_task()
    assert len(taken) == 1


def test_a_unit_that_kills_its_workers_is_given_up() -> None:
    queue = WorkQueue([], map(unit, range(2)))
    for _ in range(MAX_TRIES - 1):
        queue.lost(queue.next_task())
    with pytest.raises(DisaError, match="position 0 to 1"):
        queue.lost(queue.next_task())
