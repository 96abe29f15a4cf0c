"""What deliveries name is fetched in threads, a few at a time: a slow one delays nothing but what needs it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from fastapi.concurrency import run_in_threadpool

from lora_registry.errors import Transient

_AT_ONCE: Final = 4
"""Of the forty threads that all routes share."""
_MOST: Final = 100
"""Fetches under way and waiting; whoever needs a further one is told to come again."""


class Fetcher(Protocol):
    """Gets what deliveries name; see `AwsFetcher`."""

    def __call__(self, url: str) -> bytes:
        """A certificate; it may be kept."""

    def kept(self, url: str) -> bytes | None:
        """A certificate that was fetched before."""

    def visit(self, url: str) -> bytes:
        """A page, visited now."""


class DeliveryFetches:
    """The fetches of all requests.

    Args:
        fetcher: what they are done with.
    """

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._count = 0

    def kept(self, url: str) -> bytes | None:
        """A certificate that was fetched before."""
        return self._fetcher.kept(url)

    async def certificate(self, url: str) -> bytes:
        """A certificate.

        Raises:
            Transient: it cannot be had now.
        """
        return await self._in_thread(self._fetcher, url)

    async def visit(self, url: str) -> None:
        """Visit a page.

        Raises:
            Transient: it cannot be had now.
        """
        await self._in_thread(self._fetcher.visit, url)

    async def _in_thread(self, fetch: Callable[[str], bytes], url: str) -> bytes:
        if self._count >= _MOST:
            raise Transient("too many deliveries wait for what has to be fetched")
        self._count += 1
        try:
            async with self._free:
                return await run_in_threadpool(fetch, url)
        finally:
            self._count -= 1
