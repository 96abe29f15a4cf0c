"""Accepting events of many requests: those that arrive while a round trip is under way make the next one together.

A round trip of its own for each request would cost more than all the rest of the request.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple

from lora_registry.errors import QueueFull, RegistryError
from lora_registry.events import RegistrationRequested
from lora_registry.inbox import Accepted, Inbox

_TOGETHER: Final = 64
_MOST_WAITING: Final = 10_000
"""Beyond so many requests that wait for Redis, further ones are refused: it does not keep up, or is away."""


class _Waiting(NamedTuple):
    event: RegistrationRequested
    idempotency_key: str | None
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Accepted]


class Acceptor:
    """Accepts events from coroutines, through one thread and the blocking inbox.

    The thread begins with the first event.
    """

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def accept(self, event: RegistrationRequested, *, idempotency_key: str | None = None) -> Accepted:
        """As `Inbox.accept`; the event is queued when this returns.

        Raises:
            IdempotencyConflict, QueueFull, ServerNotAdmitted, RedisUnavailable: see there.
        """
        if self._queue.qsize() >= _MOST_WAITING:
            raise QueueFull("too many requests wait for Redis")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="acceptor", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Accepted] = loop.create_future()
        self._queue.put(_Waiting(event, idempotency_key, loop, answer))
        return await answer

    def close(self) -> None:
        """End the thread, after what waits."""
        if self._thread:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, ended = [first], False
            while len(batch) < _TOGETHER and not ended:
                try:
                    following = self._queue.get_nowait()
                except Empty:
                    break
                if following is None:
                    ended = True
                else:
                    batch.append(following)
            self._accept(batch)
            if ended:
                return

    def _accept(self, batch: Sequence[_Waiting]) -> None:
        answers: Sequence[Accepted | Exception]
        try:
            answers = self._inbox.accept_all([(each.event, each.idempotency_key) for each in batch])
        except RegistryError as error:
            answers = [error] * len(batch)
        except Exception as error:  # noqa: BLE001 - raised in the coroutines that wait; the thread must live on
            answers = [error] * len(batch)
        for loop in {each.loop for each in batch}:
            settled = [(each.answer, answer) for each, answer in zip(batch, answers, strict=True) if each.loop is loop]
            loop.call_soon_threadsafe(_settle, settled)


def _settle(settled: Sequence[tuple[asyncio.Future[Accepted], Accepted | Exception]]) -> None:
    for waiting, answer in settled:
        if waiting.done():  # its request was cancelled; the event is accepted all the same
            continue
        if isinstance(answer, Exception):
            waiting.set_exception(answer)
        else:
            waiting.set_result(answer)
