"""Promotion through a gate; nodes are threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

import pytest

from lora_registry.catalog_records import AliasMode, MovedBy, VersionRecord
from lora_registry.errors import (
    Conflict,
    NotFound,
    NotServed,
    PromotionAborted,
    RedisUnavailable,
    ServerNotAdmitted,
)
from lora_registry.nodes import NodeState
from lora_registry.promotion import Promotions
from lora_registry.rollout import Standing
from tests.helpers.nodes import join, serve
from tests.helpers.promotions import BOT, client_of, fail_on_b, two_versions
from tests.helpers.registry import Registry
from tests.helpers.simulated_nodes import fleet
from tests.helpers.waiting import wait_until


def states(standings: list[Standing]) -> dict[str, str | None]:
    """Node → what it last said."""
    return {each.node_id: each.state and str(each.state) for each in standings}


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
    """By number: eager nodes that follow the alias and whose profile accepts it; else nothing is begun."""
    promotions = two_versions(registry)
    join(registry, "a-lazy", eager=False)
    join(registry, "b-small", max_lora_rank=1)
    join(registry, "a-team", select="namespace=another-team")
    with fleet(registry, "c-able"):
        with pytest.raises(NotServed, match="1 eager nodes"):
            promotions.promote(BOT, 2, "stable", canaries=2, timeout_s=30)
        registry.nodes.leave("a-lazy")
        registry.nodes.leave("b-small")
        registry.nodes.leave("a-team")
        assert promotions.promote(BOT, 2, "stable", canaries=1, timeout_s=30).canaries == ("c-able",)


def test_canaries_by_number_follow_the_alias(registry: Registry) -> None:
    """A node that never hears of the alias proves nothing of those that do, though it comes first by name."""
    promotions, record = two_versions(registry), registry.catalog.versions(BOT)[1]
    for node_id, select in (("a", "namespace=another-team"), ("b", "alias=beta"), ("c", "alias=stable"), ("d", "")):
        join(registry, node_id, select=select)
    assert promotions._choose(record, "stable", 2) == ("c", "d")
    assert promotions._choose(record, "beta", 2) == ("b", "d")
    with pytest.raises(NotServed, match="2 eager nodes"):
        promotions._choose(record, "stable", 3)


def test_canaries_by_number_are_none_of_those_that_said_they_cannot(registry: Registry) -> None:
    """A node that failed with the version or skips it would end the promotion, or hold it up: others are taken."""
    promotions, record = two_versions(registry), registry.catalog.versions(BOT)[1]
    for node_id in ("a-failed", "b-skips", "c-retired", "d-silent", "e-serves"):
        join(registry, node_id)
    registry.nodes.ack("a-failed", "support-bot.v2", NodeState.FAILED, code="NODE_FULL", reason="no space left")
    registry.nodes.ack("a-failed", "support-bot.v1", NodeState.SEEN)
    registry.nodes.ack("b-skips", "support-bot.v2", NodeState.SKIPPED, code="NODE_RANK", reason="rank 64")
    registry.nodes.ack("c-retired", "support-bot.v2", NodeState.RETIRED)
    registry.nodes.ack("d-silent", "support-bot.v1", NodeState.FAILED, code="NODE_FULL", reason="no space left")
    serve(registry.nodes, "e-serves", "support-bot.v2")
    assert promotions._choose(record, "stable", 3) == ("c-retired", "d-silent", "e-serves")
    with pytest.raises(
        NotServed, match=r"^3 eager nodes .*, not 4; 2 more say that they failed or skip it$"
    ) as refused:
        promotions._choose(record, "stable", 4)
    assert "Name a node" in refused.value.remedy
    assert promotions._choose(record, "stable", ["a-failed"]) == ("a-failed",)


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
    with fleet(registry, "a", "b", fault=fail_on_b) as nodes:
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
    with fleet(registry, "a", "b", fault=fail_on_b), pytest.raises(PromotionAborted, match="removed again"):
        promotions.promote(BOT, 2, "beta", canaries=("a",), timeout_s=30)
    assert "beta" not in registry.catalog.aliases(BOT)
    registry.catalog.move_alias(BOT, "beta", 1)
    with pytest.raises(NotFound, match="never pointed at an earlier version"):
        registry.lifecycle.rollback(BOT, "beta")


@pytest.mark.parametrize("before", [1, 3])
def test_alias_that_followed_follows_again_when_its_promotion_fails(registry: Registry, before: int) -> None:
    """It is what it was, version and mode: the next publication moves it, and nothing moves it to what failed."""
    for content in ("one", "two", "three")[:before]:
        registry.register(content=content)
    if before == 1:
        registry.register(content="two", follow="manual")
    promotions = client_of(registry).promotions()
    was = registry.catalog.aliases(BOT)[BOT.name]
    assert (was.version, was.mode) == (before, AliasMode.FOLLOW)
    with fleet(registry, "a", "b", fault=fail_on_b), pytest.raises(PromotionAborted, match="b failed"):
        promotions.promote(BOT, 2, BOT.name, canaries=("a",), timeout_s=30)
    assert registry.catalog.aliases(BOT)[BOT.name] == was
    if before == 3:
        registry.register(content="two")  # bytes that failed are published anew where they are not the newest
        assert registry.version().version > before


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


def test_two_promotions_of_a_version_do_not_end_each_others_direction(registry: Registry) -> None:
    """While one tries it another is refused, though on the same node for another alias; the first goes on."""
    promotions = two_versions(registry)
    directions: list[object] = []

    def promote_again(node_id: str, served_name: str) -> None:
        if served_name == "support-bot.v2" and not directions:
            with pytest.raises(Conflict, match="being tried on a"):
                client_of(registry).promotions().promote(BOT, 2, "beta", canaries=("a",), timeout_s=30)
            directions.append(registry.view().directed["default.support-bot.v2"].nodes)

    with fleet(registry, "a", fault=promote_again):
        promotions.promote(BOT, 2, "stable", canaries=("a",), timeout_s=30)
    assert directions == [("a",)]
    assert registry.version(alias="stable").version == 2
    assert registry.view().directed == {}


@pytest.mark.parametrize("what", ["version", "adapter"])
def test_version_that_is_retired_while_canaries_try_it_aborts_and_that_is_said(registry: Registry, what: str) -> None:
    """At once, although a canary that is still loading says nothing, and not as a want of nodes."""
    promotions, done = two_versions(registry), threading.Event()

    def retire_and_hang(node_id: str, served_name: str) -> None:
        if served_name == "support-bot.v2":
            if what == "version":
                registry.lifecycle.retire_version(BOT, 2)
            else:
                registry.lifecycle.retire_adapter(BOT)
            assert done.wait(30)

    with fleet(registry, "a", fault=retire_and_hang):
        try:
            with pytest.raises(PromotionAborted, match=r"^support-bot\.v2 was retired meanwhile; support-bot@stable"):
                promotions.promote(BOT, 2, "stable", canaries=("a",), timeout_s=3600)
        finally:
            done.set()


def test_version_that_is_retired_just_before_the_move_aborts(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canaries serve it, and there is nothing to move the alias to any more."""
    promotions = two_versions(registry)
    move = promotions._move

    def move_too_late(*args: Any) -> None:
        registry.lifecycle.retire_version(BOT, 2)
        move(*args)

    monkeypatch.setattr(promotions, "_move", move_too_late)
    with fleet(registry, "a"), pytest.raises(PromotionAborted, match=r"v2 was retired meanwhile; .* was not moved"):
        promotions.promote(BOT, 2, "stable", canaries=("a",), timeout_s=30)
    assert registry.version(alias="stable").version == 1


def test_adapter_that_is_retired_after_the_move_aborts_and_that_is_said(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its aliases; the promotion has nothing to take back."""
    promotions = two_versions(registry)
    wait = promotions._rollouts.wait

    def be_overtaken_and_wait(*args: Any, **options: Any) -> object:
        if "meanwhile" in options:
            registry.lifecycle.retire_adapter(BOT)
        return wait(*args, **options)

    monkeypatch.setattr(promotions._rollouts, "wait", be_overtaken_and_wait)
    with fleet(registry, "a"), pytest.raises(PromotionAborted, match=r"^support-bot\.v2 was retired meanwhile"):
        promotions.promote(BOT, 2, "stable", canaries=("a",), timeout_s=30)
    assert registry.client.hgetall(registry.keys.promotions) == {}


def test_own_alias_that_a_promotion_made_is_removed_again(registry: Registry) -> None:
    """Nobody may remove it by hand, but what failed does not stay under the adapter's own name."""
    registry.register(content="one", follow="manual")
    registry.register(content="two")
    promotions = client_of(registry).promotions()
    with fleet(registry, "a", "b", fault=fail_on_b), pytest.raises(PromotionAborted, match="removed again"):
        promotions.promote(BOT, 2, BOT.name, canaries=("a",), timeout_s=30)
    assert registry.catalog.aliases(BOT) == {}
    registry.register(content="three")
    assert registry.catalog.aliases(BOT) == {}


def lose_redis_at_the_end(promotions: Promotions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the server be out of reach when the direction is to end."""
    direct = promotions._lifecycle.direct

    def direct_or_fail(record: VersionRecord, nodes: Collection[str], **options: Any) -> float:
        if not nodes:
            raise RedisUnavailable
        return direct(record, nodes, **options)

    monkeypatch.setattr(promotions._lifecycle, "direct", direct_or_fail)


@pytest.mark.parametrize("canary", ["a", "b"])
def test_direction_whose_end_cannot_be_said_ends_at_its_time(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, canary: str
) -> None:
    """The promotion goes on, or is aborted for what the canary said, all the same."""
    promotions = two_versions(registry)
    lose_redis_at_the_end(promotions, monkeypatch)
    with fleet(registry, canary, fault=fail_on_b), ExitStack() as ends:
        if canary == "b":
            ends.enter_context(pytest.raises(PromotionAborted, match="b failed"))
        assert promotions.promote(BOT, 2, "stable", canaries=(canary,), timeout_s=30).record.version == 2
    assert registry.view().directed["default.support-bot.v2"].nodes == (canary,)
    assert registry.client.hgetall(registry.keys.promotions) == {}


def test_direction_whose_begin_was_not_answered_is_ended(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The promoter cannot know that nodes were told: it says that it is over, so that others can try the version."""
    promotions = two_versions(registry)
    direct = promotions._lifecycle.direct

    def direct_and_lose_the_answer(record: VersionRecord, nodes: Collection[str], **options: Any) -> float:
        answer = direct(record, nodes, **options)
        if nodes:
            raise RedisUnavailable
        return answer

    monkeypatch.setattr(promotions._lifecycle, "direct", direct_and_lose_the_answer)
    join(registry, "a")
    with pytest.raises(RedisUnavailable):
        promotions.promote(BOT, 2, "stable", canaries=("a",), timeout_s=30)
    assert registry.view().directed == {}


def test_alias_that_cannot_be_moved_back_is_left_to_workers_and_that_is_said(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis goes away when a node has failed: what the node said is not lost, and the promotion stays open."""
    promotions = two_versions(registry)

    def fail(*_: object, **__: object) -> VersionRecord:
        raise ServerNotAdmitted

    def fail_and_restart(node_id: str, served_name: str) -> tuple[NodeState, str] | None:
        if said := fail_on_b(node_id, served_name):
            monkeypatch.setattr(promotions._catalog, "move_alias", fail)
        return said

    with (
        fleet(registry, "a", "b", fault=fail_and_restart),
        pytest.raises(PromotionAborted, match=r"b failed: TEST_FAULT no memory; .*@stable is not back yet: workers"),
    ):
        promotions.promote(BOT, 2, "stable", canaries=("a",), timeout_s=30)
    assert registry.client.hlen(registry.keys.promotions) == 1


@pytest.mark.parametrize("canaries", [("nobody",), ("of-another-base",)])
def test_canary_that_is_not_there_is_refused_before_anything_is_told(
    registry: Registry, canaries: tuple[str, ...]
) -> None:
    """A node that is unknown, dead or of another base model cannot open the gate."""
    promotions = two_versions(registry)
    join(registry, "of-another-base", base_model="other")
    before = registry.log()
    with pytest.raises(NotFound, match=canaries[0]):
        promotions.promote(BOT, 2, "stable", canaries=canaries, timeout_s=30)
    assert registry.log() == before


def test_direction_of_a_promoter_that_died_ends_by_itself(registry: Registry) -> None:
    """Its time is over for nodes, and the next direction of the base model clears it away for all."""
    two_versions(registry)
    record = registry.catalog.versions(BOT)[1]
    registry.lifecycle.direct(record, ["a", "b"], token="t", for_s=0)
    (direction,) = registry.view().directed.values()
    assert direction.nodes == ("a", "b")
    wait_until(lambda: not direction.holds("a", now_s=time.time()), what="the end of its time")
    registry.lifecycle.direct(registry.catalog.versions(BOT)[0], ["a"], token="t", for_s=60)
    assert set(registry.view().directed) == {"default.support-bot.v1"}


@pytest.mark.parametrize("version", [2, None], ids=["pinned", "follows"])
def test_promotion_to_where_the_alias_points_already_changes_nothing_when_it_fails(
    registry: Registry, version: int | None
) -> None:
    """A failure is said, and the alias is where it was, of the mode that it had; nothing is left open."""
    promotions = two_versions(registry)
    registry.catalog.move_alias(BOT, "stable", version)
    was = registry.catalog.aliases(BOT)["stable"]
    join(registry, "silent")
    with fleet(registry, "a") as nodes:
        wait_until(lambda: nodes["a"].held.get("support-bot.v2"), what="the canary")
        with pytest.raises(PromotionAborted, match=r"support-bot\.v2(, as it did before| again)$"):
            promotions.promote(BOT, 2, "stable", canaries=("a",), timeout_s=0.3)
    assert registry.catalog.aliases(BOT)["stable"] == was
    assert registry.client.hgetall(registry.keys.promotions) == {}
