"""What people do with published versions: retire, label, roll back, and have nodes hold one for a while."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import redis
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_registry import scripts
from lora_registry.catalog import MAX_BY, Catalog
from lora_registry.catalog_records import AliasTarget, MovedBy, VersionRecord
from lora_registry.connection import command
from lora_registry.errors import Conflict, NotFound, Rejected, ServerNotAdmitted
from lora_registry.events import Key, Value, describe_validation_error
from lora_registry.keys import Keys
from lora_registry.names import DEFAULT_NAMESPACE, AdapterName, Reference
from lora_registry.settings import Settings

MAX_LABELS = 32
_LABELS = (
    f"Give at most {MAX_LABELS} labels, with keys of at most 63 letters, digits, '.', '_', '/' and '-' "
    "and values of at most 256 characters."
)
_LIST_ALIASES = "List the adapter's aliases with `lora-registry show NAME`."
MAX_DIRECTION_S = 7 * 86_400.0
_AT_ONCE = 500
"""Versions that one script retires: it keeps the server for some ten milliseconds."""
_REMEDIES = {
    "aliased": "Move the alias to another version first, or retire the whole adapter.",
    "earlier": "Wait until that is decided, or decide it yourself with `alias set`.",
}


@dataclass(frozen=True)
class AliasMove:
    """One entry of an alias's history.

    Attributes:
        before: version it pointed at; None: at none.
        after: version it points at since; None: it was removed.
        mode: `follow` or `pinned`, since then.
        how: what moved it.
        by: who; for `follow` the registration.
        at_s: when, in seconds since 1970-01-01.
    """

    before: int | None
    after: int | None
    mode: str
    how: MovedBy
    by: str
    at_s: float

    @classmethod
    def parse(cls, stored: str) -> AliasMove:
        """Parse the stored JSON."""
        entry = json.loads(stored)
        return cls(entry["from"], entry["to"], entry["mode"], MovedBy(entry["how"]), entry["by"], entry["at_us"] / 1e6)


class _Labels(BaseModel):
    model_config = ConfigDict(frozen=True)

    labels: Annotated[dict[Key, Value], Field(max_length=MAX_LABELS)]


def version_before(history: Sequence[AliasMove]) -> int | None:
    """The version that a rollback goes to: where the alias pointed before its last move that was not rolled back.

    What was rolled back, by people or by a promotion that failed, is gone for good, also where the history is too short
    to have the move that it undid.

    Args:
        history: moves of the alias, newest first.
    """
    earlier: list[int | None] = []
    for move in reversed(history):
        if move.before == move.after:
            continue
        if move.how is MovedBy.ROLLBACK:
            while earlier and earlier.pop() != move.after:
                pass
        else:
            earlier.append(move.before)
    return next((version for version in reversed(earlier) if version is not None), None)


class Lifecycle:
    """Typed access to changes of the catalog that no registration makes.

    Args:
        client: connection to the registry's server.
        settings: the registry's settings.
    """

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._settings = settings
        self._keys = Keys(settings.key_prefix)
        self.catalog = Catalog(client, settings)

    def retire_version(self, adapter: AdapterName, version: int) -> bool:
        """Retire a version: nodes unload it, and its artifact may be collected. Its number and id stay its own.

        Returns:
            Whether it was published until now.

        Raises:
            NotFound: there never was such a version.
            Conflict: an alias points at it, or goes back to it if its promotion fails.
            ServerNotAdmitted: the server is new and no dispatcher has admitted it.
            RedisUnavailable: the server is out of reach.
        """
        answer = self._retire(adapter, str(version), "", "")
        if answer[0] == "unknown":
            raise NotFound(f"{adapter} has no version {version}")
        if answer[0] in ("aliased", "earlier"):
            named = ", ".join(sorted(f"{adapter}@{alias}" for alias in answer[1:]))
            how = "points at" if answer[0] == "aliased" else "goes back to if its promotion fails"
            raise Conflict(f"{adapter.served_name(version)} is what {named} {how}", remedy=_REMEDIES[answer[0]])
        return bool(answer[1])

    def retire_adapter(self, adapter: AdapterName, *, by: str = "") -> int:
        """Retire all versions that an adapter has now, and remove the aliases that point at them.

        Returns:
            How many versions were retired.

        Raises:
            NotFound: the adapter has no published version.
            ServerNotAdmitted: the server is new and no dispatcher has admitted it.
            RedisUnavailable: the server is out of reach.
        """
        retired, last, left = 0, "", 1
        while left:
            _, count, last, left = self._retire(adapter, "", last, by)
            retired += count
        return retired

    def _retire(self, adapter: AdapterName, version: str, last: str, by: str) -> list[Any]:
        base = self._base_of(adapter)
        return self._call(
            "retire",
            keys=[self._keys.adapter(adapter), self._keys.versions(base), self._keys.aliases(base)],
            args=[
                *self._named(base, adapter),
                version,
                last,
                _AT_ONCE,
                self._settings.log_length,
                by[:MAX_BY],
                self._settings.retention_s,
            ],
        )

    def label(
        self, reference: Reference, labels: Mapping[str, str], *, drop: Collection[str] = ()
    ) -> tuple[VersionRecord, bool]:
        """Set labels of a version and drop others.

        Args:
            reference: the version; a bare adapter means what its own alias points at.
            labels: labels to set. drop: names of labels to drop.

        Returns:
            The version as it is now, and whether that is a change.

        Raises:
            Rejected: a label is not legal, or there would be more than 32.
            NotFound: there is no such version.
            ServerNotAdmitted: the server is new and no dispatcher has admitted it.
            RedisUnavailable: the server is out of reach.
        """
        try:
            _Labels(labels=dict(labels))
        except ValidationError as error:
            raise Rejected(describe_validation_error(error), remedy=_LABELS) from error
        record = self.catalog.version(reference)
        keys, base = self._keys, record.base_model
        answer = self._call(
            "label",
            keys=[keys.versions(base)],
            args=[
                keys.prefix,
                base,
                record.field,
                json.dumps(dict(labels)),
                MAX_LABELS,
                self._settings.log_length,
                *drop,
            ],
        )
        if answer[0] == "unknown":
            raise NotFound(f"{record.served_name} was retired meanwhile")
        if answer[0] == "too-many":
            raise Rejected(f"{record.served_name} would have more than {MAX_LABELS} labels", remedy=_LABELS)
        return VersionRecord.model_validate_json(answer[1]), answer[0] == "changed"

    def history(self, adapter: AdapterName, alias: str) -> list[AliasMove]:
        """The last 100 moves of an alias, newest first; for a while also of one that was removed.

        Raises:
            NotFound: there is no such adapter or alias, and nothing is known of one that was.
            RedisUnavailable: the server is out of reach.
        """
        stored = command(self._redis, "LRANGE", self._keys.moves(adapter, alias), 0, -1)
        if not stored and self.target(adapter, alias) is None:
            raise NotFound(f"{adapter} has no alias {alias!r}", remedy=_LIST_ALIASES)
        return [AliasMove.parse(each) for each in stored]

    def rollback(self, adapter: AdapterName, alias: str, *, by: str = "") -> VersionRecord:
        """Point an alias at the version it pointed at before, and pin it there; again goes further back.

        Returns:
            The version it points at now.

        Raises:
            NotFound: there is no such alias, it never pointed at another version, or that one was retired.
            Conflict: somebody else moved it meanwhile.
            ServerNotAdmitted: the server is new and no dispatcher has admitted it.
            RedisUnavailable: the server is out of reach.
        """
        current = self.target(adapter, alias)
        if current is None:
            raise NotFound(f"{adapter} has no alias {alias!r}", remedy=_LIST_ALIASES)
        before = version_before(self.history(adapter, alias))
        if before is None:
            raise NotFound(f"{adapter}@{alias} never pointed at an earlier version", remedy="Use `alias set`.")
        try:
            moved = {"expect": current.version, "by": by, "how": MovedBy.ROLLBACK}
            return self.catalog.move_alias(adapter, alias, before, **moved)  # type: ignore[arg-type]
        except NotFound as error:
            raise NotFound(
                f"{adapter.served_name(before)}, at which {adapter}@{alias} pointed before, was retired",
                remedy="Choose another version with `alias set`, or register its bytes again.",
            ) from error

    def target(self, adapter: AdapterName, alias: str) -> AliasTarget | None:
        """What an alias points at; None if there is no such alias.

        Raises:
            NotFound: the adapter has no published version.
            RedisUnavailable: the server is out of reach.
        """
        stored = command(
            self._redis, "HGET", self._keys.aliases(self._base_of(adapter)), f"{adapter.qualified}@{alias}"
        )
        return AliasTarget.parse(stored) if stored else None

    def remove_alias(
        self,
        adapter: AdapterName,
        alias: str,
        *,
        expect: int | None = None,
        by: str = "",
        how: MovedBy = MovedBy.SET,
        takes_back: str = "",
    ) -> int:
        """Remove an alias; the version it pointed at stays.

        Args:
            adapter: the adapter. alias: the alias.
            expect: version that it must point at now; None removes it in any case.
            by: who removes it, for its history. how: what it is removed by, for its history.
            takes_back: token of the open promotion that this takes back.

        Returns:
            The version it pointed at.

        Raises:
            Rejected: it is the adapter's own: that one goes with the adapter, or with the promotion that made it.
            NotFound: there is no such alias.
            Conflict: it does not point at what was expected, or the promotion is no longer open.
            ServerNotAdmitted: the server is new and no dispatcher has admitted it.
            RedisUnavailable: the server is out of reach.
        """
        if alias == adapter.name and not takes_back:
            raise Rejected(f"{alias!r} is the adapter's own alias", remedy="Retire the adapter, or move the alias.")
        base = self._base_of(adapter)
        answer = self._call(
            "remove_alias",
            keys=[self._keys.adapter(adapter), self._keys.aliases(base)],
            args=[
                *self._named(base, adapter),
                alias,
                "" if expect is None else expect,
                self._settings.log_length,
                by[:MAX_BY],
                how,
                self._settings.retention_s,
                takes_back,
            ],
        )
        if answer[0] == "unknown":
            raise NotFound(f"{adapter} has no alias {alias!r}", remedy=_LIST_ALIASES)
        if answer[0] == "conflict":
            raise Conflict(f"{adapter}@{alias} points at {answer[1]}, not at {expect}", current_version=int(answer[1]))
        return int(answer[1])

    def direct(self, record: VersionRecord, nodes: Iterable[str], *, token: str, for_s: float) -> float:
        """Tell nodes to hold a version for a while although no alias they follow points at it; no nodes: it is over.

        Args:
            record: the version. nodes: ids of the nodes.
            token: whose direction it is: nobody else's ends it, and while it lasts nobody else has one of the version.
            for_s: for how long.

        Returns:
            When that was, by the server's clock, in seconds since 1970-01-01.

        Raises:
            Rejected: that is no time, or longer than a week.
            NotFound: the version was retired.
            Conflict: nodes are told to hold it at this time, by somebody else.
            ServerNotAdmitted: the server is new and no dispatcher has admitted it.
            RedisUnavailable: the server is out of reach.
        """
        if not 0 <= for_s <= MAX_DIRECTION_S:
            raise Rejected(
                f"{for_s:g} s is no time for which nodes can be told to hold a version",
                remedy="Take one between nothing and a week.",
            )
        base, adapter = record.base_model, record.adapter
        answer = self._call(
            "direct",
            keys=[self._keys.versions(base), self._keys.directed(base)],
            args=[*self._named(base, adapter), record.version, token, for_s, self._settings.log_length, *nodes],
        )
        if answer[0] == "unknown":
            raise NotFound(f"{record.served_name} was retired")
        if answer[0] == "taken":
            raise Conflict(
                f"{record.served_name} is being tried on {answer[1][:200]}, for {answer[2]} s more at the longest",
                remedy="Wait until that promotion has ended, and promote it again.",
            )
        return float(answer[1]) / 1e6

    def set_keep_last(self, number: int | None, *, namespace: str = DEFAULT_NAMESPACE, name: str = "") -> None:
        """Say how many versions are kept of an adapter, or of each of a namespace; it counts from the next publication.

        Args:
            number: how many, 0 for all; None takes back what was said.
            namespace: the namespace. name: the adapter in it; empty: all that have no number of their own.

        Raises:
            NotFound: the adapter has no published version; what was said of it may be taken back all the same.
            RedisUnavailable: the server is out of reach.
        """
        field = f"{namespace}.{name}" if name else namespace
        if number is None:
            command(self._redis, "HDEL", self._keys.keep, field)
        else:
            self._check_published(namespace, name)
            command(self._redis, "HSET", self._keys.keep, field, number)

    def keep_last_of(self, namespace: str, name: str = "") -> int:
        """How many versions are kept of an adapter (or, without its name, of each of a namespace that has no number
        of its own), besides those that an alias points at; 0: all.

        Raises:
            NotFound: the adapter has no published version.
            RedisUnavailable: the server is out of reach.
        """
        self._check_published(namespace, name)
        said = command(self._redis, "HMGET", self._keys.keep, f"{namespace}.{name}", namespace)
        return next((int(number) for number in said if number is not None), self._settings.keep_last)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _check_published(self, namespace: str, name: str) -> None:
        if name and self.catalog.base_of(AdapterName(namespace, name)) is None:
            raise NotFound(
                f"no adapter {str(AdapterName(namespace, name))!r} is published",
                remedy=f"Register it first, or say it of its namespace: `lora-registry keep-last {namespace}. N`.",
            )

    def _base_of(self, adapter: AdapterName) -> str:
        base = self.catalog.base_of(adapter)
        if base is None:
            raise NotFound(f"no adapter {str(adapter)!r} is published")
        return base

    def _named(self, base: str, adapter: AdapterName) -> list[str]:
        return [self._keys.prefix, base, adapter.namespace, adapter.name]

    def _call(self, name: str, *, keys: Sequence[str], args: Sequence[scripts.Argument]) -> list[Any]:
        answer: list[Any] = scripts.call(self._redis, name, keys=keys, args=args)
        if answer[0] == "not-admitted":
            raise ServerNotAdmitted
        return answer
