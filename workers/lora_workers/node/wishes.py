"""Which versions a node wants, and which of them its engine is to hold."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

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

    @property
    def name(self) -> str:
        """The served name."""
        return self.record.served_name


def wishes_of(
    wanted: Iterable[Wanted], *, eager: bool, slots: int, held: Collection[str] = (), refused: Collection[str] = ()
) -> tuple[Wish, ...]:
    """What the node wants, each version once, and first what it needs first.

    Args:
        wanted: what it follows or was directed to hold.
        eager: whether it loads what it wants at once.
        slots: how many it holds loaded at a time; 0: any number.
        held: served names that the engine has; they keep their slots, so that nothing is swapped to and fro.
        refused: served names that the engine is not given; they take no slots.
    """
    ranked = sorted(
        wanted,
        key=lambda each: (
            each.record.served_name in refused,
            not each.directed,
            each.record.served_name not in held,
            -each.record.lora_int_id,
        ),
    )
    return tuple(Wish(each.record, eager=eager and (not slots or place < slots)) for place, each in enumerate(ranked))
