"""Moves aliases to versions that answer on this server, and unloads what nobody is to be given any more."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Set
from contextlib import suppress
from typing import Final

from lora_registry.announcements import CatalogView
from lora_workers.node.aliases import AliasTable
from lora_workers.node.inner_vllm import InnerVllm
from lora_workers.node.leftovers import Leftovers
from lora_workers.node.running_requests import RunningRequests, StillRunning

logger = logging.getLogger(__name__)

_LOOK_S: Final = 0.25
_LONGEST_LOOK_S: Final = 5.0


class AliasMover:
    """Keeps the table of aliases as the catalog is, as far as vLLM answers.

    What the table begins with is what a node agent noted: versions that answered before vLLM was started again. The
    agent gives them back, or the plug-in.

    Args:
        table: the aliases.
        vllm: the vLLM inside.
        running: requests that run.
        leftovers: what is to be unloaded.
    """

    def __init__(self, table: AliasTable, vllm: InnerVllm, running: RunningRequests, leftovers: Leftovers) -> None:
        self._table, self._vllm, self._running, self._leftovers = table, vllm, running, leftovers
        self._comes_back = frozenset(table.routes().values())
        self._is_told: set[str] = set()
        self._has_catalog = False
        self._changed = asyncio.Event()

    def follow(self, view: CatalogView) -> None:
        """Take in the catalog as it is now."""
        self._table.follow(view)
        self._leftovers.follow(view)
        self._comes_back &= view.served_names
        self._has_catalog = True
        self.look_soon()

    def look_soon(self) -> None:
        """Something changed."""
        self._changed.set()

    async def run(self) -> None:
        """Look whenever something changed, and again and again while something is left to do."""
        pause_s = _LOOK_S
        while True:
            is_waiting = bool(self._table.waiting()) or bool(self._leftovers) or self._vllm.is_silent
            try:
                await asyncio.wait_for(self._changed.wait(), pause_s if is_waiting else None)
                pause_s = _LOOK_S
            except TimeoutError:
                pause_s = min(2 * pause_s, _LONGEST_LOOK_S)
            self._changed.clear()
            try:
                await self._look()
            except Exception:
                logger.exception("moving aliases failed; they stay as they are")

    async def _look(self) -> None:
        if not self._has_catalog:
            return
        models = await self._vllm.models()
        if models is None:
            return
        self._tell_of_conflicts(models.bases)
        # A request may be loading what it is for.
        await self._move(models.adapters.keys() | self._running.names)
        await self._unload(models.adapters)

    def _tell_of_conflicts(self, bases: Collection[str]) -> None:
        """Say once of each alias that requests for it go to the base model."""
        for alias in (self._table.names().keys() & bases) - self._is_told:
            self._is_told.add(alias)
            logger.warning("vLLM calls its base model %s, so it answers requests for this alias", alias)

    async def _move(self, held: Set[str]) -> None:
        """Move aliases; one whose old version is held here waits until the new one answers."""
        self._comes_back -= held
        for served_name, before in self._table.waiting().items():
            # What is not loaded here has nothing to lose: the first request loads the new version as well.
            if before.isdisjoint(held | self._comes_back):
                self._leftovers.leave(self._table.swap(served_name))
        for served_name in self._table.waiting():
            if await self._vllm.answers(served_name):
                self._leftovers.leave(self._table.swap(served_name))

    async def _unload(self, listed: Mapping[str, str | None]) -> None:
        """Unload what is left over; what requests are running on has time until the next look."""
        in_use, running = self._table.in_use(), self._running.names
        for name in self._leftovers.due(listed, in_use=in_use, running=running, now=time.monotonic()):
            with suppress(StillRunning):
                async with self._running.none(name, wait_s=0):
                    await self._vllm.unload(name)
