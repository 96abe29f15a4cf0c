"""Announcements: what the publish script tells serving nodes, and the view of the catalog that they add up to.

An announcement is a CloudEvents 1.0 message. It carries the whole new state of one thing (a version record or an
alias), so applying it twice, or on top of something newer that is followed up to the same sequence, is harmless.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from lora_registry.catalog_records import AliasMode, AliasTarget, VersionRecord
from lora_registry.errors import AnnouncementGap
from lora_registry.names import AdapterName

_TYPE_PREFIX = "io.lora-registry."
_TYPE_SUFFIX = ".v1"


class Kind(StrEnum):
    """What an announcement is about. Kinds added later are skipped by subscribers that do not know them."""

    VERSION_PUBLISHED = "version.published"
    LABELS_CHANGED = "version.labels-changed"
    VERSION_RETIRED = "version.retired"
    VERSION_DIRECTED = "version.directed"
    ALIAS_MOVED = "alias.moved"
    ALIAS_REMOVED = "alias.removed"


@dataclass(frozen=True)
class Cursor:
    """How far a subscriber has come: the server's generation and the sequence of the last change it took.

    Sequences of different generations cannot be compared: another generation means resync.
    """

    generation: str = ""
    sequence: int = 0

    @property
    def admitted_ms(self) -> int:
        """When its server was admitted, in milliseconds since 1970-01-01 by its own clock; 0: never."""
        ms, _, _ = self.generation.partition("-")
        return int(ms) if ms.isdigit() else 0


@dataclass(frozen=True)
class Direction:
    """Nodes that are to hold a version for a while, whether or not an alias that they follow points at it.

    Attributes:
        nodes: their ids, and nobody else's; empty: the while is over.
        until_s: when it is over in any case, by the server's clock, in seconds since 1970-01-01.
    """

    nodes: tuple[str, ...] = ()
    until_s: float = 0.0

    @classmethod
    def parse(cls, stored: str) -> Direction:
        """Parse the stored form `<until in s> =<token> <node id> …`; whose token it is says nothing to nodes."""
        until_s, *words = stored.split(" ")
        return cls(tuple(word for word in words if not word.startswith("=")), float(until_s))

    def holds(self, node_id: str, *, now_s: float) -> bool:
        """Whether the node is to hold the version at this time."""
        return node_id in self.nodes and now_s < self.until_s


@dataclass(frozen=True)
class Change:
    """One change of the catalog of a base model.

    Attributes:
        kind: what changed.
        subject: served name of the version, or `namespace.name@alias`.
        record: the version that was published, retired or directed, whose labels changed, or that the alias points
            at; None if the view was begun at a cursor without its catalog and the version is older than that.
        target: what the alias points at; None if the change is not about an alias, or the alias was removed.
        direction: which nodes are to hold the version, if the change is about that.
        message: the CloudEvents message; empty if the change is part of a reset.
    """

    kind: Kind
    subject: str
    record: VersionRecord | None
    target: AliasTarget | None = None
    message: str = field(default="", repr=False)
    direction: Direction | None = None


@dataclass(frozen=True)
class Update:
    """What a subscriber hands to its caller: changes in order, and how far the caller is once they are done.

    Of updates that came together the subscriber's view is as of the last one: keep the view when that is done.

    Attributes:
        changes: changes to apply; empty if only the cursor moved.
        cursor: how far the caller is after them.
        reset: whether they are the net difference to a snapshot instead of announcements one by one.
        gone: served names and aliases that the caller had and the snapshot has not: retired or removed meanwhile, or
            lost with a server that was restored from a backup.
    """

    changes: tuple[Change, ...]
    cursor: Cursor
    reset: bool = False
    gone: tuple[str, ...] = ()


@dataclass(frozen=True)
class CatalogView:
    """The catalog of one base model as of one cursor.

    Attributes:
        cursor: as of when.
        versions: `namespace.name.vN` → version.
        aliases: `namespace.name@alias` → target.
        directed: `namespace.name.vN` → nodes that are to hold it for a while.
    """

    cursor: Cursor = Cursor()
    versions: dict[str, VersionRecord] = field(default_factory=dict)
    aliases: dict[str, AliasTarget] = field(default_factory=dict)
    directed: dict[str, Direction] = field(default_factory=dict)

    def copy(self) -> CatalogView:
        """The same catalog in dictionaries of its own."""
        return CatalogView(self.cursor, dict(self.versions), dict(self.aliases), dict(self.directed))

    @property
    def served_names(self) -> set[str]:
        """Served names of all versions."""
        return {record.served_name for record in self.versions.values()}

    def resolve(self, alias: str) -> VersionRecord:
        """The version that `namespace.name@alias` points at.

        Raises:
            KeyError: there is no such alias.
        """
        return self.versions[self.version_of(alias)]

    def version_of(self, alias: str) -> str:
        """`namespace.name.vN` that the alias points at.

        Raises:
            KeyError: there is no such alias.
        """
        return f"{alias.partition('@')[0]}.v{self.aliases[alias].version}"

    def to_json(self) -> str:
        """Text to keep across a restart of the node."""
        return json.dumps(
            {
                "generation": self.cursor.generation,
                "sequence": self.cursor.sequence,
                "versions": {name: record.model_dump(mode="json") for name, record in self.versions.items()},
                "aliases": {name: [target.version, target.mode] for name, target in self.aliases.items()},
                "directed": {name: [each.nodes, each.until_s] for name, each in self.directed.items()},
            }
        )

    @classmethod
    def from_json(cls, text: str) -> CatalogView:
        """The inverse of `to_json`."""
        kept = json.loads(text)
        return cls(
            Cursor(kept["generation"], kept["sequence"]),
            {name: VersionRecord.model_validate(record) for name, record in kept["versions"].items()},
            {name: AliasTarget(version, AliasMode(mode)) for name, (version, mode) in kept["aliases"].items()},
            {name: Direction(tuple(nodes), until) for name, (nodes, until) in kept.get("directed", {}).items()},
        )


def apply(view: CatalogView, message: str) -> tuple[CatalogView, Change | None]:
    """Apply the next announcement; the dictionaries of `view` are changed in place, its cursor is not.

    Returns:
        The view as of the announcement, and the change; None for a kind that this version does not know.

    Raises:
        AnnouncementGap: it is not the one that follows the view's cursor.
    """
    event = json.loads(message)
    cursor = Cursor(event["generation"], int(event["sequence"]))
    if cursor != replace(view.cursor, sequence=view.cursor.sequence + 1):
        raise AnnouncementGap(f"{cursor} does not follow {view.cursor}")
    change = _change(view, event, message)
    return replace(view, cursor=cursor), change


def _change(view: CatalogView, event: dict[str, Any], message: str) -> Change | None:
    name = event["type"].removeprefix(_TYPE_PREFIX).removesuffix(_TYPE_SUFFIX)
    data = event["data"]
    try:
        kind = Kind(name)
    except ValueError:
        return None
    if kind in (Kind.ALIAS_MOVED, Kind.ALIAS_REMOVED):
        return _alias_change(view, kind, data, message)
    if kind in (Kind.VERSION_RETIRED, Kind.VERSION_DIRECTED):
        return _holding_change(view, kind, data, message)
    record = VersionRecord.model_validate(data)
    view.versions[record.field] = record
    return Change(kind, record.served_name, record, message=message)


def _alias_change(view: CatalogView, kind: Kind, data: dict[str, Any], message: str) -> Change:
    alias = f"{data['namespace']}.{data['name']}@{data['alias']}"
    if kind is Kind.ALIAS_REMOVED:
        view.aliases.pop(alias, None)
        return Change(kind, alias, None, message=message)
    target = view.aliases[alias] = AliasTarget(data["version"], AliasMode(data["mode"]))
    return Change(kind, alias, view.versions.get(view.version_of(alias)), target, message)


def _holding_change(view: CatalogView, kind: Kind, data: dict[str, Any], message: str) -> Change:
    field = f"{data['namespace']}.{data['name']}.v{data['version']}"
    served_name = AdapterName(data["namespace"], data["name"]).served_name(data["version"])
    record = view.versions.get(field)
    if kind is Kind.VERSION_RETIRED:
        view.versions.pop(field, None)
        view.directed.pop(field, None)
        return Change(kind, served_name, record, message=message)
    direction = Direction(tuple(data["nodes"]), data["until_s"])
    if direction.nodes:
        view.directed[field] = direction
    else:
        view.directed.pop(field, None)
    return Change(kind, served_name, record, message=message, direction=direction)


def difference(old: CatalogView, new: CatalogView) -> Update:
    """The net difference from `old` to `new`, versions before the aliases that point at them."""
    changes: list[Change] = []
    for name, record in new.versions.items():
        before = old.versions.get(name)
        if before is None or before.digest != record.digest or before.lora_int_id != record.lora_int_id:
            changes.append(Change(Kind.VERSION_PUBLISHED, record.served_name, record))
        elif before != record:
            changes.append(Change(Kind.LABELS_CHANGED, record.served_name, record))
    changes.extend(
        Change(Kind.ALIAS_MOVED, alias, new.resolve(alias), target)
        for alias, target in new.aliases.items()
        if old.aliases.get(alias) != target
    )
    changes.extend(_redirected(old, new))
    return Update(tuple(changes), new.cursor, reset=True, gone=tuple(_gone(old, new)))


def _redirected(old: CatalogView, new: CatalogView) -> Iterator[Change]:
    for name, record in new.versions.items():
        direction = new.directed.get(name)
        if direction != old.directed.get(name):
            kind = Kind.VERSION_DIRECTED
            yield Change(kind, record.served_name, record, direction=direction or Direction())


def _gone(old: CatalogView, new: CatalogView) -> Iterator[str]:
    for name, record in old.versions.items():
        if name not in new.versions:
            yield record.served_name
    yield from (alias for alias in old.aliases if alias not in new.aliases)
