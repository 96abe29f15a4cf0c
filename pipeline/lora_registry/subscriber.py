"""The subscriber: hands a serving node every change of its base model's catalog, once and in order.

Pub/sub is only the bell. Whatever rings, a missed ring and a forged one included, the subscriber reads the log from
its cursor on; if the log does not reach back, or the server lost its last writes, it takes the snapshot and hands out
the net difference.

The core is a generator that yields Redis commands and is sent their replies. The blocking and the asyncio face below
run the same core.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import redis
import redis.asyncio

from lora_registry.announcements import CatalogView, Change, Cursor, Direction, Update, apply, difference
from lora_registry.catalog_records import AliasTarget, VersionRecord
from lora_registry.connection import LONGEST_BLOCK_S, command, connect, connect_async, open_bell, redis_errors
from lora_registry.errors import AnnouncementGap, RedisUnavailable
from lora_registry.keys import Keys

logger = logging.getLogger(__name__)

Command = tuple[str | int, ...]
_PAGE = 1000
_RETRY_S = 1.0
_RECHECK_S = LONGEST_BLOCK_S
"""Without any bell the log is looked at this often: a lost ring costs no more."""


class SubscriberCore:
    """What both faces share: the view, and how to bring it up to date. It does no I/O."""

    def __init__(self, base_model: str, *, view: CatalogView | None = None, key_prefix: str = "{lora}") -> None:
        self.view = view or CatalogView()
        self._base_model = base_model
        self._keys = Keys(key_prefix)
        self._outage = ""

    @property
    def channel(self) -> str:
        """The channel whose messages ring the bell."""
        return self._keys.channel(self._base_model)

    def catch_up(self) -> Generator[Command, Any, list[Update]]:
        """Bring the view up to date; yields commands, returns what to hand to the caller."""
        try:
            # Twice: what is announced between the look at the log and the look at the head is in the log by now.
            for _ in range(2):
                if self.view.cursor.generation:
                    self.view, updates = yield from self._replay(self.view)
                    if updates:
                        return updates
                head = yield from self._head()
                self._outage = ""
                if head == self.view.cursor:
                    return []
        except AnnouncementGap:
            pass
        snapshot = yield from self._snapshot()
        update = difference(self.view, snapshot)
        self.view = snapshot
        return [update]

    def _tell(self, error: RedisUnavailable) -> None:
        """Log an outage once."""
        if error.message != self._outage:
            logger.warning("%s is not followed for now: %s", self._base_model, error.message)
        self._outage = error.message

    def _head(self) -> Generator[Command, Any, Cursor]:
        generation, began = yield ("HMGET", self._keys.server, "generation", "began")
        known = self.view.cursor
        is_emptied = not generation or known.admitted_ms < Cursor(began or "").admitted_ms
        if known.generation and is_emptied:
            raise RedisUnavailable(
                f"the server is empty, or began so: what was known of generation {known.generation} counts until an "
                "operator says otherwise (lora-registry admit)"
            )
        sequence = yield ("HGET", self._keys.sequences, self._base_model)
        return Cursor(generation or "", int(sequence or 0))

    def _replay(self, view: CatalogView) -> Generator[Command, Any, tuple[CatalogView, list[Update]]]:
        """Apply the log from the view's cursor on; the first entry that does not follow raises AnnouncementGap."""
        updates: list[Update] = []
        while True:
            first = f"{view.cursor.sequence + 1}-0"
            entries = yield ("XRANGE", self._keys.log(self._base_model), first, "+", "COUNT", _PAGE)
            if entries and not updates:  # the view that is handed in stays as it was, should a gap come
                view = view.copy()
            for _, entry in entries:
                view, change = apply(view, entry["message"])
                updates.append(Update((change,) if change else (), view.cursor))
            if len(entries) < _PAGE:
                return view, updates

    def _snapshot(self) -> Generator[Command, Any, CatalogView]:
        """The whole catalog: pages read after the sequence, then the log from that sequence on."""
        while True:
            head = yield from self._head()
            versions = yield from self._pages(self._keys.versions(self._base_model))
            aliases = yield from self._pages(self._keys.aliases(self._base_model))
            directed = yield from self._pages(self._keys.directed(self._base_model))
            view = CatalogView(
                head,
                {name: VersionRecord.model_validate_json(record) for name, record in versions.items()},
                {name: AliasTarget.parse(target) for name, target in aliases.items()},
                {name: Direction.parse(stored) for name, stored in directed.items()},
            )
            newest = yield from self._head()
            try:
                view, _ = yield from self._replay(view)
            except AnnouncementGap:
                continue  # more was announced meanwhile than the log holds: read it all again
            if newest.generation == head.generation and newest.sequence <= view.cursor.sequence:
                return view

    def _pages(self, key: str) -> Generator[Command, Any, dict[str, str]]:
        found: dict[str, str] = {}
        cursor: int | str = 0
        while True:
            cursor, page = yield ("HSCAN", key, cursor, "COUNT", _PAGE)
            found.update(page)
            if int(cursor) == 0:
                return found


class Subscriber(SubscriberCore):
    """The blocking face.

    Example:
        subscriber = Subscriber("tiny-llama", url="redis://127.0.0.1:6379/0", view=kept_view)
        for update in subscriber.follow():
            for change in update.changes: ...
            if update.cursor == subscriber.view.cursor:  # the last of those that came together
                keep(subscriber.view)

    Args:
        base_model: base model to follow.
        url: the registry's server.
        view: where to go on from (see `CatalogView.from_json`); default: from nothing.
        key_prefix: the registry's hash tag.
    """

    def __init__(
        self,
        base_model: str,
        *,
        url: str,
        view: CatalogView | None = None,
        key_prefix: str = "{lora}",
    ) -> None:
        super().__init__(base_model, view=view, key_prefix=key_prefix)
        self._redis = connect(url, name="lora-subscriber")

    def poll(self) -> list[Update]:
        """Everything new since the last call.

        Raises:
            RedisUnavailable: the server is out of reach; the view is as it was.
        """
        core = self.catch_up()
        try:
            asked = next(core)
            while True:
                asked = core.send(command(self._redis, *asked))
        except StopIteration as done:
            updates: list[Update] = done.value
            return updates

    def follow(self, *, idle_s: float | None = None) -> Iterator[Update]:
        """Every update, for ever; an outage of Redis is waited out.

        Args:
            idle_s: stop after so long without an update; None never stops.
        """
        last = time.monotonic()
        while True:
            try:
                with open_bell(self._redis) as bell:
                    with redis_errors():
                        bell.subscribe(self.channel)
                    while True:
                        for update in self.poll():
                            last = time.monotonic()
                            yield update
                        left = _RECHECK_S if idle_s is None else min(_RECHECK_S, last + idle_s - time.monotonic())
                        if left <= 0:
                            return
                        self._wait_for_bell(bell, left)
            except RedisUnavailable as error:
                self._tell(error)
                if idle_s is not None and time.monotonic() - last > idle_s:
                    return
                time.sleep(_RETRY_S)

    @staticmethod
    def _wait_for_bell(bell: redis.client.PubSub, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        with redis_errors():
            # A message may be one that redis-py swallows (the confirmation of SUBSCRIBE): wait for a real one.
            while (left := deadline - time.monotonic()) > 0:
                if bell.get_message(timeout=left) is not None:
                    break
            while bell.get_message(timeout=0) is not None:
                pass  # one look at the log answers any number of rings


class AsyncSubscriber(SubscriberCore):
    """The asyncio face; arguments and behaviour as `Subscriber`."""

    def __init__(
        self,
        base_model: str,
        *,
        url: str,
        view: CatalogView | None = None,
        key_prefix: str = "{lora}",
    ) -> None:
        super().__init__(base_model, view=view, key_prefix=key_prefix)
        self._redis = connect_async(url, name="lora-subscriber")

    async def poll(self) -> list[Update]:
        """Everything new since the last call.

        Raises:
            RedisUnavailable: the server is out of reach; the view is as it was.
        """
        core = self.catch_up()
        with redis_errors():
            try:
                asked = next(core)
                while True:
                    reply = await self._redis.execute_command(*asked)  # type: ignore[no-untyped-call]
                    asked = core.send(reply)
            except StopIteration as done:
                updates: list[Update] = done.value
                return updates

    async def follow(self) -> AsyncIterator[Update]:
        """Every update, for ever; an outage of Redis is waited out."""
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as bell:
                    with redis_errors():
                        await bell.subscribe(self.channel)
                    while True:
                        for update in await self.poll():
                            yield update
                        # Each ring leads to a look of its own: a read with no time is cancelled, perhaps halfway.
                        with redis_errors():
                            await bell.get_message(timeout=_RECHECK_S)
            except RedisUnavailable as error:
                self._tell(error)
                await asyncio.sleep(_RETRY_S)

    async def close(self) -> None:
        """Close the connection."""
        await self._redis.aclose()


__all__ = ["AsyncSubscriber", "CatalogView", "Change", "Cursor", "Subscriber", "SubscriberCore", "Update"]
