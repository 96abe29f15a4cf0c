"""Old versions that a node keeps while the ones that aliases moved to do not answer on it: else nobody would."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lora_registry.announcements import CatalogView
from lora_registry.catalog_records import VersionRecord
from lora_registry.nodes import SERVED
from lora_registry.selection import Wanted
from lora_workers.node.acknowledgements import Acknowledgements
from lora_workers.node.aliases import AliasTable


class StandIns:
    """Which version each alias that the node follows stands for on it.

    Args:
        acks: what the node said of versions.
        is_able: whether the node may serve a version.
        routes: what its aliases stood for in an earlier life: `namespace.name@alias` → served name.
    """

    def __init__(
        self, acks: Acknowledgements, is_able: Callable[[VersionRecord], bool], routes: Mapping[str, str]
    ) -> None:
        self._acks = acks
        self._is_able = is_able
        self._table = AliasTable(routes)

    @property
    def routes(self) -> dict[str, str]:
        """What aliases stand for, as far as that answered."""
        return {alias: name for alias, name in self._table.routes().items() if self._acks.answered(name)}

    def of(
        self, view: CatalogView, wanted: Sequence[Wanted], listed: Mapping[str, str | None] | None
    ) -> dict[str, list[VersionRecord]]:
        """Served names that do not answer here yet → the versions that did before, and that aliases pointed at then.

        An engine that was restarted has lost them. What never came to answer stands in for nothing.

        Args:
            view: the catalog. wanted: what the node wants of it.
            listed: what the engine has: name → path; None: it does not answer.
        """
        self._table.want({alias: each.record.served_name for each in wanted for alias in each.aliases})
        waiting = self._table.waiting()
        records = {record.served_name: record for record in view.versions.values()} if waiting else {}
        held, found = listed or {}, {}
        for name, before in waiting.items():
            able = [each for each in sorted(before & records.keys()) if self._acks.answered(each) or each in held]
            if able and self._acks.state(name) not in SERVED:
                found[name] = [records[each] for each in able if self._is_able(records[each])]
            elif listed is not None:
                self._table.swap(name)
        return {name: able for name, able in found.items() if able}
