"""A small least-recently-used cache."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """The most recently used entries; the others are disposed of."""

    def __init__(self, limit: int, dispose: Callable[[V], None] = lambda value: None) -> None:
        self.limit, self.dispose = limit, dispose
        self._entries: OrderedDict[Any, V] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The entry of that key; `make` is called if there is none."""
        if key not in self._entries:
            self._entries[key] = make()
            if len(self._entries) > self.limit:
                self.dispose(self._entries.popitem(last=False)[1])
        self._entries.move_to_end(key)
        return self._entries[key]

    def values(self) -> list[V]:
        """All entries."""
        return list(self._entries.values())
