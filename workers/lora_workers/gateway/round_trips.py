"""Accepting events of many requests: those that arrive while a round trip is under way make the next one together.

A round trip of its own for each request would cost more than all the rest of the request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

import redis.asyncio

from lora_registry.errors import QueueFull
from lora_registry.events import RegistrationRequested
from lora_registry.inbox import Accepted, Inbox

_TOGETHER: Final = 64
_MOST_WAITING: Final = 10_000
"""Beyond so many requests that wait for Redis, further ones are refused: it does not keep up, or is away."""


class _Waiting(NamedTuple):
    event: RegistrationRequested
    idempotency_key: str | None
    answer: asyncio.Future[Accepted]


class Acceptor:
    """Accepts events, several in one round trip.

    Args:
        inbox: where they go.
        client: connections to the same server.
    """

    def __init__(self, inbox: Inbox, client: redis.asyncio.Redis) -> None:
        self._inbox = inbox
        self._client = client
        self._waiting: deque[_Waiting] = deque()
        self._sender: asyncio.Task[None] | None = None

    async def accept(self, event: RegistrationRequested, *, idempotency_key: str | None = None) -> Accepted:
        """As `Inbox.accept`; the event is queued when this returns.

        Raises:
            IdempotencyConflict, QueueFull, ServerNotAdmitted, RedisUnavailable: see there.
        """
        if len(self._waiting) >= _MOST_WAITING:
            raise QueueFull("too many requests wait for Redis")
        answer: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(event, idempotency_key, answer))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send(), name="acceptor")
        return await answer

    async def close(self) -> None:
        """Send what waits, and close the connections."""
        if self._sender:
            await self._sender
        await self._client.aclose()

    async def _send(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(_TOGETHER, len(self._waiting)))]
            _settle(batch, await self._accept(batch))

    async def _accept(self, batch: Sequence[_Waiting]) -> Sequence[Accepted | Exception]:
        try:
            return await self._inbox.accept_all(self._client, [(each.event, each.idempotency_key) for each in batch])
        except Exception as error:  # noqa: BLE001 - raised where each of them is waited for; the others must go on
            return [error] * len(batch)


def _settle(batch: Sequence[_Waiting], answers: Sequence[Accepted | Exception]) -> None:
    for waiting, answer in zip(batch, answers, strict=True):
        if waiting.answer.done():  # its request was cancelled; the event is accepted all the same
            continue
        if isinstance(answer, Exception):
            waiting.answer.set_exception(answer)
        else:
            waiting.answer.set_result(answer)
