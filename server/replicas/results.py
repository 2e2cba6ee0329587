"""The images of answers with URLs, stored in one process for all replicas."""

import asyncio
from typing import Any

from ..images.results import MemoryResults, Result
from ..settings import ServerSettings


class SharedResults:
    """A deployment with one replica, which stores the files."""

    def __init__(self, settings: ServerSettings) -> None:
        self._results = MemoryResults(settings.result_bytes, settings.result_seconds)
        self._expiry: asyncio.Task[None] | None = None

    async def add(self, data: bytes, media_type: str) -> str:
        if self._expiry is None:
            self._expiry = asyncio.create_task(self._results.expire())
        return await self._results.add(data, media_type)

    async def get(self, result_id: str) -> Result | None:
        return await self._results.get(result_id)

    async def delete(self, result_id: str) -> bool:
        return await self._results.delete(result_id)


class RemoteResults:
    """A `ResultStore` that calls a deployment of `SharedResults`.

    Args:
        handle: Ray Serve's handle of the deployment.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def add(self, data: bytes, media_type: str) -> str:
        result_id: str = await self._handle.add.remote(data, media_type)
        return result_id

    async def get(self, result_id: str) -> Result | None:
        result: Result | None = await self._handle.get.remote(result_id)
        return result

    async def delete(self, result_id: str) -> bool:
        deleted: bool = await self._handle.delete.remote(result_id)
        return deleted

    async def expire(self) -> None:
        """Does nothing: the deployment deletes expired files itself."""
