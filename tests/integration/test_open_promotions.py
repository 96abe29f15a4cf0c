"""Deciding a promotion whose promoter is gone, by what nodes said."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from lora_registry.catalog import Opening
from lora_registry.catalog_records import AliasMode, MovedBy
from lora_registry.errors import Conflict, PromotionAborted
from lora_registry.names import AdapterName
from lora_registry.nodes import NodeState
from lora_registry.open_promotions import OpenPromotion, OpenPromotions
from lora_registry.promotion import Promotions
from tests.helpers.nodes import join, serve
from tests.helpers.promotions import BOT, client_of, lost, move_and_die, moves_of, two_versions
from tests.helpers.registry import Registry
from tests.helpers.simulated_nodes import fleet
from tests.helpers.waiting import wait_until


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
    registry.lifecycle.direct(registry.version(alias="stable"), ["node-1"], token="token-2", for_s=60)
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


def test_deciding_a_promotion_leaves_the_direction_of_another(registry: Registry, promotions: Promotions) -> None:
    """A second promotion of the version tries it by now, for another alias: its canaries go on holding it."""
    move_and_die(registry, length_s=0.0)
    registry.lifecycle.direct(registry.version(alias="stable"), ["node-1"], token="of-another", for_s=60)
    assert len(promotions.settle(by="worker w")) == 1
    assert registry.view().directed["default.support-bot.v2"].nodes == ("node-1",)


@pytest.mark.parametrize("wanted_by", ["the direction of another", "another alias"])
def test_only_nodes_that_follow_the_alias_decide_its_promotion(
    registry: Registry, promotions: Promotions, wanted_by: str
) -> None:
    """One that holds the version for another's sake, and failed with it, is the other's concern."""
    join(registry, "of-beta", select="alias=beta")
    move_and_die(registry)
    if wanted_by == "another alias":
        registry.catalog.move_alias(BOT, "beta", 2)
    else:
        registry.lifecycle.direct(registry.version(alias="stable"), ["of-beta"], token="of-another", for_s=60)
    registry.nodes.ack("of-beta", "support-bot.v2", NodeState.FAILED, code="NODE_FULL", reason="no space left")
    assert promotions.settle(by="worker w") == []
    serve(registry.nodes, "node-1", "support-bot.v2")
    (said,) = promotions.settle(by="worker w")
    assert "stays at support-bot.v2" in said


def test_worker_that_decides_brings_the_mode_back_too(registry: Registry) -> None:
    """What was published while the promotion was open is not followed in its place: the next one is."""
    registry.register(content="one")
    registry.register(content="two", follow="manual")
    registry.client.hdel(registry.keys.adapter(BOT), "follow")
    promotions = client_of(registry).promotions()
    move_and_die(registry, BOT.name, length_s=0.0)
    registry.register(content="three")
    promotions.settle(by="worker w")
    target = registry.catalog.aliases(BOT)[BOT.name]
    assert (target.version, target.mode) == (1, AliasMode.FOLLOW)
    registry.register(content="four")
    assert registry.version().version == 4


def test_alias_that_was_pinned_is_pinned_again(registry: Registry, promotions: Promotions) -> None:
    """A failed promotion does not make an alias follow that did not."""
    move_and_die(registry, BOT.name, length_s=0.0)
    promotions.settle(by="worker w")
    target = registry.catalog.aliases(BOT)[BOT.name]
    assert (target.version, target.mode) == (1, AliasMode.PINNED)


def test_promotion_does_not_begin_from_one_that_nobody_decided(registry: Registry, promotions: Promotions) -> None:
    """Going back would end at a version that was only tried; once that is decided, or by hand, the alias moves."""
    registry.register(content="three")
    move_and_die(registry)
    before = moves_of(registry)
    with fleet(registry, "a"):
        with pytest.raises(Conflict, match=r"stable is being promoted to support-bot\.v2 by me") as refused:
            promotions.promote(BOT, 3, "stable", canaries=("a",), timeout_s=30)
        assert "alias set" in refused.value.remedy
        with pytest.raises(Conflict, match=r"stable is being promoted to support-bot\.v2 by me"):
            promotions.promote(BOT, 2, "stable", canaries=("a",), timeout_s=30)
        assert (moves_of(registry), len(lost(registry)), registry.view().directed) == (before, 1, {})
        serve(registry.nodes, "node-1", "support-bot.v2")
        wait_until(lambda: promotions.settle(by="worker w"), what="the decision")
        serve(registry.nodes, "node-1", "support-bot.v3")
        assert promotions.promote(BOT, 3, "stable", canaries=("a",), timeout_s=30).before == 2


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
    """Set, rolled back, removed, set and set again, or promoted: it is theirs since, and nobody undoes it."""
    registry.register(content="three")
    changes: list[Callable[[], object]] = [
        lambda: registry.catalog.move_alias(BOT, "stable", 3),
        lambda: registry.lifecycle.rollback(BOT, "stable"),
        lambda: registry.lifecycle.remove_alias(BOT, "stable"),
        lambda: (registry.catalog.move_alias(BOT, "stable", 3), registry.catalog.move_alias(BOT, "stable", 2)),
        lambda: promotions.promote(BOT, 3, "stable"),
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


def test_version_that_an_alias_may_go_back_to_is_not_retired(registry: Registry, promotions: Promotions) -> None:
    """Not by hand either, until the promotion is decided: what failed would have to stay."""
    move_and_die(registry)
    registry.catalog.move_alias(BOT, BOT.name, 2)
    with pytest.raises(Conflict, match=r"v1 is what support-bot@stable goes back to if its promotion fails") as refused:
        registry.lifecycle.retire_version(BOT, 1)
    assert "alias set" in refused.value.remedy
    assert registry.catalog.version_numbers(BOT) == [1, 2]
    serve(registry.nodes, "node-1", "support-bot.v2")
    assert len(promotions.settle(by="worker w")) == 1
    assert registry.lifecycle.retire_version(BOT, 1)


def test_alias_whose_earlier_version_was_retired_stays(registry: Registry, promotions: Promotions) -> None:
    """Nothing can come of going back: that is said once, and the promotion is over."""
    move_and_die(registry, length_s=0.0)
    stored = registry.client.hgetall(registry.keys.promotions)
    registry.catalog.move_alias(BOT, BOT.name, 2)
    registry.client.delete(registry.keys.promotions)  # as a process that is older than the refusal does not look at it
    registry.lifecycle.retire_version(BOT, 1)
    registry.client.hset(registry.keys.promotions, mapping=stored)
    registry.client.expire(registry.keys.promotions, 60)
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
