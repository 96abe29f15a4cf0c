"""Served names looked up in the registry, for an engine that asks by itself: asynchronous, cached, and never raising.

What Redis says counts; while it is away, what this cache was told of a name before.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Final

import redis.asyncio

from lora_registry.announcements import Cursor
from lora_registry.artifacts import FileDigest, Manifest
from lora_registry.base_profile import BaseProfile
from lora_registry.catalog_records import VersionRecord
from lora_registry.connection import connect_async, redis_errors
from lora_registry.errors import RedisUnavailable, Transient
from lora_registry.keys import Keys
from lora_registry.names import parse_reference
from lora_registry.nodes import NodeInfo
from lora_registry.selection import parse_selector
from lora_registry.settings import Settings
from lora_workers.node.aliases import is_served_name
from lora_workers.node.cache import Cache, Origin
from lora_workers.node.daemon_threads import DaemonThreads
from lora_workers.node.failures import NodeFailure
from lora_workers.node.judging import refusal
from lora_workers.node.note_files import NoteFiles
from lora_workers.node.options import NodeOptions
from lora_workers.node.same_base import COMPARE_BASES_S, why_another_base

logger = logging.getLogger(__name__)

UNKNOWN_FOR_S: Final = 1.0
"""So long a name stays unknown without being asked for again: a name that is published later is found soon."""
_MOST_UNKNOWN: Final = 10_000
_REDIS_TIMEOUT_S: Final = 2.0
_FETCHES: Final = 4


@dataclass(frozen=True)
class Found:
    """A version and where its files are."""

    record: VersionRecord
    path: Path


class LazyOrigin:
    """The artifact store, opened when something has to be fetched from it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def _store(self) -> Origin:
        from lora_workers.artifact_store import open_artifact_store

        return open_artifact_store(self._settings)

    def check(self) -> None:
        """Make sure that the store can be opened on this machine; one that is out of reach for now passes.

        Raises:
            Configuration: a library is missing, or the credential is not legal.
        """
        with suppress(Transient):
            self._store  # noqa: B018 - opening it is the check

    def manifest(self, digest: str) -> Manifest:
        """See `lora_workers.artifact_store.Store`."""
        return self._store.manifest(digest)

    def read(self, digest: str, name: str, *, offset: int = 0, expected: FileDigest | None = None) -> Iterator[bytes]:
        """See `lora_workers.artifact_store.Store`."""
        return self._store.read(digest, name, offset=offset, expected=expected)


class NameLookup:
    """Finds what served names stand for; connects at the first question.

    Args:
        node: the node on whose engine they are to run.
        options: what the operator said.
        settings: the registry's settings.
    """

    def __init__(self, node: NodeInfo, options: NodeOptions, settings: Settings) -> None:
        self._node = node
        self._settings = settings
        self._selector = parse_selector(options.select)
        self._keys = Keys(settings.key_prefix)
        self._cache = Cache(options.cache, max_bytes=options.max_cache_bytes)
        self._notes = NoteFiles(options.cache)
        self._origin = LazyOrigin(settings)
        self._threads = DaemonThreads("fetch", most=_FETCHES)
        self._fetches: set[Future[Path]] = set()
        self._redis: redis.asyncio.Redis | None = None
        self._redis_away_until = 0.0
        self._any_base = options.any_base
        self._other_base = ""
        self._compare_bases_at = 0.0
        self._unknown: dict[str, float] = {}

    async def find(self, served_name: str, *, told_base: str = "") -> Found | None:
        """What the name stands for, its files verified on this machine; None if it is not to be served here.

        Args:
            served_name: the name.
            told_base: name or path of the base model that the engine was started with; empty: not known.
        """
        try:
            if not is_served_name(served_name) or self._is_unknown(served_name):
                return None
            found = None if await self._is_other_base(told_base) else await self._find(served_name)
        except Exception:  # whatever it is, it must not end the engine's request in its own words
            logger.exception("looking up %s", served_name)
            found = None
        if found is None:
            self._note_unknown(served_name)
        return found

    async def close(self) -> None:
        """Close the connection; nothing waits for a fetch."""
        self._threads.close()
        if self._redis:
            await self._redis.aclose()

    async def _find(self, served_name: str) -> Found | None:
        record = await self._record(served_name)
        if record is None or record.base_model != self._node.base_model or not self._selector.matches(record):
            return None
        _, why = refusal(record, self._node)
        if why:
            logger.warning("%s is not served here: %s", served_name, why)
            return None
        found = self._cache.find(record.digest)
        path = Path(found) if found else await self._fetch(record.digest)
        await asyncio.to_thread(self._note, record)
        return Found(record, path)

    async def _fetch(self, digest: str) -> Path:
        """Fetch in threads of its own: a store that hangs delays no name whose files are here, and no end of vLLM."""
        ended: Future[Path] = Future()
        self._fetches = {each for each in self._fetches if not each.done()} | {ended}
        self._threads.begin(partial(self._bring, digest, ended), unfinished=len(self._fetches))
        return await asyncio.wrap_future(ended)

    def _bring(self, digest: str, ended: Future[Path]) -> None:
        if not ended.set_running_or_notify_cancel():
            return
        try:
            ended.set_result(self._cache.fetch(digest, self._origin, keep=self._cache.digests))
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            ended.set_exception(error)

    def _note(self, record: VersionRecord) -> None:
        """Note what the name stands for, for as long as Redis is away."""
        try:
            self._notes.remember(record)
        except NodeFailure as failure:  # this one may only read the cache
            logger.warning("%s is not known without Redis: %s", record.served_name, failure.message)

    async def _is_other_base(self, told: str) -> bool:
        """Whether the engine serves another base model; asked again until it is the same, now and then.

        While Redis is away nobody can tell, and the cache holds only what was for this base before.
        """
        if self._any_base or time.monotonic() < self._compare_bases_at:
            return bool(self._other_base)
        try:
            stored = await self._ask(self._keys.bases, self._node.base_model)
        except (RedisUnavailable, TimeoutError) as error:
            logger.warning("the engine's base model was not compared: %s", error)
            return bool(self._other_base)
        # A server that lost everything knows of no base model: what it said before counts.
        why = await asyncio.to_thread(_why_another_base, told, stored) if stored else self._other_base
        if why and why != self._other_base:
            logger.error("no adapter of the registry is served here: %s", why)
        self._other_base = why
        is_settled = stored and not why
        self._compare_bases_at = math.inf if is_settled else time.monotonic() + COMPARE_BASES_S
        return bool(why)

    async def _record(self, served_name: str) -> VersionRecord | None:
        try:
            record = await self._ask_registry(served_name)
            if await self._is_news(served_name, record) and await self._is_emptied(served_name):
                raise RedisUnavailable("it is empty, or began so, and no operator has said that it counts")
        except (RedisUnavailable, TimeoutError) as error:
            logger.warning("Redis is away, so the cache counts for %s: %s", served_name, error)
            return await asyncio.to_thread(self._notes.recall, served_name)
        if record is None:
            await asyncio.to_thread(self._notes.forget, served_name)  # it was retired
        return record

    async def _is_news(self, served_name: str, record: VersionRecord | None) -> bool:
        """Whether the name is unknown, or stands for other bytes than was noted."""
        noted = await asyncio.to_thread(self._notes.recall, served_name)
        return record is None or (noted is not None and noted.digest != record.digest)

    async def _is_emptied(self, served_name: str) -> bool:
        """Whether the server is one that began empty, after the name was noted; see `inbox.admit`."""
        generation, began = [await self._ask(self._keys.server, field) for field in ("generation", "began")]
        noted_s = await asyncio.to_thread(self._notes.noted_s, served_name)
        return not generation or 1000 * noted_s < Cursor(began or "").admitted_ms

    async def _ask_registry(self, served_name: str) -> VersionRecord | None:
        reference = parse_reference(served_name)
        field = f"{reference.adapter.qualified}.v{reference.version}"
        key = self._keys.versions(self._node.base_model)
        stored = await self._ask(key, field)
        return VersionRecord.model_validate_json(stored) if stored else None

    async def _ask(self, key: str, field: str) -> str | None:
        """Ask Redis for a field of a hash; for a second after it was away it counts as away.

        Raises:
            RedisUnavailable: it is out of reach. TimeoutError: it does not answer.
        """
        if time.monotonic() < self._redis_away_until:
            raise RedisUnavailable
        try:
            with redis_errors():
                if self._redis is None:
                    self._redis = connect_async(self._settings.redis_url, name="lora-plugin")
                async with asyncio.timeout(_REDIS_TIMEOUT_S):
                    stored = await self._redis.hget(key, field)
                    return None if stored is None else str(stored)
        except (RedisUnavailable, TimeoutError):
            self._redis_away_until = time.monotonic() + UNKNOWN_FOR_S
            raise

    def _is_unknown(self, served_name: str) -> bool:
        return self._unknown.get(served_name, 0.0) > time.monotonic()

    def _note_unknown(self, served_name: str) -> None:
        if len(self._unknown) >= _MOST_UNKNOWN:
            self._unknown.clear()
        self._unknown[served_name] = time.monotonic() + UNKNOWN_FOR_S


def _why_another_base(told: str, stored: str) -> str:
    return why_another_base(told, BaseProfile.model_validate_json(stored))
