"""Promotion: move an alias to a version, if need be through a gate that some nodes open by serving it first.

    1. the chosen nodes are directed to hold the version; nobody else hears more than that it was published
    2. each of them has to acknowledge that it serves it
    3. the alias moves (compare-and-swap), and the direction ends: the nodes hold the version for the alias's sake
    4. each other node that follows the alias has to acknowledge, too

What fails or takes too long before 3 ends the direction and leaves the alias alone; after 3 the alias goes back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lora_registry.catalog import Catalog, MovedBy, VersionRecord
from lora_registry.engine_profiles import Ruling
from lora_registry.errors import Conflict, NotFound, NotServed, PromotionAborted, Rejected, WaitTimeout
from lora_registry.lifecycle import Lifecycle
from lora_registry.names import AdapterName, Reference
from lora_registry.node_verdicts import verdict_for_node
from lora_registry.rollout import Need, Rollouts, Standing

_SPARE_S = 60.0
"""How much longer than the wait a direction lasts, should its end never be said."""


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
    """

    def __init__(self, lifecycle: Lifecycle, rollouts: Rollouts) -> None:
        self._lifecycle = lifecycle
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
            NotFound: there is no such version.
            Conflict: somebody else moved the alias meanwhile.
            NotServed: there are too few nodes to choose canaries from.
            PromotionAborted: a node failed, or it took too long; the alias is where it was.
            ServerNotAdmitted: the server is new and no dispatcher has admitted it.
            RedisUnavailable: the server is out of reach.
        """
        record = self._catalog.version(Reference(adapter, version=version))
        target = self._lifecycle.target(adapter, alias)
        before = target.version if target else None
        if not canaries:
            self._move(record, alias, before, by)
            return Promoted(record, before)
        chosen = self._choose(record, canaries)
        with self._directed(record, chosen, timeout_s=timeout_s) as since_s:
            try:
                need = Need(None, frozenset(chosen), failures_since_s=since_s)
                self._rollouts.wait(record, need, timeout_s=timeout_s)
            except (NotServed, WaitTimeout) as error:
                raise PromotionAborted(f"{error.message}; {adapter}@{alias} was not moved") from error
            self._move(record, alias, before, by)
        try:
            standings = self._rollouts.wait(record, Need(None, failures_since_s=since_s), timeout_s=timeout_s)
        except (NotServed, WaitTimeout) as error:
            done = self._move_back(record, alias, before, by)
            raise PromotionAborted(f"{error.message}; {adapter}@{alias} {done}") from error
        return Promoted(record, before, chosen, tuple(standings))

    def _choose(self, record: VersionRecord, canaries: Collection[str] | int) -> tuple[str, ...]:
        """The canaries: those named, or as many as were asked for of the eager nodes that can serve it."""
        if not isinstance(canaries, int):
            return tuple(sorted(set(canaries)))
        able = [
            node.info.node_id
            for node in self._rollouts.nodes.nodes(record.base_model)
            if node.alive and node.info.eager and verdict_for_node(record, node.info).verdict is Ruling.ACCEPT
        ]
        if len(able) < canaries:
            raise NotServed(f"{len(able)} eager nodes live that can serve {record.served_name}, not {canaries}")
        return tuple(able[:canaries])

    @contextmanager
    def _directed(self, record: VersionRecord, nodes: Collection[str], *, timeout_s: float) -> Iterator[float]:
        """Have nodes hold the version meanwhile; the value is since when."""
        known = {node.info.node_id for node in self._rollouts.nodes.nodes(record.base_model) if node.alive}
        if unknown := sorted(set(nodes) - known):
            raise Rejected(
                f"{', '.join(unknown)[:200]}: no node of {record.base_model} of that name lives",
                remedy="List them with `lora-registry nodes`.",
            )
        since_s = self._lifecycle.direct(record, nodes, for_s=timeout_s + _SPARE_S)
        try:
            yield since_s
        finally:
            self._lifecycle.direct(record, (), for_s=0)

    def _move(self, record: VersionRecord, alias: str, before: int | None, by: str) -> None:
        self._catalog.move_alias(record.adapter, alias, record.version, expect=before or 0, by=by, how=MovedBy.PROMOTE)

    def _move_back(self, record: VersionRecord, alias: str, before: int | None, by: str) -> str:
        """Undo the move, unless somebody moved the alias since; returns what was done."""
        adapter = record.adapter
        try:
            if before is not None:
                self._catalog.move_alias(adapter, alias, before, expect=record.version, by=by, how=MovedBy.ROLLBACK)
                return f"points at {adapter.served_name(before)} again"
            self._lifecycle.remove_alias(adapter, alias, expect=record.version, by=by, how=MovedBy.ROLLBACK)
            return "was removed again"
        except (Conflict, NotFound):
            return "was moved by somebody else meanwhile"
        except Rejected as error:
            return f"stays, because {error.message}"
