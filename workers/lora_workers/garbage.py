"""Garbage collection of the artifact store: mark what nothing refers to, wait, look again, remove. See ADR 0007."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from lora_registry.catalog import Catalog
from lora_registry.errors import Configuration, NotFound
from lora_registry.marks import Marked, Marks
from lora_workers.artifact_store import Store

_REMOVE_WITHIN_S: Final = 60.0
"""A tenth of what a claim lasts (`ledger.REMOVAL_S`), so that nothing is begun when it may have passed to others."""

logger = logging.getLogger(__name__)


@dataclass
class Collected:
    """What a collection did, or would do.

    Attributes:
        removed: digests of the artifacts that are gone.
        removed_bytes: what they took up.
        waiting: digests that are marked and whose grace is not over.
        referenced: number of artifacts that versions or nodes refer to.
        reports: registrations whose reports are gone.
        uploads: number of half sent uploads and half made directories that were removed.
        copies: number of old copies in the inbox that were removed.
    """

    removed: list[str] = field(default_factory=list)
    removed_bytes: int = 0
    waiting: list[str] = field(default_factory=list)
    referenced: int = 0
    reports: list[str] = field(default_factory=list)
    uploads: int = 0
    copies: int = 0


class GarbageCollection:
    """Removes artifacts that no version refers to and no node holds, and old reports.

    Args:
        store: the artifact store.
        catalog: versions, which are the only record of what they refer to.
        marks: marks on artifacts.
        in_use: digests that nodes hold.
        grace_s: how long an artifact must have been without any reference.
        reports_for_s: how long a report is kept that is about no published version: as long as its registration.
    """

    def __init__(
        self,
        store: Store,
        *,
        catalog: Catalog,
        marks: Marks,
        in_use: Callable[[], set[str]],
        grace_s: float,
        reports_for_s: float,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._marks = marks
        self._in_use = in_use
        self._grace_s = grace_s
        self._reports_for_s = reports_for_s

    def run(self, *, wait: bool = False, allow_all: bool = False) -> Collected:
        """Mark, and remove what has been marked for the grace.

        Args:
            wait: wait until the grace of all that is marked is over; otherwise a later run removes it.
            allow_all: remove artifacts although nothing at all is published.

        Raises:
            Configuration: nothing is published, so this may be the wrong registry.
            ServerNotAdmitted: the server is new and no dispatcher has admitted it.
            Transient: store or Redis is out of reach; what was being removed is finished by a later run.
        """
        marked = self.mark(allow_all=allow_all)
        if wait and marked.since_us:
            ends_us = max(marked.since_us.values()) + self._grace_s * 1e6
            time.sleep(max(0.0, ends_us - marked.now_us) / 1e6)
            marked = Marked(self._marks.now_us(), marked.since_us)
        collected = self.remove(marked)
        collected.reports = self._old_reports()
        for registration_id in collected.reports:
            self._store.remove_report(registration_id)
        collected.uploads = self._store.remove_stale_uploads() + self._store.remove_stale_staging()
        return collected

    def mark(self, *, allow_all: bool = False) -> Marked:
        """The first look: mark what nothing refers to.

        Raises:
            Configuration: nothing is published, so this may be the wrong registry.
            ServerNotAdmitted: the server is new and no dispatcher has admitted it.
            Transient: store or Redis is out of reach.
        """
        there = self._store.digests()
        referenced = self._references(allow_none=allow_all or not there)
        return self._marks.mark([each for each in there if each not in referenced], referenced=referenced)

    def remove(self, marked: Marked) -> Collected:
        """The second look: of what has been marked for the grace, remove what still nothing refers to.

        Raises:
            Transient: store or Redis is out of reach.
        """
        checked_from_us = self._marks.now_us()
        referenced = self._references(allow_none=True)
        collected = Collected(referenced=len(referenced), waiting=sorted(marked.since_us))
        for digest in marked.older_than(self._grace_s):
            deadline = time.monotonic() + _REMOVE_WITHIN_S
            if digest in referenced or not self._marks.take(
                digest, checked_from_us=checked_from_us, grace_s=self._grace_s
            ):
                continue
            size_bytes = self._store.size_bytes(digest)
            # If this fails, the claim stands until it runs out: a request that timed out may still be on its way.
            with suppress(NotFound):  # somebody removed it by hand
                self._store.remove(digest, deadline=deadline)
            if not self._marks.release(digest):
                logger.error("%s: removing it took too long; check it with `lora-registry store verify`", digest)
            collected.removed.append(digest)
            collected.removed_bytes += size_bytes
        collected.waiting = sorted(marked.since_us.keys() - set(collected.removed) - referenced)
        return collected

    def preview(self) -> Collected:
        """What a run would remove now, and what would wait; nothing is changed.

        Raises:
            Transient: store or Redis is out of reach.
        """
        marked, pinned = self._marks.read()
        referenced = self._references(allow_none=True)
        loose = set(self._store.digests()) - referenced - pinned
        removed = sorted(loose.intersection(marked.older_than(self._grace_s)))
        size_bytes = sum(self._store.size_bytes(digest) for digest in removed)
        waiting = sorted(loose - set(removed))
        return Collected(removed, size_bytes, waiting, referenced=len(referenced), reports=self._old_reports())

    def _old_reports(self) -> list[str]:
        """Registrations that nobody can ask about any more, and whose version is not, or no longer, published."""
        before = datetime.now(UTC) - timedelta(seconds=self._reports_for_s)
        old = {registration_id for registration_id, written in self._store.reports().items() if written < before}
        if old:
            old -= {record.registration_id for record in self._catalog.select()}
        return sorted(old)

    def _references(self, *, allow_none: bool) -> set[str]:
        published = {record.digest for record in self._catalog.select()}
        if not published and not allow_none:
            raise Configuration(
                "nothing is published in this registry, and the artifact store is not empty",
                remedy="Check LORA_REGISTRY_REDIS_URL and LORA_REGISTRY_KEY_PREFIX; if all is as meant, give --all.",
            )
        return published | self._in_use()
