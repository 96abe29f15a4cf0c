"""What the cache tells the plug-in while Redis is away: what each served name stands for, of whose files are here."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from lora_registry.announcements import CatalogView
from lora_registry.catalog_records import VersionRecord
from lora_workers.node.cache import Cache
from lora_workers.node.failures import NodeFailure

logger = logging.getLogger(__name__)


class Notes:
    """Keeps the notes in a cache as the catalog is.

    Args:
        cache: where they are.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._noted: dict[str, VersionRecord] = {}
        self._view: CatalogView | None = None
        self._knows_earlier = False

    def write(self, view: CatalogView, here: Mapping[str, VersionRecord]) -> None:
        """Note what is here, mend what was noted before, and forget what is published no more.

        Args:
            view: the catalog.
            here: served name → version, of those that may be served and whose files are verified.
        """
        wanted = dict(here)
        if view is not self._view:
            published = {record.served_name: record for record in view.versions.values()}
            self._forget_all_but(published)
            wanted |= {name: published[name] for name in self._noted}  # labels of what is not wanted any more, too
            self._view = view
        for name, record in wanted.items():
            if self._noted.get(name) is record:
                continue
            try:
                self._cache.remember(record)
            except NodeFailure as failure:  # no reason not to serve it, and tried again at the next look
                logger.warning("%s is not known without Redis: %s", name, failure.message)
                return
            self._noted[name] = record

    def write_again(self, served_name: str) -> None:
        """The note may be lost: write it at the next look."""
        self._noted.pop(served_name, None)

    def _forget_all_but(self, published: Mapping[str, VersionRecord]) -> None:
        noted = set(self._noted)
        if (
            published and not self._knows_earlier
        ):  # a catalog that holds nothing is no word on what an earlier life noted
            noted |= self._cache.noted()
            self._knows_earlier = True
        for name in noted - published.keys():
            self._cache.forget(name)
            self._noted.pop(name, None)
