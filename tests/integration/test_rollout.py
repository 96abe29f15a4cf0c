"""How versions stand among nodes, waiting for them, and promotion through a gate; nodes are threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from lora_registry import rollout as module
from lora_registry.catalog import MovedBy
from lora_registry.client import RegistrationClient
from lora_registry.errors import Conflict, NotFound, NotServed, PromotionAborted, Rejected, WaitTimeout
from lora_registry.names import AdapterName
from lora_registry.nodes import NodeState
from lora_registry.promotion import Promotions
from lora_registry.rollout import Need, Standing
from lora_registry.selection import parse_selector, wanted_by
from lora_registry.subscriber import Subscriber
from tests.helpers.nodes import EAGER, LAZY, join, make_info, serve
from tests.helpers.registry import BASE, Registry
from tests.helpers.waiting import wait_until

BOT = AdapterName("default", "support-bot")
Fault = Callable[[str, str], tuple[NodeState, str] | None]
"""What a node says instead of serving a version: by node id and served name."""


def client_of(registry: Registry) -> RegistrationClient:
    """A publisher's client of the registry."""
    return RegistrationClient(registry.client, registry.settings)


def states(standings: list[Standing]) -> dict[str, str | None]:
    """Node → what it last said."""
    return {each.node_id: each.state and str(each.state) for each in standings}


class SimulatedNode(threading.Thread):
    """A node without an engine: it follows the catalog, and acknowledges what it holds and what it gives up."""

    def __init__(self, registry: Registry, node_id: str, fault: Fault, **fields: object) -> None:
        super().__init__(daemon=True)
        self.info = make_info(node_id, **fields)
        self._registry, self._fault = registry, fault
        self._subscriber = Subscriber(BASE, url=registry.settings.redis_url, key_prefix=registry.settings.key_prefix)
        self._stopping = threading.Event()
        self.held: dict[str, str] = {}
        self.error: BaseException | None = None
        registry.nodes.heartbeat(self.info, digests=[], fresh=True)

    def run(self) -> None:
        """Follow until stopped."""
        try:
            while not self._stopping.is_set():
                self._subscriber.poll()
                self._reconcile()
                self._stopping.wait(0.01)
        except BaseException as error:  # noqa: BLE001 - shown by the test that started it
            self.error = error

    def stop(self) -> None:
        """End it, and fail the test if it failed."""
        self._stopping.set()
        self.join()
        if self.error:
            raise self.error

    def _reconcile(self) -> None:
        selector, node_id = parse_selector(self.info.select), self.info.node_id
        wanted = {
            each.record.served_name for each in wanted_by(selector, node_id, self._subscriber.view, now_s=time.time())
        }
        for served_name in wanted - self.held.keys():
            self.held[served_name] = self._begin(served_name)
        for served_name in self.held.keys() - wanted:
            del self.held[served_name]
            self._registry.nodes.ack(node_id, served_name, NodeState.RETIRED)

    def _begin(self, served_name: str) -> str:
        nodes, node_id = self._registry.nodes, self.info.node_id
        nodes.ack(node_id, served_name, NodeState.SEEN)
        fault = self._fault(node_id, served_name)
        if fault is not None:
            nodes.ack(node_id, served_name, fault[0], code="TEST_FAULT", reason=fault[1])
            return fault[0]
        for state in (EAGER if self.info.eager else LAZY)[1:]:
            nodes.ack(node_id, served_name, state)
        return NodeState.ROUTABLE


@contextmanager
def fleet(
    registry: Registry, *node_ids: str, fault: Fault = lambda *_: None, **fields: object
) -> Iterator[dict[str, SimulatedNode]]:
    """Nodes that run meanwhile, by id."""
    nodes = {node_id: SimulatedNode(registry, node_id, fault, **fields) for node_id in node_ids}
    for node in nodes.values():
        node.start()
    yield nodes
    for node in nodes.values():
        node.stop()


# How versions stand


def test_rollout_tells_of_each_node_what_it_said_since_when_and_why_not(registry: Registry) -> None:
    """Nodes that want a version and said nothing are silent; a refusal is foretold, and what was said is repeated."""
    registry.register()
    nodes = join(registry, "a-serves")
    serve(nodes, "a-serves", "support-bot.v1")
    join(registry, "b-is-silent")
    join(registry, "c-is-too-small", max_lora_rank=4)
    join(registry, "d-failed")
    nodes.ack("d-failed", "support-bot.v1", NodeState.FAILED, code="NODE_FULL", reason="no space left")
    join(registry, "e-wants-others", select="tier=gold")
    join(registry, "f-is-of-another-base", base_model="other")
    join(registry.with_settings(node_timeout_s=0.001), "g-is-dead")
    wait_until(lambda: not nodes.node("g-is-dead").alive, what="the node's death")
    found = client_of(registry).standings("support-bot")
    assert states(found) == {"a-serves": "routable", "b-is-silent": None, "c-is-too-small": None, "d-failed": "failed"}
    assert [each.code for each in found] == ["", "", "ENGINE_RANK_TOO_LARGE", "NODE_FULL"]
    assert found[3].reason == "no space left"
    assert found[0].since_s is not None
    assert found[0].as_result()["state"] == "routable"


def test_rollout_shows_what_drains_and_not_what_is_done(registry: Registry) -> None:
    """An old version is listed while a node still has it; retired there, it is only listed if asked for by name."""
    registry.register(content="one")
    nodes = join(registry)
    serve(nodes, "node-1", "support-bot.v1")
    registry.register(content="two")
    client = client_of(registry)
    both = client.standings("support-bot")
    assert [(each.served_name, each.wanted) for each in both] == [("support-bot.v1", False), ("support-bot.v2", True)]
    nodes.ack("node-1", "support-bot.v1", NodeState.RETIRED)
    assert [each.served_name for each in client.standings("support-bot")] == ["support-bot.v2"]
    assert states(client.standings("support-bot.v1")) == {"node-1": "retired"}
    assert states(client.standings("support-bot@support-bot")) == {"node-1": None}


# What is needed


def standing(node_id: str, state: NodeState | None, *, wanted: bool = True, since_s: float = 100.0) -> Standing:
    """How one node stands."""
    return Standing(node_id, True, "a.v1", wanted, state, since_s, "CODE", "reason")


S = NodeState


@pytest.mark.parametrize(
    ("need", "said", "unmet"),
    [
        (Need(), [S.ROUTABLE], None),
        (Need(), [S.RESOLVABLE, S.FAILED], None),
        (Need(), [S.LOADED, None], "0 of 1"),
        (Need(2), [S.ROUTABLE, S.RESOLVABLE, None], None),
        (Need(2), [S.ROUTABLE, S.RETIRED], "1 of 2"),
        (Need(None), [S.ROUTABLE, S.SKIPPED, S.ROUTABLE], None),
        (Need(None), [S.ROUTABLE, S.SEEN], "1 of 2"),
        (Need(None, failures_since_s=101.0), [S.ROUTABLE, S.FAILED], "1 of 2"),
    ],
)
def test_need_is_met_or_waited_for(need: Need, said: list[NodeState | None], unmet: str | None) -> None:
    """So many nodes serve it, or all that want it and do not skip it."""
    found = need.unmet([standing(f"node-{place}", state) for place, state in enumerate(said)])
    assert (found or "").startswith(unmet or "")
    assert (found is None) is (unmet is None)


@pytest.mark.parametrize(
    ("need", "said", "reason"),
    [
        (Need(), [], "no node"),
        (Need(), [S.SKIPPED], "node-0 skipped: CODE reason"),
        (Need(), [S.FAILED], "node-0 failed: CODE reason"),
        (Need(3), [S.ROUTABLE, S.ROUTABLE], "only 2 nodes"),
        (Need(None), [S.ROUTABLE, S.FAILED], "node-1 failed"),
        (Need(None), [S.SKIPPED, S.SKIPPED], "node-0 skipped"),
        (Need(None, frozenset({"node-0"})), [S.SKIPPED, S.ROUTABLE], "node-0 skipped"),
        (Need(None, frozenset({"node-7"})), [S.ROUTABLE], "node-7"),
    ],
)
def test_what_waiting_cannot_bring_is_said_at_once(need: Need, said: list[NodeState | None], reason: str) -> None:
    """Too few nodes, or nodes that failed or skip it."""
    with pytest.raises(NotServed, match=reason):
        need.unmet([standing(f"node-{place}", state) for place, state in enumerate(said)])


def test_nodes_that_do_not_want_a_version_do_not_count() -> None:
    """One that still drains it is no node that serves it."""
    with pytest.raises(NotServed):
        Need().unmet([standing("node-0", S.ROUTABLE, wanted=False)])


# Waiting


def test_waiting_ends_when_all_that_can_serve_do(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager nodes once they answered, lazy ones once they can; one that skips is not waited for. The bell is enough."""
    monkeypatch.setattr(module, "_RECHECK_S", 3600.0)
    registry.register()
    nodes = join(registry, "eager")
    join(registry, "lazy", eager=False)
    join(registry, "small", max_lora_rank=1)
    found: list[Standing] = []
    waiting = threading.Thread(
        target=lambda: found.extend(client_of(registry).wait_routable("support-bot", nodes=None, timeout_s=60))
    )
    waiting.start()
    bell = registry.keys.ack_bell("support-bot.v1")
    wait_until(lambda: registry.client.pubsub_numsub(bell)[0][1], what="somebody who waits")
    nodes.ack("small", "support-bot.v1", NodeState.SKIPPED, code="ENGINE_RANK_TOO_LARGE")
    serve(nodes, "lazy", "support-bot.v1", lazy=True)
    assert not found
    serve(nodes, "eager", "support-bot.v1")
    waiting.join(timeout=30)
    assert states(found) == {"eager": "routable", "lazy": "resolvable", "small": "skipped"}


def test_waiting_for_what_nobody_serves_ends_at_once(registry: Registry) -> None:
    """No node, no node that wants it, or only nodes that failed: the reason is said, and no time is lost."""
    registry.register()
    client = client_of(registry)
    with pytest.raises(NotServed, match="no node"):
        client.wait_routable("support-bot", timeout_s=60)
    nodes = join(registry, select="tier=gold")
    with pytest.raises(NotServed, match="no node"):
        client.wait_routable("support-bot", timeout_s=60)
    join(registry)
    nodes.ack("node-1", "support-bot.v1", NodeState.FAILED, code="NODE_FULL", reason="no space left")
    with pytest.raises(NotServed, match="NODE_FULL no space left"):
        client.wait_routable("support-bot.v1", timeout_s=60)
    with pytest.raises(NotFound):
        client.wait_routable("nobody", timeout_s=60)


def test_waiting_too_long_says_who_is_missing(registry: Registry) -> None:
    """The message names the nodes and how far they are."""
    registry.register()
    join(registry).ack("node-1", "support-bot.v1", NodeState.FETCHED)
    with pytest.raises(WaitTimeout, match="0 of 1 nodes serve it; node-1 fetched"):
        client_of(registry).wait_routable("support-bot", timeout_s=0.05)


def test_node_that_dies_while_it_is_waited_for_counts_no_more(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that live serve it: the one that died is not waited for."""
    monkeypatch.setattr(module, "_RECHECK_S", 0.05)
    registry.register()
    serve(join(registry, "lives"), "lives", "support-bot.v1")
    join(registry.with_settings(node_timeout_s=0.5), "dies")
    found = client_of(registry).wait_routable("support-bot", nodes=None, timeout_s=30)
    assert states(found) == {"lives": "routable"}


# Promotion


def two_versions(registry: Registry) -> Promotions:
    """An adapter whose alias `stable` points at the first of two versions, and its own too."""
    registry.register(content="one", follow="manual")
    registry.register(content="two")
    for alias in ("stable", BOT.name):
        registry.catalog.move_alias(BOT, alias, 1)
    return client_of(registry).promotions()


def test_promotion_without_a_gate_moves_the_alias(registry: Registry) -> None:
    """It pins it, says what was before, and its history says that it was promoted."""
    done = two_versions(registry).promote(BOT, 2, "stable", by="me")
    assert (done.record.version, done.before, done.canaries) == (2, 1, ())
    assert registry.version(alias="stable").version == 2
    move = registry.lifecycle.history(BOT, "stable")[0]
    assert (move.how, move.by, move.before, move.after) == (MovedBy.PROMOTE, "me", 1, 2)
    assert registry.lifecycle.rollback(BOT, "stable").version == 1


def test_promotion_through_canaries_reaches_all_nodes(registry: Registry) -> None:
    """First the canaries hold it, and only they; then the alias moves, and all have it. No direction is left."""
    promotions = two_versions(registry)
    heard: list[tuple[str, int]] = []

    def listen(node_id: str, served_name: str) -> None:
        if served_name == "support-bot.v2":
            target = registry.lifecycle.target(BOT, "stable")
            heard.append((node_id, target.version if target else 0))

    with fleet(registry, "a", "b", "c", fault=listen) as nodes:
        wait_until(lambda: all("support-bot.v1" in node.held for node in nodes.values()), what="the first version")
        done = promotions.promote(BOT, 2, "stable", canaries=("b",), timeout_s=30, by="me")
        assert heard[0] == ("b", 1)
        assert sorted(heard[1:]) == [("a", 2), ("c", 2)]
        assert states(list(done.standings)) == {"a": "routable", "b": "routable", "c": "routable"}
    assert (done.canaries, done.before) == (("b",), 1)
    assert registry.version(alias="stable").version == 2
    assert registry.view().directed == {}


def test_canaries_are_chosen_among_nodes_that_can_serve_it(registry: Registry) -> None:
    """By number: eager nodes whose profile accepts it; if there are not so many, nothing is begun."""
    promotions = two_versions(registry)
    join(registry, "a-lazy", eager=False)
    join(registry, "b-small", max_lora_rank=1)
    with fleet(registry, "c-able"):
        with pytest.raises(NotServed, match="1 eager nodes"):
            promotions.promote(BOT, 2, "stable", canaries=2, timeout_s=30)
        registry.nodes.leave("a-lazy")
        registry.nodes.leave("b-small")
        assert promotions.promote(BOT, 2, "stable", canaries=1, timeout_s=30).canaries == ("c-able",)


def test_failed_canary_aborts_and_nobody_else_hears_of_it(registry: Registry) -> None:
    """The alias is not moved, the direction ends, the canary gives the version up, the reason is the node's."""
    promotions = two_versions(registry)
    heard: list[str] = []

    def fail(node_id: str, served_name: str) -> tuple[NodeState, str] | None:
        heard.append(f"{node_id} {served_name}")
        return (NodeState.FAILED, "it answers nonsense") if served_name == "support-bot.v2" else None

    with fleet(registry, "a", "b", fault=fail) as nodes:
        with pytest.raises(PromotionAborted, match=r"b failed: TEST_FAULT it answers nonsense.*not moved"):
            promotions.promote(BOT, 2, "stable", canaries=("b",), timeout_s=30)
        wait_until(lambda: "support-bot.v2" not in nodes["b"].held, what="the canary's return")
    assert registry.version(alias="stable").version == 1
    assert "a support-bot.v2" not in heard
    assert registry.view().directed == {}
    assert registry.lifecycle.history(BOT, "stable")[0].how is MovedBy.SET


def test_silent_canary_aborts_in_time(registry: Registry) -> None:
    """A node that says nothing holds nothing up for longer than the timeout."""
    promotions = two_versions(registry)
    join(registry, "silent")
    with pytest.raises(PromotionAborted, match=r"silent silent.*not moved"):
        promotions.promote(BOT, 2, "stable", canaries=("silent",), timeout_s=0.1)
    assert registry.version(alias="stable").version == 1
    assert registry.view().directed == {}


def test_node_that_fails_after_the_canaries_brings_the_alias_back(registry: Registry) -> None:
    """The gate was passed, another node fails: the alias points where it did before, for all."""
    promotions = two_versions(registry)

    def fail(node_id: str, served_name: str) -> tuple[NodeState, str] | None:
        return (NodeState.FAILED, "no memory") if (node_id, served_name) == ("b", "support-bot.v2") else None

    with fleet(registry, "a", "b", fault=fail) as nodes:
        with pytest.raises(PromotionAborted, match=r"b failed: TEST_FAULT no memory.*support-bot\.v1 again"):
            promotions.promote(BOT, 2, "stable", canaries=("a",), timeout_s=30)
        wait_until(
            lambda: all(set(node.held) == {"support-bot.v1"} for node in nodes.values()), what="the return of all"
        )
    assert registry.version(alias="stable").version == 1
    moves = registry.lifecycle.history(BOT, "stable")
    assert [(each.how, each.before, each.after) for each in moves[:2]] == [
        (MovedBy.ROLLBACK, 2, 1),
        (MovedBy.PROMOTE, 1, 2),
    ]


def test_new_alias_is_removed_again_when_its_promotion_fails(registry: Registry) -> None:
    """There is nothing to go back to: the alias is as unknown as before."""
    promotions = two_versions(registry)

    def fail(node_id: str, served_name: str) -> tuple[NodeState, str] | None:
        return (NodeState.FAILED, "no memory") if (node_id, served_name) == ("b", "support-bot.v2") else None

    with fleet(registry, "a", "b", fault=fail), pytest.raises(PromotionAborted, match="removed again"):
        promotions.promote(BOT, 2, "beta", canaries=("a",), timeout_s=30)
    assert "beta" not in registry.catalog.aliases(BOT)


def test_alias_that_somebody_moved_meanwhile_is_left_to_them(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the canaries loaded it the alias was moved: a conflict, and what they did stands."""
    registry.register(content="zero")
    promotions = two_versions(registry)
    wait = promotions._rollouts.wait

    def wait_and_be_overtaken(*args: object, **options: object) -> object:
        found = wait(*args, **options)  # type: ignore[arg-type]
        registry.catalog.move_alias(BOT, "stable", 3, expect=1)
        return found

    monkeypatch.setattr(promotions._rollouts, "wait", wait_and_be_overtaken)
    with fleet(registry, "a"), pytest.raises(Conflict):
        promotions.promote(BOT, 2, "stable", canaries=("a",), timeout_s=30)
    assert registry.version(alias="stable").version == 3
    assert registry.view().directed == {}


@pytest.mark.parametrize("canaries", [("nobody",), ("of-another-base",)])
def test_canary_that_is_not_there_is_refused_before_anything_is_told(
    registry: Registry, canaries: tuple[str, ...]
) -> None:
    """A node that is unknown, dead or of another base model cannot open the gate."""
    promotions = two_versions(registry)
    join(registry, "of-another-base", base_model="other")
    before = registry.log()
    with pytest.raises(Rejected, match=canaries[0]):
        promotions.promote(BOT, 2, "stable", canaries=canaries, timeout_s=30)
    assert registry.log() == before


def test_direction_of_a_promoter_that_died_ends_by_itself(registry: Registry) -> None:
    """Its time is over for nodes, and the next direction of the base model clears it away for all."""
    two_versions(registry)
    record = registry.catalog.versions(BOT)[1]
    registry.lifecycle.direct(record, ["a", "b"], for_s=0)
    (direction,) = registry.view().directed.values()
    assert direction.nodes == ("a", "b")
    wait_until(lambda: not direction.holds("a", now_s=time.time()), what="the end of its time")
    registry.lifecycle.direct(registry.catalog.versions(BOT)[0], ["a"], for_s=60)
    assert set(registry.view().directed) == {"default.support-bot.v1"}
