"""The catalog: published versions and aliases. What is here was validated, and never changes its bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import redis

from lora_registry import scripts
from lora_registry.bases import BaseModels
from lora_registry.catalog_records import AliasTarget, MovedBy, VersionRecord
from lora_registry.connection import command, redis_errors
from lora_registry.errors import Conflict, LeaseLost, NotFound, ServerNotAdmitted
from lora_registry.keys import Keys
from lora_registry.ledger import Lease
from lora_registry.names import AdapterName, Reference
from lora_registry.namespaces import over_quota
from lora_registry.settings import Settings

_PAGE = 1000
MAX_BY = 100
"""Characters that are kept of who moved an alias."""
OWN_ALIAS = "@own"
ANY_ALIAS = "@any"
"""In a selection: each adapter's own alias, and any at all. No alias can be called so."""


@dataclass(frozen=True)
class Registered:
    """What is registered already of what a request names.

    Attributes:
        base_known: whether the base model is registered.
        name_is_base: whether the adapter is called like a base model.
        owner: base model that the adapter belongs to; None before its first version.
    """

    base_known: bool
    name_is_base: bool
    owner: str | None


@dataclass(frozen=True)
class Opening:
    """A promotion that a move opens.

    Attributes:
        token: tells it from every other promotion.
        lease_s: how long its promoter counts as alive without a sign.
        length_s: how long it may take until it is decided.
        failures_since_s: failures that nodes said since then count, in seconds since 1970-01-01.
    """

    token: str
    lease_s: float
    length_s: float
    failures_since_s: float


class Published(StrEnum):
    """What the publish script answered."""

    PUBLISHED = "published"
    UNCHANGED = "unchanged"
    SUPERSEDED = "superseded"
    READMIT = "readmit"
    BASE_CONFLICT = "base-conflict"
    TAKEN = "taken"
    REMOVING = "removing"


class Catalog:
    """Typed access to what is published.

    Attributes:
        bases: the base models that it is published for.
    """

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._settings = settings
        self._keys = Keys(settings.key_prefix)
        self.bases = BaseModels(client, self._keys)

    def publish(self, lease: Lease, record: VersionRecord) -> Published:
        """Publish `record`, move the adapter's own alias by the rule, announce, and end the registration: one script.

        Returns:
            The outcome, or why there is none: READMIT (the id was issued under an earlier admission: allocate again),
            BASE_CONFLICT (the adapter belongs to another base), TAKEN (the version number is another's), REMOVING (a
            garbage collection is removing the artifact).

        Raises:
            Rejected: a quota of the namespace is used up, with the finding.
            LeaseLost: another worker owns the registration.
            ServerNotAdmitted: the server is new and no dispatcher has admitted it.
            RedisUnavailable: the server is out of reach.
        """
        keys = self._keys
        answer = scripts.call(
            self._redis,
            "publish",
            keys=[
                keys.registration(lease.registration.id),
                keys.adapter(record.adapter),
                keys.versions(record.base_model),
                keys.aliases(record.base_model),
            ],
            args=[
                keys.prefix,
                lease.registration.id,
                lease.epoch,
                lease.owner,
                record.model_dump_json(),
                self._settings.log_length,
                self._settings.retention_s,
                self._settings.keep_last,
            ],
        )
        if answer[0] == "lost":
            raise LeaseLost
        if answer[0] == "not-admitted":
            raise ServerNotAdmitted
        if answer[0] == "quota":
            raise over_quota(record.namespace, *answer[1:])
        return Published(answer[0])

    def base_of(self, adapter: AdapterName) -> str | None:
        """Name of the base model that the adapter belongs to; None before its first version.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        base: str | None = command(self._redis, "HGET", self._keys.adapters, adapter.qualified)
        return base

    def adapters(self) -> dict[AdapterName, str]:
        """All adapters with a published version → their base model.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        stored = command(self._redis, "HGETALL", self._keys.adapters)
        return {AdapterName(*name.split(".")): base for name, base in stored.items()}

    def versions(self, adapter: AdapterName) -> list[VersionRecord]:
        """Published versions of the adapter, oldest first.

        Raises:
            NotFound: the adapter has no published version.
            RedisUnavailable: the server is out of reach.
        """
        base = self._base_or_raise(adapter)
        numbers = command(self._redis, "ZRANGE", self._keys.numbers_published(adapter), 0, -1)
        fields = [f"{adapter.qualified}.v{number}" for number in numbers]
        stored = command(self._redis, "HMGET", self._keys.versions(base), *fields) if fields else []
        return [VersionRecord.model_validate_json(record) for record in stored if record]

    def version(self, reference: Reference) -> VersionRecord:
        """The version that `reference` names; a bare adapter means what its own alias points at.

        Raises:
            NotFound: no such adapter, version or alias.
            RedisUnavailable: the server is out of reach.
        """
        adapter = reference.adapter
        base = self._base_or_raise(adapter)
        number = reference.version
        if number is None:
            alias = reference.alias or adapter.name
            target = command(self._redis, "HGET", self._keys.aliases(base), f"{adapter.qualified}@{alias}")
            if target is None:
                raise NotFound(f"{adapter} has no alias {alias!r}")
            number = AliasTarget.parse(target).version
        stored = command(self._redis, "HGET", self._keys.versions(base), f"{adapter.qualified}.v{number}")
        if stored is None:
            raise self._missing(adapter, base, number)
        return VersionRecord.model_validate_json(stored)

    def adapter_count(self) -> int:
        """Number of adapters with a published version.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        return int(command(self._redis, "HLEN", self._keys.adapters))

    def version_numbers(self, adapter: AdapterName) -> list[int]:
        """Numbers of the adapter's published versions, oldest first.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        return [int(number) for number in command(self._redis, "ZRANGE", self._keys.numbers_published(adapter), 0, -1)]

    def current(self, adapters: Mapping[AdapterName, str]) -> dict[AdapterName, VersionRecord | None]:
        """What each adapter's own alias points at, in two round trips; None where people have not set it.

        Args:
            adapters: adapter → its base model.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        keys = self._keys
        with redis_errors(), self._redis.pipeline(transaction=False) as pipe:
            for adapter, base in adapters.items():
                pipe.hget(keys.aliases(base), f"{adapter.qualified}@{adapter.name}")
            targets = pipe.execute()
            for (adapter, base), target in zip(adapters.items(), targets, strict=True):
                number = AliasTarget.parse(target).version if target else ""
                pipe.hget(keys.versions(base), f"{adapter.qualified}.v{number}")
            stored = pipe.execute()
        return {
            adapter: VersionRecord.model_validate_json(record) if record else None
            for adapter, record in zip(adapters, stored, strict=True)
        }

    def aliases(self, adapter: AdapterName) -> dict[str, AliasTarget]:
        """Aliases of the adapter, its own name among them once something is published under it.

        Raises:
            NotFound: the adapter has no published version.
            RedisUnavailable: the server is out of reach.
        """
        base = self._base_or_raise(adapter)
        known = command(self._redis, "HKEYS", self._keys.adapter(adapter))
        names = [field.partition(":")[2] for field in known if field.startswith("alias:")]
        fields = [f"{adapter.qualified}@{name}" for name in names]
        stored = command(self._redis, "HMGET", self._keys.aliases(base), *fields) if fields else []
        return {name: AliasTarget.parse(target) for name, target in zip(names, stored, strict=True) if target}

    def select(
        self,
        *,
        base_model: str | None = None,
        namespace: str | None = None,
        labels: Mapping[str, str] | None = None,
        alias: str | None = None,
    ) -> Iterator[VersionRecord]:
        """Versions that match every selector given, page by page, in no particular order.

        Args:
            base_model: base model that they are for.
            namespace: tenant. labels: labels that they carry, with these values.
            alias: only versions that this alias points at; `OWN_ALIAS` for each adapter's own, `ANY_ALIAS` for any.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        wanted = (labels or {}).items()
        bases = [base_model] if base_model else sorted(set(self.adapters().values()))
        for base in bases:
            pointed_at = self._pointed_at(base, alias) if alias else None
            with redis_errors():
                for field, stored in self._redis.hscan_iter(self._keys.versions(base), count=_PAGE):
                    if pointed_at is not None and field not in pointed_at:
                        continue
                    record = VersionRecord.model_validate_json(stored)
                    if namespace in (None, record.namespace) and wanted <= record.labels.items():
                        yield record

    def _pointed_at(self, base: str, alias: str) -> set[str]:
        """Versions, as `namespace.name.vN`, that the alias points at."""
        found: set[str] = set()
        with redis_errors():
            for field, stored in self._redis.hscan_iter(self._keys.aliases(base), count=_PAGE):
                adapter, _, name = field.partition("@")
                if alias in (ANY_ALIAS, name) or (alias == OWN_ALIAS and name == adapter.partition(".")[2]):
                    found.add(f"{adapter}.v{AliasTarget.parse(stored).version}")
        return found

    def move_alias(
        self,
        adapter: AdapterName,
        alias: str,
        version: int | None,
        *,
        expect: int | None = None,
        by: str = "",
        how: MovedBy | None = None,
        opens: Opening | None = None,
        takes_back: str = "",
    ) -> VersionRecord:
        """Point `alias` at `version` and pin it there; None lets it follow the newest version again.

        Args:
            adapter: adapter that the alias belongs to.
            alias: the alias; the adapter's own is its name.
            version: version to point at, or None.
            expect: version it must point at now, 0 for none; None moves it in any case.
            by: who moves it, for its history.
            how: what it is moved by, for its history.
            opens: the promotion that this move opens.
            takes_back: token of the open promotion that this move takes back; the mode is what it was then, too.

        Returns:
            The version it points at now.

        Raises:
            NotFound: the adapter, or that version of it, is not published.
            Conflict: the alias does not point at what was expected, the promotion is no longer open, or another one is.
            ServerNotAdmitted: the server is new and no dispatcher has admitted it.
            RedisUnavailable: the server is out of reach.
        """
        base, keys = self._base_or_raise(adapter), self._keys
        answer = scripts.call(
            self._redis,
            "move_alias",
            keys=[keys.adapter(adapter), keys.aliases(base)],
            args=[
                keys.prefix,
                base,
                adapter.namespace,
                adapter.name,
                alias,
                "" if version is None else version,
                "" if expect is None else expect,
                self._settings.log_length,
                by[:MAX_BY],
                how or (MovedBy.FOLLOW if version is None else MovedBy.SET),
                *self._promotion(opens, takes_back),
            ],
        )
        if answer[0] == "not-admitted":
            raise ServerNotAdmitted
        if answer[0] == "unknown":
            raise self._missing(adapter, base, version)
        if answer[0] == "promoted":
            tried, who = adapter.served_name(int(answer[1])), answer[2] or "somebody"
            raise Conflict(
                f"{adapter}@{alias} is being promoted to {tried} by {who}",
                remedy="Wait until that is decided, or decide it yourself with `alias set`.",
            )
        if answer[0] == "conflict":
            message = f"{adapter}@{alias} points at {answer[1] or 'nothing'}, not at {expect or 'nothing'}"
            raise Conflict(message, current_version=int(answer[1] or 0))
        return self.version(Reference(adapter, version=int(answer[1])))

    def _promotion(self, opens: Opening | None, takes_back: str) -> list[str | int]:
        """What a move does to an open promotion, as the script takes it."""
        if opens is None:
            return ["back" if takes_back else "", takes_back]
        lease_us, length_us = int(opens.lease_s * 1e6), int(opens.length_s * 1e6)
        kept_s = int(opens.length_s) + self._settings.retention_s
        return ["open", opens.token, lease_us, length_us, int(opens.failures_since_s * 1e6), kept_s]

    def registered(self, adapter: AdapterName, base_model: str) -> Registered:
        """What the allocate stage must know about a request, in one round trip.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        with redis_errors(), self._redis.pipeline(transaction=False) as pipe:
            pipe.hexists(self._keys.bases, base_model)
            pipe.hexists(self._keys.bases, str(adapter))
            pipe.hget(self._keys.adapters, adapter.qualified)
            base_known, name_is_base, owner = pipe.execute()
        return Registered(bool(base_known), bool(name_is_base), owner)

    def is_current(self, adapter: AdapterName, base_model: str, digest: str) -> bool:
        """Whether bytes of this digest would end as unchanged if they were published now, as the script has it.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        with redis_errors(), self._redis.pipeline(transaction=False) as pipe:
            pipe.hget(self._keys.adapter(adapter), "head_digest")
            pipe.hget(self._keys.aliases(base_model), f"{adapter.qualified}@{adapter.name}")
            head_digest, target = pipe.execute()
        return digest in (head_digest, (target or "").rpartition(" ")[2])

    def _missing(self, adapter: AdapterName, base: str, version: int | None) -> NotFound:
        if version is None:
            return NotFound(f"{adapter} has no version to follow")
        is_retired = command(self._redis, "HEXISTS", self._keys.retired(base), f"{adapter.qualified}.v{version}")
        return NotFound(f"{adapter} has no version {version}" + (" any more: it was retired" if is_retired else ""))

    def _base_or_raise(self, adapter: AdapterName) -> str:
        base = self.base_of(adapter)
        if base is None:
            raise NotFound(f"no adapter {str(adapter)!r} is published")
        return base
