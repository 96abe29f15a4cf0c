"""Nodes and what they acknowledge, on a real server."""

from __future__ import annotations

import threading

import pytest

from lora_registry import nodes as module
from lora_registry.connection import open_bell
from lora_registry.errors import Conflict, NotFound
from lora_registry.nodes import Ack, NodeRegistry, NodeState, Said
from tests.helpers.nodes import EAGER, LAZY, join, make_info, serve
from tests.helpers.registry import BASE, Registry, digest_of
from tests.helpers.waiting import wait_until

V1 = "support-bot.v1"


def states(nodes: NodeRegistry, served_name: str = V1) -> dict[str, str]:
    """Node → what it last said of a version."""
    return {ack.node_id: str(ack.state) for ack in nodes.acks(served_name)}


def short_lived(registry: Registry) -> Registry:
    """The same registry, where nodes die after 0.2 s without a heartbeat."""
    return registry.with_settings(node_timeout_s=0.2)


def test_node_is_listed_with_what_it_said_of_itself(registry: Registry) -> None:
    """What a heartbeat tells is what `nodes` gives back; another base's nodes can be left out."""
    info = make_info("b", engine_version="0.33.0", max_lora_rank=64, target_modules=("q_proj",), slots=4, eager=False)
    nodes = NodeRegistry(registry.client, registry.settings)
    nodes.heartbeat(info, digests=[digest_of("one"), digest_of("two")])
    join(registry, "a")
    join(registry, "c", base_model="other")
    assert [node.info.node_id for node in nodes.nodes()] == ["a", "b", "c"]
    (_, node) = nodes.nodes(BASE)
    assert (node.info, node.alive) == (info, True)
    assert node.artifacts == 2
    assert nodes.digests_in_use() == {digest_of("one"), digest_of("two")}
    assert nodes.node("b") == node
    with pytest.raises(NotFound, match="'d'"):
        nodes.node("d")


def test_what_a_node_of_another_version_says_besides_is_left_out(registry: Registry) -> None:
    """It is read all the same, and is shown without what nothing here knows."""
    nodes = join(registry)
    registry.client.hset(registry.keys.node("node-1"), "info", make_info().model_dump_json()[:-1] + ',"labels":{}}')
    assert "labels" not in nodes.node("node-1").info.model_dump()


def test_changed_node_is_known_anew_and_keeps_its_age(registry: Registry) -> None:
    """A heartbeat that says something new replaces what was known, and not since when the node is there."""
    nodes = join(registry, digests=(digest_of("one"),))
    (before,) = nodes.nodes()
    nodes.heartbeat(make_info(slots=8), digests=[])
    (after,) = nodes.nodes()
    assert (after.info.slots, after.artifacts, after.since_s) == (8, 0, before.since_s)


def test_idle_heartbeat_is_one_command_and_two_accesses(registry: Registry) -> None:
    """While nothing changes a heartbeat is one script that reads a hash and moves one score."""
    nodes = join(registry)
    nodes.heartbeat(make_info(), digests=[])
    before = calls(registry)
    for _ in range(10):
        nodes.heartbeat(make_info(), digests=[])
    after = calls(registry)
    sent = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    assert sent == {"evalsha": 10, "time": 10, "hmget": 10, "zadd": 10, "info": 1}


def test_news_of_a_node_is_one_command(registry: Registry) -> None:
    """What changed is said at once, without asking first whether the registry knows it."""
    nodes = join(registry)
    nodes.heartbeat(make_info(), digests=[])
    before = calls(registry)["evalsha"]
    nodes.heartbeat(make_info(slots=8), digests=[])
    assert calls(registry)["evalsha"] == before + 1


def calls(registry: Registry) -> dict[str, int]:
    """How often the server ran each command, by the server's own count."""
    stats = registry.client.info("commandstats")
    return {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}


@pytest.mark.parametrize("path", [EAGER, LAZY], ids=["eager", "lazy"])
def test_version_goes_up_the_steps(registry: Registry, path: tuple[NodeState, ...]) -> None:
    """Each step is what `acks` tells, with the time it was reached; saying it again keeps that time."""
    nodes = join(registry)
    last = 0.0
    for state in path:
        nodes.ack("node-1", V1, state)
        (ack,) = nodes.acks(V1)
        assert (ack.node_id, ack.served_name, ack.state) == ("node-1", V1, state)
        assert ack.since_s > last
        nodes.ack("node-1", V1, state)
        assert nodes.acks(V1) == [ack]
        last = ack.since_s


def test_engine_restart_goes_back_and_up_again(registry: Registry) -> None:
    """From routable to fetched and up again, as a node does whose engine lost its adapters."""
    nodes = join(registry)
    serve(nodes, "node-1", V1)
    for state in (NodeState.FETCHED, NodeState.LOADED, NodeState.ROUTABLE):
        nodes.ack("node-1", V1, state)
        assert states(nodes) == {"node-1": state}


@pytest.mark.parametrize("stopped", [NodeState.FAILED, NodeState.SKIPPED, NodeState.RETIRED])
def test_what_stopped_is_not_served_unless_it_begins_again(registry: Registry, stopped: NodeState) -> None:
    """After failed, skipped or retired, routable is refused and nothing changes; after seen it is not."""
    nodes = join(registry)
    nodes.ack("node-1", V1, stopped)
    for state in (NodeState.LOADED, NodeState.ROUTABLE, NodeState.RESOLVABLE):
        with pytest.raises(Conflict, match=f"{stopped}.*{state}") as refused:
            nodes.ack("node-1", V1, state)
        assert "seen" in refused.value.remedy
        assert states(nodes) == {"node-1": stopped}
    serve(nodes, "node-1", V1)
    assert states(nodes) == {"node-1": "routable"}


def test_what_came_together_is_one_command_and_each_of_it_is_heard(registry: Registry) -> None:
    """Steps that several versions passed since the last word: one command, and a ring for each step in their order."""
    nodes, v2 = join(registry), "support-bot.v2"
    told = [Said(name, state) for state in EAGER for name in (V1, v2)]
    with open_bell(registry.client) as bell:
        bell.psubscribe(registry.keys.ack_bell("*"))
        wait_until(lambda: registry.client.pubsub_numpat(), what="the subscription")
        before = calls(registry)["evalsha"]
        assert nodes.ack_all("node-1", told) == []
        assert calls(registry)["evalsha"] == before + 1
        heard: list[tuple[str, str]] = []

        def is_all_heard() -> bool:
            if message := bell.get_message(timeout=0.1):
                heard.append((message["channel"].removeprefix(registry.keys.ack_bell("")), message["data"]))
            return len(heard) == len(told)

        wait_until(is_all_heard, what="all rings")
    assert heard == [(each.served_name, each.state) for each in told]
    assert states(nodes) == states(nodes, v2) == {"node-1": "routable"}


def test_what_may_not_follow_holds_up_nothing_else(registry: Registry) -> None:
    """Of several the refused ones come back with the state that they may not follow; the rest is taken."""
    nodes = join(registry)
    nodes.ack("node-1", V1, NodeState.FAILED)
    told = [Said(V1, NodeState.LOADED), Said("support-bot.v2", NodeState.LOADED)]
    assert nodes.ack_all("node-1", told) == [(told[0], "failed")]
    assert (states(nodes), states(nodes, "support-bot.v2")) == ({"node-1": "failed"}, {"node-1": "loaded"})


def test_failure_keeps_its_code_and_reason(registry: Registry) -> None:
    """Why a node does not serve a version is kept in one line, at most 500 characters of it."""
    nodes = join(registry)
    nodes.ack("node-1", V1, NodeState.FAILED, code="NODE_LOAD_FAILED", reason="rank 512\n  is too large")
    nodes.ack("node-1", "support-bot.v2", NodeState.SKIPPED, code="ENGINE_RSLORA", reason="x" * 600)
    failed, skipped = nodes.acks_of("node-1")
    assert (failed.code, failed.reason) == ("NODE_LOAD_FAILED", "rank 512 is too large")
    assert (skipped.code, skipped.reason) == ("ENGINE_RSLORA", "x" * 500)


def test_dead_nodes_acknowledgements_count_no_more(registry: Registry) -> None:
    """Without heartbeats a node is dead after the timeout: still listed, but what it said is not counted."""
    brief = short_lived(registry)
    join(registry, "living")
    nodes = join(brief, "dying", digests=(digest_of("one"),))
    for node_id in ("living", "dying"):
        serve(nodes, node_id, V1)
    assert states(nodes) == {"dying": "routable", "living": "routable"}
    wait_until(lambda: states(nodes) == {"living": "routable"}, what="the node's death")
    assert [(node.info.node_id, node.alive) for node in nodes.nodes()] == [("dying", False), ("living", True)]
    assert nodes.acks_of("dying")[0].state is NodeState.ROUTABLE
    assert nodes.digests_in_use() == {digest_of("one")}


def test_node_that_comes_back_is_counted_again(registry: Registry) -> None:
    """A node that was cut off, and not restarted, still serves what it served: with its next heartbeat it counts."""
    nodes = join(short_lived(registry))
    serve(nodes, "node-1", V1)
    wait_until(lambda: not states(nodes), what="the node's death")
    NodeRegistry(registry.client, registry.settings).heartbeat(make_info(), digests=[])
    assert states(nodes) == {"node-1": "routable"}


def test_restarted_node_begins_anew(registry: Registry) -> None:
    """What an earlier life of a node acknowledged is dropped when it starts."""
    serve(join(registry), "node-1", V1)
    assert states(join(registry)) == {}


def test_node_that_leaves_is_forgotten_at_once(registry: Registry) -> None:
    """Neither it nor what it held or acknowledged is listed, and no key of it stays."""
    nodes = join(registry, digests=(digest_of("one"),))
    serve(nodes, "node-1", V1)
    nodes.leave("node-1")
    assert (nodes.nodes(), nodes.acks(V1), nodes.digests_in_use()) == ([], [], set())
    assert not list(registry.client.scan_iter(f"{registry.settings.key_prefix}:nodes:*"))


def test_everything_about_nodes_expires(registry: Registry) -> None:
    """Each key of nodes has an end, an acknowledgement that came before any heartbeat included."""
    nodes = join(registry)
    serve(nodes, "node-1", V1)
    nodes.ack("node-1", V1, NodeState.RETIRED)
    nodes.ack("early", V1, NodeState.SEEN)
    kept = list(registry.client.scan_iter(f"{registry.settings.key_prefix}:nodes:*"))
    assert len(kept) == 5
    assert all(0 < registry.client.ttl(key) <= registry.settings.node_retention_s for key in kept)


def test_retired_versions_are_remembered_up_to_a_bound(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the versions that a node retired the last ones are kept, and never one is dropped that came back."""
    monkeypatch.setattr(module, "MAX_RETIRED", 3)
    nodes = join(registry)
    for number in range(1, 7):
        nodes.ack("node-1", f"support-bot.v{number}", NodeState.SEEN)
        nodes.ack("node-1", f"support-bot.v{number}", NodeState.RETIRED)
        nodes.ack("node-1", f"support-bot.v{number}", NodeState.RETIRED)
        if number == 1:
            nodes.ack("node-1", V1, NodeState.SEEN)
    assert {ack.served_name: str(ack.state) for ack in nodes.acks_of("node-1")} == {
        V1: "seen",
        **{f"support-bot.v{number}": "retired" for number in (4, 5, 6)},
    }


def test_bell_rings_for_each_change_of_a_version(registry: Registry) -> None:
    """Whoever waits for a version is rung for its acknowledgements, and for no other's or repeated ones."""
    nodes = join(registry)
    with open_bell(registry.client) as bell:
        bell.subscribe(registry.keys.ack_bell(V1))
        wait_until(lambda: registry.client.pubsub_numsub(registry.keys.ack_bell(V1))[0][1], what="the subscription")
        nodes.ack("node-1", "support-bot.v2", NodeState.SEEN)
        nodes.ack("node-1", V1, NodeState.SEEN)
        nodes.ack("node-1", V1, NodeState.SEEN)
        nodes.ack("node-1", V1, NodeState.FETCHED)
        nodes.leave("node-1")
        rung = [wait_until(bell.get_message, what="a ring")["data"] for _ in range(3)]
    assert rung == ["seen", "fetched", ""]


def test_what_a_node_says_in_a_way_that_cannot_be_read_harms_nobody_else(registry: Registry) -> None:
    """Such a node or acknowledgement is left out, and nothing counts as unused while it is not known what is held."""
    nodes = join(registry, "good")
    join(registry, "later")
    serve(nodes, "good", V1)
    registry.client.hset(registry.keys.node("later"), "info", '{"schema_version": 2, "node_id": "later"}')
    nodes.ack("later", V1, NodeState.SEEN)
    registry.client.hset(registry.keys.node_acks("later"), V1, "praised 1 - well")
    assert [node.info.node_id for node in nodes.nodes()] == ["good"]
    assert states(nodes) == {"good": "routable"}
    with pytest.raises(NotFound):
        nodes.node("later")
    registry.client.hset(registry.keys.node("later"), "digests", "not json")
    with pytest.raises(Conflict):
        nodes.digests_in_use()


def test_many_nodes_acknowledge_at_once(registry: Registry) -> None:
    """Twenty nodes that speak at the same time are all heard."""

    def run(node_id: str) -> None:
        serve(join(registry, node_id), node_id, V1)

    threads = [threading.Thread(target=run, args=(f"node-{number}",)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    nodes = NodeRegistry(registry.client, registry.settings)
    assert list(states(nodes).values()) == ["routable"] * 20
    assert isinstance(nodes.acks(V1)[0], Ack)
