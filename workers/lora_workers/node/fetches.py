"""Fetches in threads of their own: a large artifact delays no other, and one that hangs does not keep a node alive."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from lora_registry import node_codes as codes
from lora_registry.catalog_records import VersionRecord
from lora_workers.node.daemon_threads import DaemonThreads
from lora_workers.node.failures import NodeFailure

AT_ONCE: Final = 4

logger = logging.getLogger(__name__)


class Fetches:
    """Fetches of artifacts, so many at once; the threads begin with the first.

    Args:
        fetch: has the artifact of a version in the cache; raises NodeFailure.
        done: called in a fetch's thread when it ended.
    """

    def __init__(self, fetch: Callable[[VersionRecord], None], *, done: Callable[[], None]) -> None:
        self._fetch = fetch
        self._done = done
        self._ended: queue.SimpleQueue[tuple[VersionRecord, NodeFailure | None]] = queue.SimpleQueue()
        self._threads = DaemonThreads("fetch", most=AT_ONCE)
        self._begun = 0
        self._running: set[str] = set()

    @property
    def digests(self) -> frozenset[str]:
        """Artifacts that were begun, and whose end `take_ended` has not told."""
        return frozenset(self._running)

    def begin(self, record: VersionRecord) -> None:
        """Fetch the artifact of a version, when a thread is free."""
        self._running.add(record.digest)
        self._begun += 1  # several versions may be of one artifact, and each takes a thread
        self._threads.begin(partial(self._work, record), unfinished=self._begun)

    def take_ended(self) -> Iterator[tuple[VersionRecord, NodeFailure | None]]:
        """What ended since the last call, and how."""
        while not self._ended.empty():
            record, failure = self._ended.get()
            self._begun -= 1
            self._running.discard(record.digest)
            yield record, failure

    def close(self) -> None:
        """Begin no more; what is on its way ends or not, nobody waits for it."""
        self._threads.close()

    def _work(self, record: VersionRecord) -> None:
        self._ended.put((record, self._failure_of(record)))
        self._done()

    def _failure_of(self, record: VersionRecord) -> NodeFailure | None:
        try:
            self._fetch(record)
        except NodeFailure as error:
            return error
        except Exception as error:
            logger.exception("fetching %s", record.served_name)
            return NodeFailure(codes.NODE_FETCH_FAILED, f"{type(error).__name__}: {error}", may_pass=True)
        return None
