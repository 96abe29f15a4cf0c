"""Promotion through a gate, and deciding one whose promoter is gone; nodes are threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from lora_registry.catalog import Opening
from lora_registry.catalog_records import MovedBy
from lora_registry.client import RegistrationClient
from lora_registry.errors import Conflict, NotFound, NotServed, PromotionAborted
from lora_registry.names import AdapterName
from lora_registry.nodes import NodeState
from lora_registry.open_promotions import OpenPromotion, OpenPromotions
from lora_registry.promotion import Promotions
from lora_registry.rollout import Standing
from tests.helpers.nodes import join, serve
from tests.helpers.registry import Registry
from tests.helpers.simulated_nodes import fleet
from tests.helpers.waiting import wait_until

BOT = AdapterName("default", "support-bot")


def client_of(registry: Registry) -> RegistrationClient:
    """A publisher's client of the registry."""
    return RegistrationClient(registry.client, registry.settings)


def states(standings: list[Standing]) -> dict[str, str | None]:
    """Node → what it last said."""
    return {each.node_id: each.state and str(each.state) for each in standings}


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
    with pytest.raises(NotFound, match=canaries[0]):
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


# A promoter that is gone


def move_and_die(
    registry: Registry, alias: str = "stable", *, version: int = 2, before: int = 1, length_s: float = 60.0
) -> None:
    """What is left of a promoter that died right after it moved the alias."""
    opening = Opening(f"token-{version}", lease_s=0.0, length_s=length_s, failures_since_s=1.0)
    registry.catalog.move_alias(BOT, alias, version, expect=before, by="me", how=MovedBy.PROMOTE, opens=opening)


def moves_of(registry: Registry, alias: str = "stable") -> list[tuple[str, int | None, int | None, str]]:
    """The alias's moves, newest first: by what, from where, to where, by whom."""
    return [(each.how, each.before, each.after, each.by) for each in registry.lifecycle.history(BOT, alias)]


def lost(registry: Registry) -> list[OpenPromotion]:
    """The promotions that somebody has to decide."""
    return OpenPromotions(registry.client, registry.settings).lost()[0]


@pytest.fixture
def promotions(registry: Registry) -> Promotions:
    """Two versions, of which the aliases point at the first, and a node that serves that one."""
    promotions = two_versions(registry)
    serve(join(registry), "node-1", "support-bot.v1")
    return promotions


def test_promotion_without_its_promoter_is_decided_as_it_would_have_decided(
    registry: Registry, promotions: Promotions
) -> None:
    """Nothing while a node is under way; the alias stays once all serve it, and nothing is left to decide."""
    move_and_die(registry)
    assert promotions.settle(by="worker w") == []
    assert [(each.version, each.before, each.by) for each in lost(registry)] == [(2, 1, "me")]
    serve(registry.nodes, "node-1", "support-bot.v2")
    (said,) = promotions.settle(by="worker w")
    assert "support-bot@stable stays at support-bot.v2" in said
    assert lost(registry) == []
    assert moves_of(registry)[0] == (MovedBy.PROMOTE, 1, 2, "me")
    assert registry.version(alias="stable").version == 2


@pytest.mark.parametrize("reason", ["a node fails", "it takes too long", "no node is there any more"])
def test_promotion_without_its_promoter_goes_back_for_the_same_reasons(
    registry: Registry, promotions: Promotions, reason: str
) -> None:
    """A node that failed, the end of the time, or nobody who wants it: back, and the history says who did it."""
    move_and_die(registry, length_s=0.0 if reason == "it takes too long" else 60.0)
    registry.lifecycle.direct(registry.version(alias="stable"), ["node-1"], for_s=60)
    if reason == "a node fails":
        registry.nodes.ack("node-1", "support-bot.v2", NodeState.FAILED, code="NODE_FULL", reason="no space left")
    if reason == "no node is there any more":
        registry.nodes.leave("node-1")
    (said,) = promotions.settle(by="worker w")
    assert "points at support-bot.v1 again" in said
    assert ("NODE_FULL" in said) is (reason == "a node fails")
    assert moves_of(registry)[:2] == [(MovedBy.ROLLBACK, 2, 1, "worker w for me"), (MovedBy.PROMOTE, 1, 2, "me")]
    assert lost(registry) == []
    assert registry.view().directed == {}
    assert promotions.settle(by="worker w") == []


def test_failures_from_before_the_promotion_do_not_bring_the_alias_back(
    registry: Registry, promotions: Promotions
) -> None:
    """What a node said before the promotion began counts as little as for the promoter."""
    registry.nodes.ack("node-1", "support-bot.v2", NodeState.FAILED, code="NODE_FULL", reason="no space left")
    later = Opening("token", lease_s=0.0, length_s=60.0, failures_since_s=time.time() + 60)
    registry.catalog.move_alias(BOT, "stable", 2, how=MovedBy.PROMOTE, opens=later)
    assert promotions.settle(by="worker w") == []
    assert registry.version(alias="stable").version == 2


def test_many_decide_a_promotion_once(registry: Registry, promotions: Promotions) -> None:
    """Of any number that look at once, one moves the alias back."""
    for round_number in range(10):
        move_and_die(registry)
        registry.nodes.ack("node-1", "support-bot.v2", NodeState.FAILED, code="NODE_FULL", reason="no space left")
        together = threading.Barrier(4)

        def settle(number: int, together: threading.Barrier = together) -> None:
            together.wait()
            promotions.settle(by=f"worker {number}")

        threads = [threading.Thread(target=settle, args=(number,)) for number in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert [how for how, *_ in moves_of(registry)].count(MovedBy.ROLLBACK) == round_number + 1
    assert registry.version(alias="stable").version == 1


def test_whoever_moves_the_alias_ends_the_promotion(registry: Registry, promotions: Promotions) -> None:
    """Set, rolled back, removed, set and set again, or promoted again: it is theirs since, and nobody undoes it."""
    registry.register(content="three")
    changes: list[Callable[[], object]] = [
        lambda: registry.catalog.move_alias(BOT, "stable", 3),
        lambda: registry.lifecycle.rollback(BOT, "stable"),
        lambda: registry.lifecycle.remove_alias(BOT, "stable"),
        lambda: (registry.catalog.move_alias(BOT, "stable", 3), registry.catalog.move_alias(BOT, "stable", 2)),
    ]
    for change in changes:
        registry.catalog.move_alias(BOT, "stable", 1)
        move_and_die(registry)
        (opened,) = lost(registry)
        change()
        assert lost(registry) == []
        before = moves_of(registry)
        assert "somebody else" in promotions._move_back(registry.catalog.versions(BOT)[1], opened, "me")
        assert moves_of(registry) == before
    registry.catalog.move_alias(BOT, "stable", 1)
    move_and_die(registry)
    move_and_die(registry, version=3, before=2)
    assert [each.version for each in lost(registry)] == [3]


def test_new_alias_of_a_promoter_that_is_gone_is_removed_again(registry: Registry, promotions: Promotions) -> None:
    """There was none before; one that somebody has made again since is theirs."""
    move_and_die(registry, "beta", before=0, length_s=0.0)
    (opened,) = lost(registry)
    registry.lifecycle.remove_alias(BOT, "beta")
    registry.catalog.move_alias(BOT, "beta", 2)
    assert "somebody else" in promotions._move_back(registry.catalog.versions(BOT)[1], opened, "me")
    registry.lifecycle.remove_alias(BOT, "beta")
    move_and_die(registry, "beta", before=0, length_s=0.0)
    (said,) = promotions.settle(by="worker w")
    assert "removed again" in said
    assert "beta" not in registry.catalog.aliases(BOT)
    assert lost(registry) == []


def test_alias_whose_earlier_version_was_retired_stays(registry: Registry, promotions: Promotions) -> None:
    """Nothing can come of going back: that is said once, and the promotion is over."""
    move_and_die(registry, length_s=0.0)
    registry.catalog.move_alias(BOT, BOT.name, 2)
    registry.lifecycle.retire_version(BOT, 1)
    (said,) = promotions.settle(by="worker w")
    assert "stays, because support-bot has no version 1 any more" in said
    assert promotions.settle(by="worker w") == []
    assert registry.version(alias="stable").version == 2


def test_what_the_alias_may_go_back_to_is_kept(registry: Registry, promotions: Promotions) -> None:
    """`keep_last` does not retire it while the promotion is open, and does afterwards."""
    registry.catalog.move_alias(BOT, BOT.name, 2)
    move_and_die(registry)
    registry.lifecycle.set_keep_last(1, name=BOT.name)
    registry.register(content="three")
    assert registry.catalog.version_numbers(BOT) == [1, 2, 3]
    serve(registry.nodes, "node-1", "support-bot.v2")
    promotions.settle(by="worker w")
    registry.register(content="four")
    assert registry.catalog.version_numbers(BOT) == [2, 4]


def test_one_adapter_that_is_gone_holds_up_no_other_promotion(registry: Registry, promotions: Promotions) -> None:
    """The alias of the one is removed with it; the other is decided."""
    registry.register("other-bot", content="other")
    other = Opening("token", lease_s=0.0, length_s=60.0, failures_since_s=1.0)
    registry.catalog.move_alias(AdapterName("default", "other-bot"), "stable", 1, opens=other)
    move_and_die(registry, length_s=0.0)
    registry.lifecycle.retire_adapter(AdapterName("default", "other-bot"))
    assert len(promotions.settle(by="worker w")) == 1


def test_move_whose_answer_was_lost_is_not_taken_for_somebody_elses(registry: Registry, promotions: Promotions) -> None:
    """The same move again, as a client sends it when the answer was lost, is the same promotion: no conflict."""
    move_and_die(registry)
    before = moves_of(registry)
    move_and_die(registry)
    assert moves_of(registry) == before
    assert len(lost(registry)) == 1


def test_workers_are_woken_for_what_is_lost_and_not_too_often(registry: Registry, promotions: Promotions) -> None:
    """Not for a promoter that lives; once for one that is gone, again when somebody looked or the wake-up was lost."""
    patient = OpenPromotions(registry.client, registry.settings.model_copy(update={"wake_timeout_s": 3600.0}))
    alive = Opening("token", lease_s=60.0, length_s=60.0, failures_since_s=1.0)
    registry.catalog.move_alias(BOT, "stable", 2, opens=alive)
    assert patient.wake_ups() == 0
    move_and_die(registry, "beta", before=0)
    assert [patient.wake_ups() for _ in range(3)] == [1, 0, 0]
    assert [each.alias for each in lost(registry)] == ["beta"]
    assert [patient.wake_ups() for _ in range(2)] == [1, 0]
    hasty = OpenPromotions(registry.client, registry.settings.model_copy(update={"wake_timeout_s": 1e-6}))
    wait_until(hasty.wake_ups, what="another wake-up", every_s=0.001)
    assert patient.renew(BOT, "beta", "token-2")
    assert hasty.wake_ups() == 0
    assert not patient.renew(BOT, "beta", "token-3")


def test_promoter_that_was_taken_for_gone_hears_what_was_decided(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped for a while after the move: a worker kept the alias, which is success, or took it back."""
    promotions = two_versions(registry)
    kept = {"stable": True, "beta": False}
    wait = promotions._rollouts.wait

    def wait_while_another_decides(*args: object, **options: object) -> object:
        found = wait(*args, **options)  # type: ignore[arg-type]
        if "meanwhile" in options:
            (alias, stored) = registry.client.hgetall(registry.keys.promotions).popitem()
            opened = OpenPromotion.parse(alias, stored)
            decide = promotions._keep if kept[opened.alias] else take_back
            decide(opened)
        return found

    def take_back(opened: OpenPromotion) -> str:
        return promotions._move_back(registry.catalog.versions(BOT)[1], opened, "worker w")

    monkeypatch.setattr(promotions._rollouts, "wait", wait_while_another_decides)
    with fleet(registry, "a"):
        assert promotions.promote(BOT, 2, "stable", canaries=("a",), timeout_s=30).record.version == 2
        with pytest.raises(PromotionAborted, match="moved by somebody else"):
            promotions.promote(BOT, 2, "beta", canaries=("a",), timeout_s=30)


def test_promotion_to_where_the_alias_points_already_has_nothing_to_go_back_to(registry: Registry) -> None:
    """A failure is said, and the alias is where it was; nothing is left open."""
    promotions = two_versions(registry)
    registry.catalog.move_alias(BOT, "stable", 2)

    join(registry, "silent")
    with fleet(registry, "a") as nodes:
        wait_until(lambda: nodes["a"].held.get("support-bot.v2"), what="the canary")
        with pytest.raises(PromotionAborted, match="as it did before"):
            promotions.promote(BOT, 2, "stable", canaries=("a",), timeout_s=0.3)
    assert registry.client.hgetall(registry.keys.promotions) == {}
