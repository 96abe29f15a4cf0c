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
        instead_of: served name of a version that does not answer here yet and that it stands in for, since an alias
            pointed at it before; empty: it is wanted for its own sake.
    """

    record: VersionRecord
    eager: bool = True
    instead_of: str = ""

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
        had: of these those that were given a slot before: a request may have loaded others.
        refused: served names that the engine is not given.
        stand_ins: served names that do not answer yet → versions that answer for them; these keep their slots, too.
    """
    kept = {*held, *stand_ins}
    ranked = sorted(
        wanted,
        key=lambda each: (
            not each.aliases,  # what is only tried out takes nothing from what people use
            each.record.served_name not in stand_ins and each.record.served_name not in had,
            each.record.served_name not in kept,
            -each.record.lora_int_id,
        ),
    )
    counted, taken = {each.record.served_name for each in wanted}, 0
    wishes = []
    for each in ranked:
        name = each.record.served_name
        old = [record for record in stand_ins.get(name, ()) if record.served_name not in counted]
        needed = max(len(old), int(name not in refused))
        fits = needed > 0 and (not slots or taken + needed <= slots)
        wishes.append(Wish(each.record, eager=eager and fits))
        if fits:
            taken += needed
            counted.update(record.served_name for record in old)
        if fits or not eager:
            wishes += [Wish(record, eager=eager, instead_of=name) for record in old]
    return tuple(wishes)
