"""Which served names requests are running on, so that an unload has its name to itself.

vLLM dies if a name is unloaded and loaded again while a request of it still runs.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class StillRunning(Exception):
    """Requests of the name did not end in time, or somebody else has it to himself."""


class RunningRequests:
    """Counts of running requests by served name; either requests have a name, or one who keeps them out."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._closed: set[str] = set()
        self._change = asyncio.Event()

    @property
    def names(self) -> set[str]:
        """Names that requests are running on."""
        return set(self._counts)

    @asynccontextmanager
    async def one(self, name: str) -> AsyncIterator[None]:
        """A request of that name runs; it begins when nobody keeps it out."""
        while name in self._closed:
            await self._change.wait()
        self._counts[name] += 1
        try:
            yield
        finally:
            self._counts[name] -= 1
            if not self._counts[name]:
                del self._counts[name]  # names come from requests: there is no end of them
                self._tell()

    @asynccontextmanager
    async def none(self, name: str, *, wait_s: float) -> AsyncIterator[None]:
        """No request of that name runs, nor begins; until this begins, they come and go.

        Args:
            name: the served name.
            wait_s: so long it waits for requests, and for others who keep them out.

        Raises:
            StillRunning: it waited for so long.
        """
        try:
            async with asyncio.timeout(wait_s):
                while name in self._counts or name in self._closed:
                    await self._change.wait()
        except TimeoutError:
            raise StillRunning(name) from None
        self._closed.add(name)
        try:
            yield
        finally:
            self._closed.remove(name)
            self._tell()

    def _tell(self) -> None:
        """Wake all who wait; each looks for itself."""
        self._change.set()
        self._change = asyncio.Event()
