"""Which versions a node wants, and which of them its engine is to hold."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import redis

from lora_registry.announcements import CatalogView
from lora_registry.catalog_records import VersionRecord
from lora_registry.connection import server_time_s
from lora_registry.errors import RedisUnavailable
from lora_registry.selection import Selector, Wanted, wanted_by

logger = logging.getLogger(__name__)


class Wants:
    """What a node is to hold, by the catalog and its selector.

    Args:
        selector: the node's. node_id: its id.
        client: the server whose clock says when a direction is over.
    """

    def __init__(self, selector: Selector, node_id: str, client: redis.Redis) -> None:
        self._selector = selector
        self._node_id = node_id
        self._redis = client
        self._last: tuple[CatalogView | None, list[Wanted]] = None, []
        self._clock_s: float | None = None

    def of(self, view: CatalogView) -> list[Wanted]:
        """Worked out again when the catalog changed, or a direction may have run out."""
        if view is not self._last[0] or view.directed:
            now_s = self._server_time_s(view) if view.directed else 0.0
            self._last = view, list(wanted_by(self._selector, self._node_id, view, now_s=now_s))
        return self._last[1]

    def _server_time_s(self, view: CatalogView) -> float:
        """The server's clock as of the last change of the catalog, and counted on since."""
        if self._clock_s is None or view is not self._last[0]:
            try:
                self._clock_s = server_time_s(self._redis) - time.monotonic()
            except RedisUnavailable as error:
                logger.warning("the server's clock was not read: %s", error)
                if self._clock_s is None:
                    return time.time()
        return self._clock_s + time.monotonic()


@dataclass(frozen=True)
class Wish:
    """A version that the node wants.

    Attributes:
        record: the version.
        eager: whether the engine is to hold it now; otherwise it waits in the cache.
        instead_of: served names of versions that do not answer here yet, and for whose sake alone it is wanted: it
            stands in for them, since aliases pointed at it before.
    """

    record: VersionRecord
    eager: bool = True
    instead_of: tuple[str, ...] = ()

    @cached_property
    def name(self) -> str:
        """The served name."""
        return self.record.served_name


def wishes_of(
    wanted: Sequence[Wanted],
    *,
    eager: bool,
    slots: int,
    held: Collection[str] = (),
    had: Collection[str] = (),
    refused: Collection[str] = (),
    stand_ins: Mapping[str, Sequence[VersionRecord]] = MappingProxyType({}),
) -> tuple[Wish, ...]:
    """What the node wants, each version once, and first what it needs first.

    A version that the engine is not given takes the slots of what stands in for it, and else none. What stands in for
    one that has no slot is not wanted.

    Args:
        wanted: what it follows or was directed to hold.
        eager: whether it loads what it wants at once.
        slots: how many it holds loaded at a time; 0: any number.
        held: served names that the engine has; they keep their slots, so that nothing is swapped to and fro.
        had: served names that were given a slot before; they go before what a request loaded.
        refused: served names that the engine is not given.
        stand_ins: served names that do not answer yet → versions that answer for them.
    """
    named = {each.record.served_name for each in wanted if each.aliases}
    directed = {each.record.served_name for each in wanted if each.directed}
    olds = {name: [each for each in old if each.served_name not in named] for name, old in stand_ins.items()}

    def rank(each: Wanted) -> tuple[bool, bool, bool, int]:
        """Its old version's slot is its own; what is only tried out takes nothing from what people use."""
        names = {each.record.served_name, *(old.served_name for old in olds.get(each.record.served_name, ()))}
        return not each.aliases, names.isdisjoint(had), names.isdisjoint(held), -each.record.lora_int_id

    wishes: dict[str, Wish] = {}
    taken = 0
    for each in sorted(wanted, key=rank):
        name = each.record.served_name
        if name in wishes:  # it is directed, and stands in besides
            continue
        old = [record for record in olds.get(name, ()) if record.served_name not in wishes]
        needed = max(len(old), int(name not in refused))
        fits = needed > 0 and (not slots or taken + needed <= slots)
        wishes[name] = Wish(each.record, eager=eager and fits)
        if fits:
            taken += needed
        for record in old if fits or not eager else ():
            instead_of = _successors(record, olds) if record.served_name not in directed else ()
            wishes[record.served_name] = Wish(record, eager=eager, instead_of=instead_of)
    return tuple(wishes.values())


def _successors(old: VersionRecord, olds: Mapping[str, Sequence[VersionRecord]]) -> tuple[str, ...]:
    return tuple(sorted(name for name, records in olds.items() if any(each is old for each in records)))
