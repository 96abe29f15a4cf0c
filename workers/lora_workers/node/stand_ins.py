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
    """What each alias that the node follows stands for on it.

    Args:
        acks: what the node said of versions.
        is_ours: whether a path that the engine lists is in the node's cache.
    """

    def __init__(self, acks: Acknowledgements, is_ours: Callable[[str | None], bool]) -> None:
        self._acks = acks
        self._is_ours = is_ours
        self._routes = AliasTable()
        self._has_begun = False

    def of(
        self, view: CatalogView, wanted: Sequence[Wanted], listed: Mapping[str, str | None] | None
    ) -> dict[str, list[VersionRecord]]:
        """Served names that do not answer here yet → the versions that did before, and that aliases pointed at then.

        An engine that was restarted has lost them. What never came to answer stands in for nothing.

        Args:
            view: the catalog. wanted: what the node wants of it.
            listed: what the engine has: name → path; None: it does not answer.
        """
        if not self._has_begun:
            if listed is None:
                return {}
            self._routes.want(self._found(view, wanted, listed))
            self._has_begun = True
        self._routes.want({alias: each.record.served_name for each in wanted for alias in each.aliases})
        waiting = self._routes.waiting()
        records = {record.served_name: record for record in view.versions.values()} if waiting else {}
        held, found = listed or {}, {}
        for name, before in waiting.items():
            able = [each for each in sorted(before & records.keys()) if self._acks.answered(each) or each in held]
            if able and self._acks.state(name) not in SERVED:
                found[name] = [records[each] for each in able]
            elif listed is not None:
                self._routes.swap(name)
        return found

    def _found(self, view: CatalogView, wanted: Sequence[Wanted], listed: Mapping[str, str | None]) -> dict[str, str]:
        """When the node starts beside an engine that has adapters: an alias whose version is not among them stood for
        the newest one of the same adapter that is."""
        versions = sorted(view.versions.values(), key=lambda record: record.version)
        held = {each.adapter: each.served_name for each in versions if self._is_ours(listed.get(each.served_name))}
        missing = [each for each in wanted if each.record.served_name not in listed and each.record.adapter in held]
        return {alias: held[each.record.adapter] for each in missing for alias in each.aliases}
