"""Which served name each alias stands for on this server. No I/O.

An alias that is new here stands for its target at once. One that moves goes on standing for the old version until
somebody says that the new one answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from lora_registry.announcements import CatalogView
from lora_registry.errors import InvalidName
from lora_registry.names import AdapterName, Reference, parse_adapter, parse_reference


class AliasTable:
    """The aliases of one base model.

    Args:
        routes: what they stood for before: `namespace.name@alias` → served name.
    """

    def __init__(self, routes: Mapping[str, str] = MappingProxyType({})) -> None:
        self._routes = dict(routes)
        self._wanted: dict[str, str] = {}

    def follow(self, view: CatalogView) -> None:
        """Take in the catalog as it is now."""
        self.want(
            {
                alias: view.resolve(alias).served_name
                for alias in view.aliases
                if view.version_of(alias) in view.versions
            }
        )

    def want(self, targets: Mapping[str, str]) -> None:
        """Take in what the aliases point at now: `namespace.name@alias` → served name."""
        self._wanted = dict(targets)
        for alias in self._routes.keys() - self._wanted.keys():
            del self._routes[alias]
        for alias in self._wanted.keys() - self._routes.keys():
            self._routes[alias] = self._wanted[alias]

    def waiting(self) -> dict[str, set[str]]:
        """Served names that aliases are to move to → those that they stand for meanwhile."""
        found: dict[str, set[str]] = {}
        for alias, served_name in self._wanted.items():
            if self._routes[alias] != served_name:
                found.setdefault(served_name, set()).add(self._routes[alias])
        return found

    def swap(self, served_name: str) -> set[str]:
        """The version answers: every alias that is to move to it does. Returns what they stood for."""
        moved = [alias for alias, wanted in self._wanted.items() if wanted == served_name]
        left = {self._routes[alias] for alias in moved} - {served_name}
        self._routes |= dict.fromkeys(moved, served_name)
        return left

    def routes(self) -> dict[str, str]:
        """What each alias stands for: `namespace.name@alias` → served name."""
        return dict(self._routes)

    def in_use(self) -> set[str]:
        """Served names that aliases stand for, or are to."""
        return {*self._routes.values(), *self._wanted.values()}

    def resolve(self, model: str) -> str | None:
        """The served name that a request for `model` is for; None if that is no alias known here."""
        reference = parse(model)
        if reference is None or reference.version is not None:
            return None
        adapter = reference.adapter
        return self._routes.get(f"{adapter.qualified}@{reference.alias or adapter.name}")

    def names(self) -> dict[str, str]:
        """What a request may name → the served name."""
        return {_written(alias): served_name for alias, served_name in self._routes.items()}


def parse(model: str) -> Reference | None:
    """What a request's `model` refers to; None if it is no name of this registry."""
    try:
        return parse_reference(model)
    except InvalidName:
        return None


def is_served_name(model: str) -> bool:
    """Whether it is written as engines are given it: nothing else may be looked up by what a request says."""
    reference = parse(model)
    return (
        reference is not None
        and reference.version is not None
        and reference.adapter.served_name(reference.version) == model
    )


def _written(alias: str) -> str:
    """`namespace.name@alias` as people write it: an adapter's own alias is the adapter."""
    qualified, _, name = alias.partition("@")
    adapter: AdapterName = parse_adapter(qualified)
    return str(adapter) if name == adapter.name else f"{adapter}@{name}"
