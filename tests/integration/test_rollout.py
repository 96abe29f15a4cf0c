"""How versions stand among nodes, and waiting for them."""

from __future__ import annotations

import threading
import time

import pytest

from lora_registry import rollout as module
from lora_registry.client import RegistrationClient
from lora_registry.errors import NotFound, NotServed, WaitTimeout
from lora_registry.names import AdapterName
from lora_registry.nodes import NodeState
from lora_registry.rollout import Need, Standing
from tests.helpers.nodes import join, serve
from tests.helpers.registry import Registry
from tests.helpers.waiting import wait_until


def client_of(registry: Registry) -> RegistrationClient:
    """A publisher's client of the registry."""
    return RegistrationClient(registry.client, registry.settings)


def states(standings: list[Standing]) -> dict[str, str | None]:
    """Node → what it last said."""
    return {each.node_id: each.state and str(each.state) for each in standings}


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


@pytest.mark.parametrize("ahead_s", [86_400.0, -86_400.0])
def test_what_nodes_are_directed_to_hold_is_told_by_the_server_s_clock(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    """Whoever asks may have a clock of his own: a direction that lasts counts, and one that is over does not."""
    registry.register(follow="manual")
    record, own = registry.catalog.versions(AdapterName("default", "support-bot"))[0], time.time
    join(registry.with_settings(node_timeout_s=600))
    monkeypatch.setattr(time, "time", lambda: own() + ahead_s)
    registry.lifecycle.direct(record, ["node-1"], token="t", for_s=60)
    assert states(client_of(registry).standings("support-bot.v1")) == {"node-1": None}
    registry.lifecycle.direct(record, ["node-1"], token="t", for_s=0)
    wait_until(lambda: not client_of(registry).standings("support-bot.v1"), what="the end of its time")


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


def test_rollout_shows_what_an_alias_or_a_direction_names_however_old(registry: Registry) -> None:
    """Of an adapter with many versions only the newest are looked at, and besides them those that somebody wants."""
    registry.publish_in_order([registry.submit(content=str(number)) for number in range(104)])
    adapter = AdapterName("default", "support-bot")
    registry.catalog.move_alias(adapter, "prod", 2)
    registry.lifecycle.direct(registry.catalog.versions(adapter)[2], ["node-1"], token="t", for_s=60)
    serve(join(registry), "node-1", "support-bot.v2")
    found = client_of(registry).standings("support-bot")
    assert [(each.served_name, each.state) for each in found] == [
        ("support-bot.v2", NodeState.ROUTABLE),
        ("support-bot.v3", None),
        ("support-bot.v104", None),
    ]


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
