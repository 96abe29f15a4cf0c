"""Round trips to Redis that many requests share: what they ask for while one is under way makes the next one together.

A round trip of its own for each request would cost more than all the rest of the request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import redis.asyncio

from lora_registry.errors import QueueFull, RegistryError
from lora_registry.scripts import Answer, Call, run_all

_TOGETHER: Final = 64
_MOST_WAITING: Final = 10_000
"""Beyond so many requests that wait for Redis, further ones are refused: it does not keep up, or is away."""


class _Waiting(NamedTuple):
    call: Call[Any]
    answer: asyncio.Future[Any]


class RoundTrips:
    """Runs the scripts of many requests, several in one round trip.

    Args:
        client: connections to the registry's server.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._waiting: deque[_Waiting] = deque()
        self._sender: asyncio.Task[None] | None = None

    async def run(self, call: Call[Answer]) -> Answer:
        """As `scripts.run`; it has run when this returns.

        Raises:
            RegistryError: what the script's answer means.
            QueueFull: too many requests wait.
            RedisUnavailable: the server is out of reach; it may have run.
        """
        if len(self._waiting) >= _MOST_WAITING:
            raise QueueFull("too many requests wait for Redis")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(call, answer))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send(), name="round trips")
        return await answer

    async def close(self) -> None:
        """Send what waits, and close the connections."""
        if self._sender:
            await self._sender
        await self._client.aclose()

    async def _send(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(_TOGETHER, len(self._waiting)))]
            _settle(batch, await self._run([each.call for each in batch]))

    async def _run(self, calls: Sequence[Call[Any]]) -> Sequence[Any | Exception]:
        try:
            return await run_all(self._client, calls)
        except RegistryError as error:
            return [error] * len(calls)
        except Exception as error:  # noqa: BLE001 - raised where each of them is waited for; the others must go on
            if len(calls) == 1:
                return [error]
            # One of them cannot even be sent. Each goes alone, since a script may run twice.
            return [answer for each in calls for answer in await self._run([each])]


def _settle(batch: Sequence[_Waiting], answers: Sequence[Any | Exception]) -> None:
    for waiting, answer in zip(batch, answers, strict=True):
        if waiting.answer.done():  # its request was cancelled; what it asked for is done all the same
            continue
        if isinstance(answer, Exception):
            waiting.answer.set_exception(answer)
        else:
            waiting.answer.set_result(answer)
