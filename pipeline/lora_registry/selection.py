"""Selectors: which versions somebody wants, said by their namespace, adapters, labels and aliases; and what a node is
to hold.

    namespace=team,tier=gold,env!=test          terms that all hold; a word alone asks for a label of any value
    name=support-bot,name=sql-*,alias=stable    several names, or several aliases, are alternatives
    alias=@own                                  what each adapter's own alias points at; @any: what any alias does
    label:name=x                                a label that is called like one of the other terms
    tier==gold                                  the same as tier=gold, as Kubernetes writes it
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from lora_registry.announcements import CatalogView
from lora_registry.catalog import ANY_ALIAS, OWN_ALIAS
from lora_registry.catalog_records import VersionRecord
from lora_registry.errors import InvalidName, Rejected
from lora_registry.events import Key, Value, describe_validation_error
from lora_registry.names import AdapterName, check_word

_TERM = re.compile(r"(label:)?([^!=:\s]+)(?:(==|!?=)(.*))?", re.DOTALL)
_PATTERN = r"^[a-z0-9*][a-z0-9_*-]{0,95}$"
Pattern = Annotated[str, StringConstraints(pattern=_PATTERN)]
Alias = Annotated[str, StringConstraints(pattern=r"^(@own|@any|[a-z0-9][a-z0-9_-]{0,95})$")]


class Selector(BaseModel):
    """What versions somebody wants; an empty one means all.

    Attributes:
        namespace: tenant; empty: any.
        names: adapters' names, with `*` for any characters; one of them has to match.
        aliases: aliases of which one has to point at the version; `@own` is each adapter's own, `@any` any at all.
            Empty: whoever reads the selector says what that means; nodes take it for `@any`.
        labels: labels that it must carry, with these values.
        not_labels: labels that it must not carry with these values.
        has_labels: labels that it must carry, with any value.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    namespace: str = ""
    names: tuple[Pattern, ...] = ()
    aliases: tuple[Alias, ...] = ()
    labels: dict[Key, Value] = {}
    not_labels: dict[Key, Value] = {}
    has_labels: tuple[Key, ...] = ()

    def matches(self, record: VersionRecord) -> bool:
        """Whether it wants the version, whatever aliases point at it."""
        return (
            self.namespace in ("", record.namespace)
            and (not self.names or any(fnmatchcase(record.name, pattern) for pattern in self.names))
            and self.labels.items() <= record.labels.items()
            and self.not_labels.items().isdisjoint(record.labels.items())
            and record.labels.keys() >= set(self.has_labels)
        )

    def follows(self, adapter: AdapterName, alias: str, *, unsaid: str = ANY_ALIAS) -> bool:
        """Whether it wants what this alias of an adapter points at; `unsaid` stands for no aliases at all."""
        own = {OWN_ALIAS} if alias == adapter.name else set()
        return not {ANY_ALIAS, alias, *own}.isdisjoint(self.aliases or (unsaid,))

    def narrowed(
        self, *, namespace: str | None = None, aliases: Iterable[str] = (), labels: Mapping[str, str] | None = None
    ) -> Selector:
        """The selector with more terms.

        Raises:
            InvalidName: the namespace or an alias can be none.
            Rejected: a label is not legal, or a term contradicts another.
        """
        namespaces = [self.namespace] if self.namespace else []
        fields: dict[str, object] = {
            "namespace": _one_namespace([*namespaces, *([] if namespace is None else [namespace])]),
            "aliases": tuple(dict.fromkeys([*self.aliases, *map(check_alias, aliases)])),
            "labels": _by_key([*self.labels.items(), *(labels or {}).items()], "="),
        }
        return _make(**(self.model_dump() | fields))

    def __str__(self) -> str:
        terms = [f"namespace={self.namespace}"] if self.namespace else []
        terms += [f"name={name}" for name in self.names] + [f"alias={alias}" for alias in self.aliases]
        terms += [
            f"{_label(key)}{'==' if value.startswith('=') else '='}{value}"
            for key, value in sorted(self.labels.items())
        ]
        terms += [f"{_label(key)}!={value}" for key, value in sorted(self.not_labels.items())]
        return ",".join(terms + [_label(key) for key in self.has_labels])


def _label(key: str) -> str:
    return f"label:{key}" if key in ("namespace", "name", "alias", "collection") else key


def parse_selector(text: str) -> Selector:
    """Parse the terms of a selector, separated by commas.

    Raises:
        InvalidName: a namespace, a name or an alias can be none.
        Rejected: a term is none, or contradicts another; the message names it.
    """
    namespaces: list[str] = []
    names: list[str] = []
    aliases: list[str] = []
    labels: list[tuple[str, str]] = []
    not_labels: list[tuple[str, str]] = []
    has_labels: list[str] = []
    for term in filter(None, (part.strip() for part in text.split(","))):
        read = _TERM.fullmatch(term)
        if read is None:
            raise Rejected(f"{term[:100]!r} is no term of a selector", remedy=_REMEDY)
        is_label, key, operator, value = read[1], read[2], read[3] and read[3].replace("==", "="), read[4] or ""
        if key == "collection" and not is_label:
            raise Rejected(f"{term[:100]!r}: a collection is no term of a selector", remedy=_NO_COLLECTIONS)
        listed = {"namespace": namespaces, "name": names, "alias": aliases}.get(key) if not is_label else None
        if listed is not None:
            if operator != "=":
                raise Rejected(f"{term[:100]!r}: {key} takes only =", remedy=_REMEDY)
            listed.append(value)
        elif operator is None:
            has_labels.append(key)
        else:
            (labels if operator == "=" else not_labels).append((key, value))
    return _make(
        namespace=_one_namespace(namespaces),
        names=tuple(map(_check_pattern, names)),
        aliases=tuple(map(check_alias, aliases)),
        labels=_by_key(labels, "="),
        not_labels=_by_key(not_labels, "!="),
        has_labels=tuple(has_labels),
    )


def check_alias(alias: str) -> str:
    """Return `alias` if it can be asked for: a legal alias, `@own` or `@any`.

    Raises:
        InvalidName: it cannot.
    """
    return alias if alias in (OWN_ALIAS, ANY_ALIAS) else check_word(alias, what="alias")


def _check_pattern(pattern: str) -> str:
    if "*" not in pattern:
        return check_word(pattern)
    if not re.fullmatch(_PATTERN, pattern):
        raise InvalidName(f"name {pattern[:100]!r} matches no name: it takes a-z, 0-9, '_', '-' and '*'")
    return pattern


def _one_namespace(namespaces: Iterable[str]) -> str:
    return _by_key((("namespace", check_word(each, what="namespace")) for each in namespaces), "=").get("namespace", "")


def _by_key(terms: Iterable[tuple[str, str]], operator: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in terms:
        if found.setdefault(key, value) != value:
            raise _contrary(f"{key}{operator}{found[key]}", f"{key}{operator}{value}")
    return found


def _make(**fields: object) -> Selector:
    try:
        selector = Selector.model_validate(fields)
    except ValidationError as error:
        raise Rejected(describe_validation_error(error), remedy=_REMEDY) from error
    for key, value in sorted(selector.labels.items() & selector.not_labels.items()):
        raise _contrary(f"{key}={value}", f"{key}!={value}")
    return selector


def _contrary(*terms: str) -> Rejected:
    named = " and ".join(term[:100] for term in terms)
    return Rejected(f"a selector cannot have both {named}", remedy="Keep one of the two terms.")


_NO_COLLECTIONS = (
    "Write the terms that `lora-registry collection list` shows of it; a label of that name is label:collection=…"
)
_REMEDY = "Write terms such as namespace=team,tier=gold,env!=test,alias=stable with commas between."


@dataclass(frozen=True)
class Wanted:
    """A version that a node is to hold.

    Attributes:
        record: the version.
        aliases: aliases `namespace.name@alias` that point at it and that the node follows, in order.
        directed: whether it is told to hold it for a while besides.
    """

    record: VersionRecord
    aliases: tuple[str, ...] = ()
    directed: bool = False


def wanted_by(
    selector: Selector,
    node_id: str,
    view: CatalogView,
    *,
    now_s: float,
) -> Iterator[Wanted]:
    """What a node is to hold: the targets of the aliases it follows that match its selector, and what it is told to.

    Args:
        selector: the node's. node_id: its id.
        view: the catalog of its base model.
        now_s: the server's clock, in seconds since 1970-01-01.
    """
    aliases: dict[str, list[str]] = {}
    for alias in sorted(view.aliases):
        aliases.setdefault(view.version_of(alias), []).append(alias)
    for field in sorted(aliases.keys() | view.directed.keys()):
        record = view.versions.get(field)
        if record is None:
            continue
        followed = followed_aliases(selector, record, [each.partition("@")[2] for each in aliases.get(field, ())])
        direction = view.directed.get(field)
        directed = direction is not None and direction.holds(node_id, now_s=now_s)
        if followed or directed:
            prefix = f"{record.namespace}.{record.name}@"
            yield Wanted(record, tuple(prefix + alias for alias in followed), directed)


def followed_aliases(selector: Selector, record: VersionRecord, aliases: Collection[str]) -> list[str]:
    """Of the aliases that point at a version those that a selector follows; none if it does not want the version."""
    if not selector.matches(record):
        return []
    return sorted(alias for alias in aliases if selector.follows(record.adapter, alias))
