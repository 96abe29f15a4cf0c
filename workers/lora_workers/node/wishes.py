"""Which versions a node wants, and which of them its engine is to hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from lora_registry.catalog import VersionRecord
from lora_registry.selection import Wanted


@dataclass(frozen=True)
class Wish:
    """A version that the node wants.

    Attributes:
        record: the version.
        eager: whether the engine is to hold it now; otherwise it waits in the cache.
    """

    record: VersionRecord
    eager: bool = True

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
    refused: Collection[str] = (),
    stand_ins: Mapping[str, frozenset[str]] = MappingProxyType({}),
) -> tuple[Wish, ...]:
    """What the node wants, each version once, and first what it needs first.

    A version that the engine is not given takes the slots of what stands in for it, and else none.

    Args:
        wanted: what it follows or was directed to hold.
        eager: whether it loads what it wants at once.
        slots: how many it holds loaded at a time; 0: any number.
        held: served names that the engine has; they keep their slots, so that nothing is swapped to and fro.
        refused: served names that the engine is not given.
        stand_ins: served names that do not answer yet → loaded ones that answer for them; these keep their slots, too.
    """
    kept = {*held, *stand_ins}
    ranked = sorted(
        wanted,
        key=lambda each: (
            not each.directed,
            each.record.served_name not in kept,
            -each.record.lora_int_id,
        ),
    )
    counted, taken = {each.record.served_name for each in wanted}, 0
    wishes = []
    for each in ranked:
        name = each.record.served_name
        old = stand_ins.get(name, frozenset()) - counted
        needed = max(len(old), int(name not in refused))
        fits = needed > 0 and (not slots or taken + needed <= slots)
        if fits:
            taken += needed
            counted |= old
        wishes.append(Wish(each.record, eager=eager and fits))
    return tuple(wishes)
