"""Which versions a node wants: the targets of the aliases that it follows, and what it was directed to hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from lora_registry.announcements import CatalogView
from lora_registry.catalog import VersionRecord


@dataclass(frozen=True)
class Wish:
    """A version that the node wants.

    Attributes:
        record: the version.
        eager: whether the engine is to hold it now; otherwise it waits in the cache.
        has_slot: False if it waits because all slots are taken.
    """

    record: VersionRecord
    eager: bool = True
    has_slot: bool = True

    @property
    def name(self) -> str:
        """The served name."""
        return self.record.served_name


def wishes_of(
    view: CatalogView,
    *,
    selects: Callable[[VersionRecord], bool],
    node_id: str,
    eager: bool,
    slots: int,
    held: Collection[str] = (),
) -> tuple[Wish, ...]:
    """What the node wants of the catalog, each version once.

    Args:
        view: the catalog.
        selects: whether the node follows aliases of a version.
        node_id: the node, as directions name it.
        eager: whether it loads what it wants at once.
        slots: how many it holds loaded at a time; 0: any number.
        held: served names that the engine has; they keep their slots, so that nothing is swapped to and fro.
    """
    directed = list(_directed(view, node_id))
    followed = [record for record in _targets(view) if selects(record)]
    first = {record.served_name for record in directed}
    by_name = {record.served_name: record for record in (*directed, *followed)}
    ranked = sorted(
        by_name.values(),
        key=lambda record: (record.served_name not in first, record.served_name not in held, -record.lora_int_id),
    )
    return tuple(
        Wish(record, eager=eager and (not slots or place < slots), has_slot=not slots or place < slots)
        for place, record in enumerate(ranked)
    )


def _targets(view: CatalogView) -> Iterable[VersionRecord]:
    for alias in view.aliases:
        record = view.versions.get(view.version_of(alias))
        if record is not None:
            yield record


def _directed(view: CatalogView, node_id: str) -> Iterable[VersionRecord]:
    now_s = time.time()
    for field, direction in getattr(view, "directed", {}).items():
        record = view.versions.get(field)
        if record is not None and direction.holds(node_id, now_s=now_s):
            yield record
