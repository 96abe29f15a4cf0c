"""Keeps the notes of a node as the catalog and the node are; see note_files.py for what they are."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Final

from lora_registry.announcements import CatalogView
from lora_registry.catalog_records import VersionRecord
from lora_workers.node.failures import NodeFailure
from lora_workers.node.note_files import NoteFiles

logger = logging.getLogger(__name__)

_ROUTES_EVERY_S: Final = 5.0
"""At most so often: only who starts anew reads them, and a version that answered for less is missed by few."""


class Notes:
    """What the agent notes.

    Args:
        files: where.
    """

    def __init__(self, files: NoteFiles) -> None:
        self._files = files
        self._noted: dict[str, VersionRecord] = {}
        self._view: CatalogView | None = None
        self._routes: dict[str, str] | None = None
        self._routes_due = 0.0

    def write(self, view: CatalogView, here: Mapping[str, VersionRecord]) -> None:
        """Note what is here, mend what was noted before by whomever, and forget what is published no more.

        Args:
            view: the catalog.
            here: served name → version, of those that may be served and whose files are verified.
        """
        wanted = dict(here)
        if view is not self._view:
            wanted |= self._noted_before(view)
            self._view = view
        for name, record in wanted.items():
            if self._noted.get(name) is record:
                continue
            try:
                self._files.remember(record)
            except NodeFailure as failure:  # no reason not to serve it, and tried again while it is here
                logger.warning("%s is not known without Redis: %s", name, failure.message)
                return
            self._noted[name] = record

    def write_again(self, served_name: str) -> None:
        """The note may be lost: write it at the next look."""
        self._noted.pop(served_name, None)

    def write_routes(self, routes: Mapping[str, str], *, at_once: bool = False) -> None:
        """Note which version each alias stands for here, now and then.

        Args:
            routes: `namespace.name@alias` → served name.
            at_once: whether this may be the last time.
        """
        if routes == self._routes or not (at_once or time.monotonic() >= self._routes_due):
            return
        self._routes_due = time.monotonic() + _ROUTES_EVERY_S
        try:
            self._files.remember_routes(routes)
            self._routes = dict(routes)
        except NodeFailure as failure:
            logger.warning("what aliases stand for is not known after a restart: %s", failure.message)

    def _noted_before(self, view: CatalogView) -> dict[str, VersionRecord]:
        """What was noted and is published; what is not is forgotten."""
        published = {record.served_name: record for record in view.versions.values()}
        # A catalog that holds nothing is no word on what an earlier life or the plug-in noted.
        noted = self._noted.keys() | (self._files.noted() if published else set())
        for name in noted - published.keys():
            self._files.forget(name)
            self._noted.pop(name, None)
        return {name: published[name] for name in noted & published.keys()}
