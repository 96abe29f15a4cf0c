"""Promotion: move an alias to a version, if need be through a gate that some nodes open by serving it first.

    1. the chosen nodes are directed to hold the version; nobody else hears more than that it was published
    2. each of them has to acknowledge that it serves it
    3. the alias moves (compare-and-swap), and the direction ends: the nodes hold the version for the alias's sake
    4. each other node that follows the alias has to acknowledge, too

What fails or takes too long before 3 ends the direction and leaves the alias alone; after 3 the alias goes back. A
promoter that dies before 3 leaves a direction, which ends at its time; one that dies after 3 leaves an open promotion,
which a worker decides.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from lora_registry.catalog import Catalog, Opening
from lora_registry.catalog_records import MovedBy, VersionRecord
from lora_registry.engine_profiles import Ruling
from lora_registry.errors import (
    Conflict,
    NotFound,
    NotServed,
    PromotionAborted,
    RedisUnavailable,
    RegistryError,
    Rejected,
    ServerNotAdmitted,
    WaitTimeout,
)
from lora_registry.lifecycle import Lifecycle
from lora_registry.names import AdapterName, Reference
from lora_registry.node_verdicts import verdict_for_node
from lora_registry.nodes import NodeState
from lora_registry.open_promotions import OpenPromotion, OpenPromotions
from lora_registry.rollout import Need, Rollouts, Standing, follows

_SPARE_S = 60.0
"""How much longer than the wait a direction lasts, should its end never be said."""
_OWN_DEADLINE_S = math.inf
"""A promoter that decides by itself counts the seconds that it waits, and compares no clocks."""


@dataclass(frozen=True)
class Promoted:
    """What came of a promotion.

    Attributes:
        record: the version that the alias points at now.
        before: version that it pointed at; None: at none.
        canaries: nodes that served it first.
        standings: how the nodes stand to it in the end; empty without a gate.
    """

    record: VersionRecord
    before: int | None
    canaries: tuple[str, ...] = ()
    standings: tuple[Standing, ...] = ()


class Promotions:
    """Moves aliases, gated.

    Args:
        lifecycle: the catalog's changes.
        rollouts: how versions stand.
        promotions: those that are open.
    """

    def __init__(self, lifecycle: Lifecycle, rollouts: Rollouts, promotions: OpenPromotions) -> None:
        self._lifecycle = lifecycle
        self._open = promotions
        self._catalog: Catalog = lifecycle.catalog
        self._rollouts = rollouts

    def promote(
        self,
        adapter: AdapterName,
        version: int,
        alias: str,
        *,
        canaries: Collection[str] | int = (),
        timeout_s: float = 300.0,
        by: str = "",
    ) -> Promoted:
        """Point an alias at a version and pin it; with canaries only if these serve it, and for good only if all do.

        Args:
            adapter: the adapter. version: the version. alias: the alias.
            canaries: nodes that are to serve it first, or how many; none: the alias moves at once.
            timeout_s: longest wait for the canaries, and then for all.
            by: who, for the alias's history.

        Raises:
            NotFound: there is no such version, or a canary of that name does not live.
            Conflict: somebody else moved the alias meanwhile, or another promotion of the version or alias is not over.
            NotServed: there are too few nodes to choose canaries from.
            PromotionAborted: a node failed, it took too long, or the version was retired; the alias is where it was.
            ServerNotAdmitted: the server is new and no dispatcher has admitted it.
            RedisUnavailable: the server is out of reach.
        """
        record = self._catalog.version(Reference(adapter, version=version))
        before = self._version_of(adapter, alias)
        if not canaries:
            self._move(record, alias, before, by)
            return Promoted(record, before)
        chosen = self._choose(record, alias, canaries)
        token = secrets.token_hex(8)
        with self._directed(record, chosen, token, timeout_s=timeout_s) as since_s:
            try:
                need = Need(None, frozenset(chosen), failures_since_s=since_s)
                self._rollouts.wait(record, need, timeout_s=timeout_s)
                self._move(record, alias, before, by, Opening(token, self._open.lease_s, timeout_s, since_s))
            except (NotServed, WaitTimeout, NotFound) as error:
                raise PromotionAborted(f"{self._why(record, error)}; {adapter}@{alias} was not moved") from error
        opened = OpenPromotion(adapter, alias, token, version, before, since_s, _OWN_DEADLINE_S, by)
        return Promoted(record, before, chosen, tuple(self._wait_for_all(record, opened, timeout_s=timeout_s)))

    def settle(self, *, by: str) -> list[str]:
        """Decide the open promotions whose promoter is gone, as it would have; those that need longer stay open.

        Args:
            by: who decides, for the aliases' histories.

        Returns:
            What became of each that was decided, in words.

        Raises:
            RedisUnavailable: the server is out of reach.
            ServerNotAdmitted: the server is new and no dispatcher has admitted it.
        """
        lost, now_s = self._open.lost()
        done = []
        for each in lost:
            with suppress(NotFound):  # the adapter was retired meanwhile
                done.append(self._settle(each, f"{by} for {each.by}", now_s=now_s))
        return [each for each in done if each]

    def _settle(self, opened: OpenPromotion, by: str, *, now_s: float) -> str:
        """Decide one promotion; empty: nothing can be said of it yet."""
        record = self._catalog.version(Reference(opened.adapter, version=opened.version))
        need, why = Need(None, alias=opened.alias, failures_since_s=opened.failures_since_s), ""
        try:
            unmet = need.unmet(self._rollouts.standings(record))
            if unmet is not None and now_s < opened.deadline_s:
                return ""
            why = unmet or ""
        except NotServed as error:
            why = error.message
        done = self._move_back(record, opened, by) if why else self._keep(opened)
        self._lifecycle.direct(record, (), token=opened.token, for_s=0)
        return f"{opened.adapter}@{opened.alias} {done}" + (f": {why}" if why else "")

    def _wait_for_all(self, record: VersionRecord, opened: OpenPromotion, *, timeout_s: float) -> list[Standing]:
        """Wait until all nodes that follow the alias serve what it points at since; else it goes back."""
        held = opened.adapter, opened.alias, opened.token
        need = Need(None, alias=opened.alias, failures_since_s=opened.failures_since_s)
        try:
            standings = self._rollouts.wait(
                record, need, timeout_s=timeout_s, meanwhile=lambda: self._open.renew(*held)
            )
        except (NotServed, WaitTimeout) as error:
            why = self._why(record, error)
            try:
                done = self._move_back(record, opened, opened.by)
            except (RedisUnavailable, ServerNotAdmitted):
                done = "is not back yet: workers decide what becomes of it, once Redis answers"
            raise PromotionAborted(f"{why}; {opened.adapter}@{opened.alias} {done}") from error
        self._keep(opened)
        now = self._version_of(opened.adapter, opened.alias)
        if now != record.version:
            raise PromotionAborted(f"{opened.adapter}@{opened.alias} {_by_somebody_else(now)}")
        return standings

    def _why(self, record: VersionRecord, error: RegistryError) -> str:
        """What nodes lack, in words; of a version that was retired they hold nothing, and say nothing of the reason."""
        with suppress(RedisUnavailable):
            try:
                self._catalog.version(Reference(record.adapter, version=record.version))
            except NotFound:
                return f"{record.served_name} was retired meanwhile"
        return error.message

    def _keep(self, opened: OpenPromotion) -> str:
        self._open.end(opened.adapter, opened.alias, opened.token)
        return f"stays at {opened.adapter.served_name(opened.version)}, which all nodes serve"

    def _choose(self, record: VersionRecord, alias: str, canaries: Collection[str] | int) -> tuple[str, ...]:
        """Those named, or as many as were asked for of eager nodes that follow the alias and can serve the version.

        What one says of the version goes before what its profile promises: one that failed or skips it is not chosen.
        """
        if not isinstance(canaries, int):
            return tuple(sorted(set(canaries)))
        able = [
            node.info.node_id
            for node in self._rollouts.nodes.nodes(record.base_model)
            if node.alive
            and node.info.eager
            and verdict_for_node(record, node.info).verdict is Ruling.ACCEPT
            and follows(node, record, [alias])
        ]
        acks = self._rollouts.nodes.acks(record.served_name)
        stopped = {ack.node_id for ack in acks if ack.state in (NodeState.FAILED, NodeState.SKIPPED)}
        chosen = [node_id for node_id in able if node_id not in stopped][:canaries]
        if len(chosen) < canaries:
            more = len(stopped.intersection(able))
            said = f"; {more} more say that they failed or skip it" if more else ""
            raise NotServed(
                f"{len(chosen)} eager nodes live that follow {record.adapter}@{alias} and can serve "
                f"{record.served_name}, not {canaries}{said}",
                remedy="See what nodes say with `lora-registry rollout NAME`. Name a node to try it there again.",
            )
        return tuple(chosen)

    @contextmanager
    def _directed(
        self, record: VersionRecord, nodes: Collection[str], token: str, *, timeout_s: float
    ) -> Iterator[float]:
        """Have nodes hold the version meanwhile; the value is since when."""
        known = {node.info.node_id for node in self._rollouts.nodes.nodes(record.base_model) if node.alive}
        if unknown := sorted(set(nodes) - known):
            raise NotFound(
                f"{', '.join(unknown)[:200]}: no node of {record.base_model} of that name lives",
                remedy="List them with `lora-registry nodes`.",
            )
        try:  # the first answer may be lost
            yield self._lifecycle.direct(record, nodes, token=token, for_s=timeout_s + _SPARE_S)
        finally:
            with suppress(RedisUnavailable, ServerNotAdmitted):  # it ends at its time, then
                self._lifecycle.direct(record, (), token=token, for_s=0)

    def _move(
        self, record: VersionRecord, alias: str, before: int | None, by: str, opens: Opening | None = None
    ) -> None:
        how = MovedBy.PROMOTE
        self._catalog.move_alias(record.adapter, alias, record.version, expect=before or 0, by=by, how=how, opens=opens)

    def _move_back(self, record: VersionRecord, opened: OpenPromotion, by: str) -> str:
        """Undo the move, unless somebody moved the alias or decided the promotion since; returns what was done.

        One that followed follows again: it is not moved by that, so not to what failed, but by the next publication.
        """
        adapter, alias, before = opened.adapter, opened.alias, opened.before
        how = {"expect": record.version, "by": by, "how": MovedBy.ROLLBACK, "takes_back": opened.token}
        try:
            if before is None:
                self._lifecycle.remove_alias(adapter, alias, **how)  # type: ignore[arg-type]
                return "was removed again"
            self._catalog.move_alias(adapter, alias, before, **how)  # type: ignore[arg-type]
            return f"points at {adapter.served_name(before)} again"
        except (Conflict, NotFound, Rejected) as error:
            if self._open.end(adapter, alias, opened.token):
                return f"stays, because {error.message}"
            now = self._version_of(adapter, alias)
            if before == record.version == now:
                return f"points at {record.served_name}, as it did before"
            return _by_somebody_else(now)

    def _version_of(self, adapter: AdapterName, alias: str) -> int | None:
        target = self._lifecycle.target(adapter, alias)
        return target.version if target else None


def _by_somebody_else(now: int | None) -> str:
    """What others did to an alias, by the version that it points at now."""
    return f"was {'moved' if now else 'removed'} by somebody else meanwhile"
