"""How far a version has come among the nodes that want it, and waiting until it is served."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from lora_registry.announcements import Direction
from lora_registry.catalog import Catalog
from lora_registry.catalog_records import VersionRecord
from lora_registry.connection import command, open_bell, redis_errors, server_time_s
from lora_registry.errors import NotServed, RedisUnavailable, Rejected, WaitTimeout
from lora_registry.keys import Keys
from lora_registry.names import AdapterName
from lora_registry.node_verdicts import verdict_for_node, why_not
from lora_registry.nodes import SERVED, Ack, Node, NodeRegistry, NodeState
from lora_registry.selection import followed_aliases, parse_selector
from lora_registry.settings import Settings

_RECHECK_S = 1.0
"""Without any bell it is looked this often whether nodes came or died."""
_SHOWN = 100
"""Newest versions of an adapter that are looked at although no alias and no direction names them."""


@dataclass(frozen=True)
class Standing:
    """How one node stands to one version.

    Attributes:
        node_id: the node. eager: whether it loads at once what it wants.
        served_name: the version.
        wanted: whether the node is to hold it: an alias that it follows points at it, or it is told to.
        state: what it last said; None: nothing yet.
        since_s: since when, in seconds since 1970-01-01; None if it said nothing.
        code: what stopped it, or what will. reason: the same in words.
        aliases: the aliases of the adapter for whose sake it is to hold it.
    """

    node_id: str
    eager: bool
    served_name: str
    wanted: bool
    state: NodeState | None = None
    since_s: float | None = None
    code: str = ""
    reason: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def is_served(self) -> bool:
        """Whether requests for the version are answered there."""
        return self.state in SERVED

    def as_result(self) -> dict[str, Any]:
        """What `rollout --json` prints: plain JSON types only."""
        return {
            "node": self.node_id,
            "version": self.served_name,
            "eager": self.eager,
            "wanted": self.wanted,
            "state": self.state.value if self.state else None,
            "since_s": self.since_s,
            "code": self.code,
            "reason": self.reason,
        }


def standings_of(
    record: VersionRecord,
    nodes: Sequence[Node],
    acks: Collection[Ack],
    *,
    aliases: Collection[str] = (),
    directed: Collection[str] = (),
) -> list[Standing]:
    """How the nodes that live stand to a version: those that want it, and those that said something of it.

    Args:
        record: the version.
        nodes: nodes of its base model.
        acks: what they said of it.
        aliases: aliases that point at it.
        directed: nodes that are told to hold it.
    """
    said = {ack.node_id: ack for ack in acks}
    found = []
    for node in nodes:
        ack = said.get(node.info.node_id)
        followed = follows(node, record, aliases)
        wanted = bool(followed) or node.info.node_id in directed
        if not node.alive or not (wanted or ack):
            continue
        code, reason = (ack.code, ack.reason) if ack else why_not(verdict_for_node(record, node.info))
        found.append(
            Standing(
                node.info.node_id,
                node.info.eager,
                record.served_name,
                wanted,
                ack.state if ack else None,
                ack.since_s if ack else None,
                code,
                reason,
                followed,
            )
        )
    return found


def follows(node: Node, record: VersionRecord, aliases: Collection[str]) -> tuple[str, ...]:
    """Those of the aliases that the node's selector follows to the version."""
    try:
        return tuple(followed_aliases(parse_selector(node.info.select), record, aliases))
    except Rejected:
        return ()  # a node of a later version may select by what this one does not know


@dataclass(frozen=True)
class Need:
    """How many nodes are to serve a version.

    Attributes:
        count: so many; None: all that want it and do not skip it, and at least one.
        nodes: these, and all of them; empty: any.
        alias: only nodes that are to hold it for this alias's sake; empty: any that are to.
        failures_since_s: a failure that was said before this is not counted.
    """

    count: int | None = 1
    nodes: frozenset[str] = frozenset()
    alias: str = ""
    failures_since_s: float = 0.0

    def unmet(self, standings: Sequence[Standing]) -> str | None:
        """What it still lacks, in words; None: nothing.

        Raises:
            NotServed: nothing can come of it by waiting: nodes failed, skip it, or there are too few.
        """
        asked = [each for each in standings if self._asks(each)]
        served = [each for each in asked if each.is_served]
        stopped = [each for each in asked if self._is_stopped(each)]
        skipped = [each for each in asked if each.state is NodeState.SKIPPED]
        hopeful = len(asked) - len(stopped) - len(skipped)
        missing = sorted(self.nodes - {each.node_id for each in asked})
        if missing:
            raise NotServed(f"{', '.join(missing)}: no node of that name lives and can be told to hold it")
        if self.nodes:
            stopped += skipped
        needed = hopeful if self.count is None else self.count
        if not asked:
            raise NotServed("no node that lives wants it")
        if (stopped and (self.nodes or self.count is None)) or hopeful < max(1, needed):
            raise NotServed(_describe(stopped or skipped, hopeful=hopeful, needed=needed))
        if len(served) >= needed:
            return None
        waiting = [f"{each.node_id} {each.state or 'silent'}" for each in asked if not each.is_served]
        return f"{len(served)} of {needed} nodes serve it; {', '.join(waiting[:5])}"

    def _asks(self, standing: Standing) -> bool:
        is_named = not self.nodes or standing.node_id in self.nodes
        return standing.wanted and is_named and (not self.alias or self.alias in standing.aliases)

    def _is_stopped(self, standing: Standing) -> bool:
        return standing.state is NodeState.FAILED and (standing.since_s or 0.0) >= self.failures_since_s


def _describe(stopped: Sequence[Standing], *, hopeful: int, needed: int) -> str:
    said = "; ".join(f"{each.node_id} {each.state}: {each.code} {each.reason}".rstrip(": ") for each in stopped[:3])
    return said or f"only {hopeful} nodes want it, not {needed}"


class Rollouts:
    """Reads how versions stand, and waits.

    Args:
        client: connection to the registry's server.
        settings: the registry's settings.
    """

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._keys = Keys(settings.key_prefix)
        self._catalog = Catalog(client, settings)
        self.nodes = NodeRegistry(client, settings)

    def standings(self, *records: VersionRecord) -> list[Standing]:
        """How the nodes that live stand to versions of one adapter, version by version.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        if not records:
            return []
        base, adapter = records[0].base_model, records[0].adapter
        nodes = self.nodes.nodes(base)
        acks = self.nodes.acks(*(record.served_name for record in records))
        targets = self._catalog.aliases(adapter)
        directed = self._directed(base, records)
        found = []
        for record in records:
            found += standings_of(
                record,
                nodes,
                [ack for ack in acks if ack.served_name == record.served_name],
                aliases=[alias for alias, target in targets.items() if target.version == record.version],
                directed=directed.get(record.field, ()),
            )
        return found

    def standings_of_adapter(self, adapter: AdapterName) -> list[Standing]:
        """How the nodes that live stand to what an alias or a direction names, and to newer ones that they hold.

        Raises:
            NotFound: the adapter has no published version.
            RedisUnavailable: the server is out of reach.
        """
        records = self._catalog.versions(adapter)
        older, newest = records[:-_SHOWN], records[-_SHOWN:]
        if older:
            aliased = {target.version for target in self._catalog.aliases(adapter).values()}
            directed = self._directed(older[0].base_model, older)
            older = [each for each in older if each.version in aliased or each.field in directed]
        return [
            each
            for each in self.standings(*older, *newest)
            if each.wanted or each.state not in (None, NodeState.RETIRED)
        ]

    def wait(
        self,
        record: VersionRecord,
        need: Need,
        *,
        timeout_s: float,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> list[Standing]:
        """Wait until enough nodes serve a version; an outage of Redis is waited out.

        Args:
            record: the version. need: how many nodes are to serve it.
            timeout_s: longest wait.
            meanwhile: called at each look, so every second at least.

        Returns:
            How the nodes stand then.

        Raises:
            NotServed: it cannot come to that: nodes failed, skip it, or there are too few.
            WaitTimeout: it did not come to that within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        unmet: str | None = "Redis is out of reach"
        while True:
            try:
                with open_bell(self._redis) as bell:
                    with redis_errors():
                        bell.subscribe(self._keys.ack_bell(record.served_name))
                    while True:
                        meanwhile()
                        standings = self.standings(record)
                        unmet = need.unmet(standings)
                        if unmet is None:
                            return standings
                        self._wait_for_bell(bell, deadline)
                        if time.monotonic() > deadline:
                            raise _late(record, unmet, timeout_s)
            except RedisUnavailable:
                if time.monotonic() > deadline:
                    raise _late(record, unmet or "", timeout_s) from None
                time.sleep(_RECHECK_S)

    @staticmethod
    def _wait_for_bell(bell: redis.client.PubSub, deadline: float) -> None:
        """Wait for a ring, at most until it is time to look anyway; one look answers any number of rings."""
        until = min(deadline, time.monotonic() + _RECHECK_S)
        with redis_errors():
            while (left := until - time.monotonic()) > 0:
                if bell.get_message(timeout=left) is not None:
                    break
            while bell.get_message(timeout=0) is not None:
                pass

    def _directed(self, base: str, records: Sequence[VersionRecord]) -> Mapping[str, tuple[str, ...]]:
        """Versions → nodes that are told to hold them at this time."""
        fields = [record.field for record in records]
        stored = command(self._redis, "HMGET", self._keys.directed(base), *fields)
        found = {field: Direction.parse(each) for field, each in zip(fields, stored, strict=True) if each}
        now_s = server_time_s(self._redis) if found else 0.0
        return {field: each.nodes for field, each in found.items() if now_s < each.until_s}


def _late(record: VersionRecord, unmet: str, timeout_s: float) -> WaitTimeout:
    return WaitTimeout(
        f"{record.served_name} is not served as asked after {timeout_s:g} s: {unmet}",
        remedy=f"Ask again with `lora-registry rollout {record.served_name}`; check the nodes' logs.",
    )
