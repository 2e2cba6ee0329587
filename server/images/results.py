"""Stores the images of answers with URLs, for a limited time and up to a limited size."""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

EXPIRY_SECONDS = 30.0


@dataclass(frozen=True)
class Result:
    """A stored file.

    Attributes:
        data: content of the file.
        media_type: such as image/png.
        expires: time on the store's clock from which the file is no longer served.
    """

    data: bytes
    media_type: str
    expires: float


class ResultStore(Protocol):
    """Stores files, in this process or in another one."""

    async def add(self, data: bytes, media_type: str) -> str:
        """Store a file; returns its id."""
        ...

    async def get(self, result_id: str) -> Result | None:
        """The file with this id; None if it has expired or never existed."""
        ...

    async def delete(self, result_id: str) -> bool:
        """Delete a file; returns whether it was stored."""
        ...

    async def expire(self) -> None:
        """Delete expired files at intervals, until cancelled."""
        ...


class MemoryResults:
    """A `ResultStore` in the memory of this process. The ids cannot be guessed.

    Used on the event loop only.

    Args:
        most: largest total size in bytes; the oldest files are deleted first.
        seconds: time for which a file is stored.
        clock: returns seconds from any starting point.

    Attributes:
        size: total size of the files in bytes.
    """

    def __init__(
        self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._seconds, self._clock = most, seconds, clock
        self._results: OrderedDict[str, Result] = OrderedDict()
        self.size = 0

    async def add(self, data: bytes, media_type: str) -> str:
        result_id = f"img_{secrets.token_hex(16)}"
        self._results[result_id] = Result(data, media_type, self._clock() + self._seconds)
        self.size += len(data)
        self.drop_old()
        return result_id

    async def get(self, result_id: str) -> Result | None:
        self.drop_old()
        return self._results.get(result_id)

    async def delete(self, result_id: str) -> bool:
        self.drop_old()
        result = self._results.pop(result_id, None)
        if result is None:
            return False
        self.size -= len(result.data)
        return True

    async def expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            self.drop_old()

    def drop_old(self) -> None:
        """Delete expired files, and the oldest ones while the size is too large."""
        now = self._clock()
        while self._results:
            result_id, oldest = next(iter(self._results.items()))
            if oldest.expires > now and self.size <= self._most:
                return
            del self._results[result_id]
            self.size -= len(oldest.data)

    def __len__(self) -> int:
        return len(self._results)
