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

from lora_registry.catalog import AliasMode, AliasTarget, VersionRecord
from lora_registry.errors import AnnouncementGap

_TYPE_PREFIX = "io.lora-registry."
_TYPE_SUFFIX = ".v1"


class Kind(StrEnum):
    """What an announcement is about. Kinds added later are skipped by subscribers that do not know them."""

    VERSION_PUBLISHED = "version.published"
    LABELS_CHANGED = "version.labels-changed"
    ALIAS_MOVED = "alias.moved"


@dataclass(frozen=True)
class Cursor:
    """How far a subscriber has come: the server's generation and the sequence of the last change it took.

    Sequences of different generations cannot be compared: another generation means resync.
    """

    generation: str = ""
    sequence: int = 0


@dataclass(frozen=True)
class Change:
    """One change of the catalog of a base model.

    Attributes:
        kind: what changed.
        subject: served name of the version, or `namespace.name@alias`.
        record: the version that was published, whose labels changed, or that the alias points at; None if the view
            was begun at a cursor without its catalog and the version is older than that.
        target: what the alias points at; None if the change is not about an alias.
        message: the CloudEvents message; empty if the change is part of a reset.
    """

    kind: Kind
    subject: str
    record: VersionRecord | None
    target: AliasTarget | None = None
    message: str = field(default="", repr=False)


@dataclass(frozen=True)
class Update:
    """What a subscriber hands to its caller: changes in order, and the cursor to keep once they are done.

    Attributes:
        changes: changes to apply; empty if only the cursor moved.
        cursor: how far the caller is after them.
        reset: whether they are the net difference to a snapshot instead of announcements one by one.
        gone: served names and aliases that the caller had and the snapshot has not (after a restore from a backup).
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
    """

    cursor: Cursor = Cursor()
    versions: dict[str, VersionRecord] = field(default_factory=dict)
    aliases: dict[str, AliasTarget] = field(default_factory=dict)

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
    if kind is Kind.ALIAS_MOVED:
        alias = f"{data['namespace']}.{data['name']}@{data['alias']}"
        target = view.aliases[alias] = AliasTarget(data["version"], AliasMode(data["mode"]))
        return Change(kind, alias, view.versions.get(view.version_of(alias)), target, message)
    record = VersionRecord.model_validate(data)
    view.versions[record.field] = record
    return Change(kind, record.served_name, record, message=message)


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
    return Update(tuple(changes), new.cursor, reset=True, gone=tuple(_gone(old, new)))


def _gone(old: CatalogView, new: CatalogView) -> Iterator[str]:
    for name, record in old.versions.items():
        if name not in new.versions:
            yield record.served_name
    yield from (alias for alias in old.aliases if alias not in new.aliases)
