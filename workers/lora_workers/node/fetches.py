"""Fetching in threads of its own: a large artifact delays no other, and nothing that the engine is asked."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from lora_registry import node_codes as codes
from lora_registry.catalog import VersionRecord
from lora_workers.node.cache import Cache, Origin
from lora_workers.node.failures import NodeFailure

logger = logging.getLogger(__name__)

_AT_ONCE: Final = 4


class Fetches:
    """What is on its way into a cache.

    Args:
        cache: the cache.
        origin: the artifact store.
        keep: digests that must stay when room has to be made.
        ring: called, in a fetch's thread, when `done` has something.
    """

    def __init__(
        self, cache: Cache, origin: Origin, *, keep: Callable[[], Collection[str]], ring: Callable[[], None]
    ) -> None:
        self._cache = cache
        self._origin = origin
        self._keep = keep
        self._ring = ring
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch")
        self._done: queue.SimpleQueue[tuple[VersionRecord, NodeFailure | None]] = queue.SimpleQueue()
        self._running: set[str] = set()

    @property
    def digests(self) -> frozenset[str]:
        """Digests that were begun, and whose end `done` has not told."""
        return frozenset(self._running)

    def begin(self, record: VersionRecord) -> None:
        """Have a version's artifact in the cache, verified, and a note of what its served name stands for."""
        self._running.add(record.digest)
        self._threads.submit(self._fetch, record)

    def done(self) -> Iterator[tuple[VersionRecord, NodeFailure | None]]:
        """What ended since the last call, and why it failed if it did."""
        while not self._done.empty():
            record, failure = self._done.get()
            self._running.discard(record.digest)
            yield record, failure

    def close(self) -> None:
        """Begin none any more; those that run are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, record: VersionRecord) -> None:
        failure = None
        try:
            self._cache.fetch(record.digest, self._origin, keep=self._keep)
            self._cache.remember(record)
        except NodeFailure as error:
            failure = error
        except Exception as error:
            logger.exception("fetching %s", record.served_name)
            failure = NodeFailure(codes.NODE_FETCH_FAILED, f"{type(error).__name__}: {error}", may_pass=True)
        self._done.put((record, failure))
        self._ring()
