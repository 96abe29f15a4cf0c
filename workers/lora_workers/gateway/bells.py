"""Who waits for registrations: one connection listens for all of them.

A bell only says "look again". Whoever waits also looks now and then by itself, so that a lost ring costs a pause.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import redis.asyncio

from lora_registry.connection import redis_errors
from lora_registry.errors import RegistryError
from lora_registry.keys import Keys

_RETRY_S: Final = 1.0
_CONFIRMED_WITHIN_S: Final = 2.0
_READ_S: Final = 5.0
logger = logging.getLogger(__name__)


class Bell:
    """Rings for one waiter."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake the waiter."""
        self._rung.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait for the next ring; False if there was none within `timeout_s`."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._rung.wait(), timeout_s)
        rung = self._rung.is_set()
        self._rung.clear()
        return rung


@dataclass
class _Line:
    """One registration that somebody waits for."""

    bells: set[Bell] = field(default_factory=set)
    confirmed: asyncio.Event = field(default_factory=asyncio.Event)


class Bells:
    """The bells of all waiters, over one connection; both begin with the first waiter."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._lines: dict[str, _Line] = {}
        self._pubsub: redis.asyncio.client.PubSub | None = None
        self._listener: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def listen(self, registration_id: str) -> AsyncIterator[Bell]:
        """A bell that rings when the registration reaches a state. Look at the registration after this has begun."""
        bell = Bell()
        line = self._lines.get(registration_id)
        if line is None:
            line = self._lines[registration_id] = _Line()
            await self._subscribe(registration_id)
        line.bells.add(bell)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(line.confirmed.wait(), _CONFIRMED_WITHIN_S)
            yield bell
        finally:
            line.bells.discard(bell)
            if not line.bells and self._lines.get(registration_id) is line:
                del self._lines[registration_id]
                await self._unsubscribe(registration_id)

    async def close(self) -> None:
        """End the listener and its connection."""
        if self._listener:
            self._listener.cancel()
            with suppress(asyncio.CancelledError):
                await self._listener
        await self._hang_up()
        await self._client.aclose()

    def _channels(self, registration_id: str) -> list[str]:
        return [self._keys.outcome_channel(registration_id), self._keys.state_channel(registration_id)]

    async def _subscribe(self, registration_id: str) -> None:
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen(), name="bells")
        elif self._pubsub is not None:
            with suppress(RegistryError), redis_errors():  # the listener connects again, and then subscribes all lines
                await self._pubsub.subscribe(*self._channels(registration_id))

    async def _unsubscribe(self, registration_id: str) -> None:
        if self._pubsub is not None:
            with suppress(RegistryError), redis_errors():
                await self._pubsub.unsubscribe(*self._channels(registration_id))

    async def _listen(self) -> None:
        while True:
            try:
                await self._connect()
                while True:
                    with redis_errors():
                        assert self._pubsub  # noqa: S101 - only this task hangs up
                        message = await self._pubsub.get_message(timeout=_READ_S)
                    if message is not None:
                        self._heard(message["type"], message["channel"])
                    elif not self._lines:
                        await asyncio.sleep(0)
            except RegistryError as error:
                logger.info("the listener for outcomes lost its connection: %s", error)
                await self._hang_up()
                await asyncio.sleep(_RETRY_S)

    async def _connect(self) -> None:
        pubsub = self._client.pubsub()
        with redis_errors():
            # A channel that nobody rings keeps the subscription alive while nobody waits.
            await pubsub.subscribe(self._keys.outcome_channel("none"))
            self._pubsub = pubsub
            for registration_id in list(self._lines):
                await pubsub.subscribe(*self._channels(registration_id))

    async def _hang_up(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            with suppress(RegistryError), redis_errors():
                await pubsub.aclose()  # type: ignore[no-untyped-call] # untyped in redis-py

    def _heard(self, kind: str, channel: str) -> None:
        line = self._lines.get(channel.rpartition(":")[2])
        if line is None:
            return
        if kind == "subscribe":
            line.confirmed.set()
        for bell in line.bells:
            bell.ring()
