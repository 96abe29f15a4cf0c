"""Which adapters an engine is to unload, because aliases left them or because they were retired. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from lora_registry.announcements import CatalogView
from lora_workers.node.aliases import is_served_name


class Leftovers:
    """What is loaded on one server and is to go.

    An adapter is only touched if the registry is known to have published it, or if it lies in the node's cache: others
    may be loaded by hand, under whatever name.

    Args:
        is_ours: whether a path lies in the node's cache.
        drain_s: how long an adapter stays loaded that is to go.
    """

    def __init__(self, is_ours: Callable[[str | None], bool], *, drain_s: float) -> None:
        self._is_ours = is_ours
        self._drain_s = drain_s
        self._published: frozenset[str] = frozenset()
        self._retired: set[str] = set()
        self._left: set[str] = set()
        self._since: dict[str, float] = {}

    def __bool__(self) -> bool:
        """Whether there may be any."""
        return bool(self._retired or self._left or self._since)

    def follow(self, view: CatalogView) -> None:
        """Take in the catalog as it is now: what was in it and is not was retired."""
        published = frozenset(record.served_name for record in view.versions.values())
        self._retired = (self._retired | self._published) - published
        self._published = published

    def leave(self, served_names: Collection[str]) -> None:
        """Aliases left these."""
        self._left.update(served_names)

    def due(
        self, listed: Mapping[str, str | None], *, in_use: Collection[str], running: Collection[str], now: float
    ) -> list[str]:
        """What is to be unloaded now.

        Args:
            listed: what the engine has: name → path.
            in_use: what aliases stand for, or are to.
            running: what requests are running on; it may be loading.
            now: seconds of a clock that never goes back.
        """
        here = {*listed, *running}
        self._retired &= here
        self._left &= here.difference(in_use)
        unused = listed.keys() - set(in_use)
        doomed = {name for name in unused if name in self._left or self._is_retired(name, listed[name])}
        self._since = {name: self._since.get(name, now) for name in doomed}
        return sorted(name for name, since in self._since.items() if now >= since + self._drain_s)

    def _is_retired(self, name: str, path: str | None) -> bool:
        if name in self._published or not is_served_name(name):
            return False
        return name in self._retired or self._is_ours(path)
