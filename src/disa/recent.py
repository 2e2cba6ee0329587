"""A small least-recently-used cache."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """The most recently used entries; the others are disposed of.

    Args:
        limit: most entries, or their greatest weight together; one entry may exceed it.
        dispose: called with an entry that is dropped.
        weigh: the weight of an entry, by default 1.
    """

    def __init__(
        self,
        limit: int,
        dispose: Callable[[V], None] = lambda value: None,
        weigh: Callable[[V], int] = lambda value: 1,
    ) -> None:
        self.limit, self.dispose, self._weigh = limit, dispose, weigh
        self._entries: OrderedDict[Any, V] = OrderedDict()
        self._weight = 0

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The entry of that key; `make` is called if there is none."""
        if key not in self._entries:
            self._entries[key] = value = make()
            self._weight += self._weigh(value)
            while self._weight > self.limit and len(self._entries) > 1:
                _, oldest = self._entries.popitem(last=False)
                self._weight -= self._weigh(oldest)
                self.dispose(oldest)
        self._entries.move_to_end(key)
        return self._entries[key]

    def values(self) -> list[V]:
        """All entries."""
        return list(self._entries.values())
