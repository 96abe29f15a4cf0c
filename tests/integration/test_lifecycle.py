"""Retiring, keeping the last, labels, aliases' histories and rollback, on a real server."""

from __future__ import annotations

import itertools
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lora_registry.catalog import ANY_ALIAS, OWN_ALIAS
from lora_registry.catalog_records import AliasMode, MovedBy
from lora_registry.errors import Conflict, NotFound, Rejected, ServerNotAdmitted
from lora_registry.lifecycle import AliasMove
from lora_registry.names import AdapterName, Reference
from lora_registry.registrations import Outcome
from lora_registry.stages import Stage
from tests.helpers.registry import BASE, Registry, digest_of

BOT = AdapterName("default", "support-bot")


def version(number: int, adapter: AdapterName = BOT) -> Reference:
    """One version of an adapter."""
    return Reference(adapter, version=number)


def numbers(registry: Registry, adapter: AdapterName = BOT) -> list[int]:
    """Numbers of the versions that are published."""
    return [record.version for record in registry.catalog.versions(adapter)]


def told(registry: Registry) -> list[str]:
    """The announcements, each in a few words."""
    found = [json.loads(message) for message in registry.log()]
    return [f"{each['type'].removeprefix('io.lora-registry.').removesuffix('.v1')} {each['subject']}" for each in found]


# Retiring


def test_retired_version_is_gone_from_everything_that_selects(registry: Registry) -> None:
    """It is in no listing, selection or snapshot; whoever asks for it is told that it was retired."""
    registry.register(content="one")
    registry.register(content="two")
    assert registry.lifecycle.retire_version(BOT, 1) is True
    assert numbers(registry) == [2]
    assert [record.version for record in registry.catalog.select(base_model=BASE)] == [2]
    assert set(registry.view().versions) == {"default.support-bot.v2"}
    with pytest.raises(NotFound, match="was retired"):
        registry.catalog.version(version(1))
    with pytest.raises(NotFound, match="was retired"):
        registry.catalog.move_alias(BOT, "stable", 1)
    with pytest.raises(NotFound, match=r"no version 7$"):
        registry.catalog.version(version(7))


def test_retiring_is_announced_with_what_nodes_know_it_by(registry: Registry) -> None:
    """The announcement names version, id and digest, and follows the others in sequence."""
    registry.register(content="one")
    registry.register(content="two")
    registry.lifecycle.retire_version(BOT, 1)
    message = json.loads(registry.log()[-1])
    assert message["type"] == "io.lora-registry.version.retired.v1"
    assert (message["subject"], message["sequence"]) == ("support-bot.v1", "5")
    assert message["data"] == {
        "namespace": "default",
        "name": "support-bot",
        "version": 1,
        "lora_int_id": 1,
        "digest": digest_of("one"),
    }


def test_retiring_twice_changes_nothing_more(registry: Registry) -> None:
    """The second time is told that it was retired already; a version that never was is not found."""
    registry.register(content="one")
    registry.register(content="two")
    registry.lifecycle.retire_version(BOT, 1)
    before = registry.log()
    assert registry.lifecycle.retire_version(BOT, 1) is False
    with pytest.raises(NotFound):
        registry.lifecycle.retire_version(BOT, 9)
    with pytest.raises(NotFound):
        registry.lifecycle.retire_version(AdapterName("default", "nobody"), 1)
    assert registry.log() == before


def test_version_that_an_alias_points_at_is_not_retired(registry: Registry) -> None:
    """Requests go there: the refusal names the aliases, and nothing is changed."""
    registry.register(content="one")
    registry.register(content="two")
    registry.catalog.move_alias(BOT, "stable", 1)
    with pytest.raises(Conflict, match="support-bot@stable") as refused:
        registry.lifecycle.retire_version(BOT, 1)
    assert "Move the alias" in refused.value.remedy
    with pytest.raises(Conflict, match="support-bot@support-bot"):
        registry.lifecycle.retire_version(BOT, 2)
    assert numbers(registry) == [1, 2]


def test_identity_of_a_retired_version_is_never_given_again(registry: Registry) -> None:
    """The same bytes registered again are a new version with a new id and number; the old pair stays on record."""
    first = registry.register(content="one")
    registry.register(content="two")
    registry.lifecycle.retire_version(BOT, 1)
    again = registry.register(content="one")
    assert again.outcome is Outcome.PUBLISHED
    assert (again.version, again.lora_int_id) == (3, 3)
    kept = registry.client.hget(registry.keys.retired(BASE), "default.support-bot.v1")
    assert kept is not None
    assert kept.startswith(f"{first.lora_int_id} {first.digest} ")


def test_number_of_a_retired_version_is_taken(registry: Registry) -> None:
    """Were the number issued twice, the publish script would refuse it: no served name gets other bytes."""
    registry.register(content="one")
    registry.register(content="two")
    registry.lifecycle.retire_version(BOT, 1)
    registration_id = registry.submit(content="three")
    lease = registry.advance(Stage.PUBLISH)[registration_id]
    registry.client.hset(registry.keys.registration(registration_id), "version", 1)
    lease.registration.__dict__["version"] = 1
    with pytest.raises(Rejected, match="taken"):
        registry.publish(lease)


def test_bytes_of_a_retired_head_are_published_anew(registry: Registry) -> None:
    """A registration is compared with the newest version that is left, never with a retired one."""
    registry.register(content="one")
    registry.catalog.move_alias(BOT, BOT.name, 1)
    registry.register(content="two")
    registry.lifecycle.retire_version(BOT, 2)
    assert registry.register(content="one").outcome is Outcome.UNCHANGED
    again = registry.register(content="two")
    assert (again.outcome, again.version) == (Outcome.PUBLISHED, 4)
    registry.lifecycle.retire_version(BOT, 4)
    assert registry.catalog.move_alias(BOT, BOT.name, None).version == 1


def test_retired_adapter_loses_aliases_before_versions(registry: Registry) -> None:
    """Nobody who applies the announcements in order sees an alias without its version; the base stays the adapter's."""
    registry.register(content="one")
    registry.register(content="two")
    registry.catalog.move_alias(BOT, "stable", 1)
    registry.register("other", content="three")
    begun = len(registry.log())
    assert registry.lifecycle.retire_adapter(BOT, by="me") == 2
    said = told(registry)[begun:]
    assert sorted(said[:2]) == [
        "alias.removed default.support-bot@stable",
        "alias.removed default.support-bot@support-bot",
    ]
    assert said[2:] == ["version.retired support-bot.v1", "version.retired support-bot.v2"]
    assert (numbers(registry), registry.catalog.aliases(BOT)) == ([], {})
    assert registry.catalog.base_of(BOT) == BASE
    assert registry.version("other").version == 1
    assert registry.lifecycle.history(BOT, "stable")[0].how is MovedBy.RETIRE
    assert registry.lifecycle.retire_adapter(BOT) == 0
    with pytest.raises(NotFound, match="no version to follow"):
        registry.catalog.move_alias(BOT, BOT.name, None)


def test_adapter_comes_back_under_new_numbers(registry: Registry) -> None:
    """After an adapter was retired its next registration is published and its own alias follows it."""
    registry.register(content="one")
    registry.lifecycle.retire_adapter(BOT)
    again = registry.register(content="one")
    assert (again.outcome, again.version, again.lora_int_id) == (Outcome.PUBLISHED, 2, 2)
    assert registry.catalog.aliases(BOT)[BOT.name].mode is AliasMode.FOLLOW
    assert registry.version().version == 2


def test_large_adapter_is_retired_in_parts(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """No single script retires more than its share, and what is published meanwhile stays."""
    monkeypatch.setattr("lora_registry.lifecycle._AT_ONCE", 4)
    for number in range(10):
        registry.register(content=str(number))
    retire, calls = registry.lifecycle._retire, 0

    def retire_and_publish(*args: object) -> object:
        nonlocal calls
        calls += 1
        answer = retire(*args)  # type: ignore[arg-type]
        if calls == 1:
            registry.register(content="new")
        return answer

    monkeypatch.setattr(registry.lifecycle, "_retire", retire_and_publish)
    assert registry.lifecycle.retire_adapter(BOT) == 10
    assert calls == 3
    assert numbers(registry) == [11]
    assert registry.version().version == 11


def test_new_server_is_admitted_before_anything_is_changed(registry: Registry) -> None:
    """What announces needs a generation: each change waits for the dispatcher."""
    registry.register(content="one")
    registry.register(content="two")
    record = registry.version()
    registry.forget_server()
    for change in (
        lambda: registry.lifecycle.retire_version(BOT, 1),
        lambda: registry.lifecycle.retire_adapter(BOT),
        lambda: registry.lifecycle.label(version(1), {"a": "b"}),
        lambda: registry.lifecycle.remove_alias(BOT, "stable"),
        lambda: registry.lifecycle.direct(record, ["node-1"], token="t", for_s=1),
    ):
        with pytest.raises(ServerNotAdmitted):
            change()


# keep_last


def test_only_the_last_versions_are_kept(registry: Registry) -> None:
    """With keep_last 2 each publication retires what is older than the two newest."""
    keeping = registry.with_settings(keep_last=2)
    for content in "abcde":
        keeping.register(content=content)
    assert numbers(registry) == [4, 5]
    assert told(registry)[-3:] == [
        "version.published support-bot.v5",
        "alias.moved default.support-bot@support-bot",
        "version.retired support-bot.v3",
    ]


@pytest.mark.parametrize("for_s", [math.inf, math.nan, -1.0, 1e17])
def test_a_direction_of_no_end_is_refused(registry: Registry, for_s: float) -> None:
    """Its end would be no number that the scripts can read: nothing of that base model could be directed any more."""
    registry.register(BOT.name)
    with pytest.raises(Rejected, match="no time"):
        registry.lifecycle.direct(registry.catalog.version(version(1)), ["node-1"], token="t", for_s=for_s)
    assert registry.client.hgetall(registry.keys.directed(BASE)) == {}


def test_aliases_and_directions_hold_old_versions(registry: Registry) -> None:
    """What an alias names, and what nodes are told to hold, is kept however old it is, and goes once nothing does."""
    keeping = registry.with_settings(keep_last=1)
    registry.register(content="a")
    registry.register(content="b")
    registry.catalog.move_alias(BOT, "stable", 1)
    record = registry.catalog.version(version(2))
    registry.lifecycle.direct(record, ["node-1"], token="t", for_s=60)
    keeping.register(content="c")
    assert numbers(registry) == [1, 2, 3]
    registry.lifecycle.direct(record, [], token="t", for_s=0)
    registry.lifecycle.remove_alias(BOT, "stable")
    keeping.register(content="d")
    assert numbers(registry) == [4]


def test_a_version_is_tried_by_one_promotion_at_a_time(registry: Registry) -> None:
    """Another's is refused, on the same nodes too, and ends nothing; the same told twice, or after its end, is told."""
    registry.register()
    record = registry.catalog.version(version(1))
    registry.lifecycle.direct(record, ["node-1"], token="one", for_s=60)
    for nodes in (["node-1"], ["node-2"]):
        with pytest.raises(Conflict, match=r"tried on node-1, for (59|60|61) s more"):
            registry.lifecycle.direct(record, nodes, token="two", for_s=60)
    registry.lifecycle.direct(record, [], token="two", for_s=0)
    registry.lifecycle.direct(record, ["node-1"], token="one", for_s=60)
    assert registry.view().directed["default.support-bot.v1"].nodes == ("node-1",)
    registry.lifecycle.direct(record, [], token="one", for_s=0)
    assert registry.view().directed == {}
    registry.lifecycle.direct(record, ["node-2"], token="two", for_s=60)


def test_a_direction_that_an_older_promoter_gave_is_somebody_elses_until_its_time(registry: Registry) -> None:
    """It was stored without a token: nodes hold the version, no other promotion tries it, and its time ends it."""
    registry.register()
    record, key = registry.catalog.version(version(1)), registry.keys.directed(BASE)
    registry.client.hset(key, record.field, f"{registry.client.time()[0] + 60} node-1 node-2")
    with pytest.raises(Conflict, match="tried on node-1 node-2"):
        registry.lifecycle.direct(record, ["node-1"], token="t", for_s=60)
    registry.lifecycle.direct(record, [], token="t", for_s=0)
    assert registry.view().directed[record.field].nodes == ("node-1", "node-2")
    registry.client.hset(key, record.field, f"{registry.client.time()[0] - 1} node-1 node-2")
    registry.lifecycle.direct(record, ["node-1"], token="t", for_s=60)
    assert registry.view().directed[record.field].nodes == ("node-1",)


def test_pinned_own_alias_keeps_its_version_and_the_newest_stays(registry: Registry) -> None:
    """Neither what is served nor the newest version is ever retired by itself."""
    keeping = registry.with_settings(keep_last=1)
    keeping.register(content="a")
    keeping.catalog.move_alias(BOT, BOT.name, 1)
    for content in "bcd":
        keeping.register(content=content)
    assert numbers(registry) == [1, 4]


def test_adapters_number_goes_before_its_namespaces_and_that_before_the_setting(registry: Registry) -> None:
    """The closest word counts; 0 keeps all; what was said can be taken back."""
    lifecycle = registry.with_settings(keep_last=1).lifecycle
    registry.register(content="first")
    assert lifecycle.keep_last_of("default", "support-bot") == 1
    lifecycle.set_keep_last(3)
    assert lifecycle.keep_last_of("default", "support-bot") == 3
    lifecycle.set_keep_last(0, name="support-bot")
    assert lifecycle.keep_last_of("default", "support-bot") == 0
    for name in ("support-bot", "other"):
        for content in "abcde":
            registry.with_settings(keep_last=1).register(name, content=content)
    assert numbers(registry) == [1, 2, 3, 4, 5, 6]
    assert numbers(registry, AdapterName("default", "other")) == [3, 4, 5]
    lifecycle.set_keep_last(None, name="support-bot")
    assert lifecycle.keep_last_of("default", "support-bot") == 3


# Labels


def test_labels_change_without_a_registration(registry: Registry) -> None:
    """Set and dropped in one step, announced, and nothing is said if nothing changed; the rest of the record stays."""
    registry.register(labels={"tier": "silver", "team": "a"}, metadata={"k": "v"})
    before = registry.version()
    record, changed = registry.lifecycle.label(Reference(BOT), {"tier": "gold", "env": "prod"}, drop=["team"])
    assert changed
    assert record == registry.version() == before.model_copy(update={"labels": {"tier": "gold", "env": "prod"}})
    assert told(registry)[-1] == "version.labels-changed support-bot.v1"
    assert registry.view().versions == {record.field: record}
    assert registry.lifecycle.label(version(1), {"tier": "gold"}, drop=["nothing"]) == (record, False)
    assert len(registry.log()) == 3


def test_illegal_labels_are_refused(registry: Registry) -> None:
    """The same rules as in events hold, the most there may be included."""
    registry.register(labels={f"key-{number}": "" for number in range(32)})
    for labels in ({"bad key": "x"}, {"key": "x" * 257}, {"one-more": ""}):
        with pytest.raises(Rejected):
            registry.lifecycle.label(version(1), labels)
    assert registry.lifecycle.label(version(1), {"one-more": ""}, drop=["key-0"])[1]


def test_different_labels_set_at_once_are_all_kept(registry: Registry) -> None:
    """Eight people label a version at the same time: no label is lost."""
    registry.register()

    def label(number: int) -> None:
        registry.lifecycle.label(version(1), {f"key-{number}": str(number)})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(label, range(24)))
    assert registry.version().labels == {f"key-{number}": str(number) for number in range(24)}


# Selection


def test_selection_by_alias(registry: Registry) -> None:
    """Only what an alias points at: one by name, each adapter's own, or any; labels narrow it further."""
    for name, tier in (("a", "gold"), ("b", "silver")):
        for content in "12":
            registry.register(name, content=name + content, labels={"tier": tier})
    registry.catalog.move_alias(AdapterName("default", "a"), "stable", 1)

    def selected(**selectors: object) -> set[str]:
        return {record.served_name for record in registry.catalog.select(**selectors)}  # type: ignore[arg-type]

    assert selected(alias="stable") == {"a.v1"}
    assert selected(alias=OWN_ALIAS) == {"a.v2", "b.v2"}
    assert selected(alias=ANY_ALIAS) == {"a.v1", "a.v2", "b.v2"}
    assert selected(alias=ANY_ALIAS, labels={"tier": "gold"}) == {"a.v1", "a.v2"}
    assert selected(alias="nobody") == set()


# Aliases


def test_history_tells_who_moved_an_alias_from_where_to_where(registry: Registry) -> None:
    """Publications, people and removals are all in it, newest first."""
    first = registry.register(content="one")
    registry.register(content="two")
    registry.catalog.move_alias(BOT, BOT.name, 1, by='Ann "the" admin')
    registry.catalog.move_alias(BOT, BOT.name, 1, by="changes nothing")
    registry.catalog.move_alias(BOT, BOT.name, None, by="Bob")
    moves = registry.lifecycle.history(BOT, BOT.name)
    assert [(each.before, each.after, each.mode, each.how) for each in moves] == [
        (1, 2, "follow", MovedBy.FOLLOW),
        (2, 1, "pinned", MovedBy.SET),
        (1, 2, "follow", MovedBy.FOLLOW),
        (None, 1, "follow", MovedBy.FOLLOW),
    ]
    assert [each.by for each in moves[:2]] == ["Bob", 'Ann "the" admin']
    assert moves[-1].by == first.id
    assert moves[0].at_s > moves[-1].at_s


def test_history_is_bounded_and_ends_with_its_alias(registry: Registry) -> None:
    """The last 100 moves are kept; those of a removed alias expire, and not if it is set again."""
    registry.register(content="one")
    registry.register(content="two")
    for number in range(120):
        registry.catalog.move_alias(BOT, "stable", 1 + number % 2)
    assert len(registry.lifecycle.history(BOT, "stable")) == 100
    key = registry.keys.moves(BOT, "stable")
    assert registry.lifecycle.remove_alias(BOT, "stable") == 2
    assert 0 < registry.client.ttl(key) <= registry.settings.retention_s
    assert registry.lifecycle.history(BOT, "stable")[0].after is None
    registry.catalog.move_alias(BOT, "stable", 1)
    assert registry.client.ttl(key) == -1


def test_rollback_goes_back_a_move_at_a_time(registry: Registry) -> None:
    """Each rollback undoes one move more and pins; a new publication does not take the alias then."""
    for content in "abc":
        registry.register(content=content)
    assert registry.lifecycle.rollback(BOT, BOT.name, by="me").version == 2
    assert registry.catalog.aliases(BOT)[BOT.name].mode is AliasMode.PINNED
    assert registry.lifecycle.rollback(BOT, BOT.name).version == 1
    with pytest.raises(NotFound, match="never pointed"):
        registry.lifecycle.rollback(BOT, BOT.name)
    registry.register(content="d")
    assert registry.version().version == 1
    registry.catalog.move_alias(BOT, BOT.name, 3)
    assert registry.lifecycle.rollback(BOT, BOT.name).version == 1


def test_rollback_to_a_retired_version_says_so(registry: Registry) -> None:
    """It does not go to some other version in silence."""
    for content in "ab":
        registry.register(content=content)
    registry.lifecycle.retire_version(BOT, 1)
    with pytest.raises(NotFound, match=r"support-bot\.v1.*was retired") as refused:
        registry.lifecycle.rollback(BOT, BOT.name)
    assert "alias set" in refused.value.remedy
    assert registry.version().version == 2


def test_rollback_of_what_somebody_else_moves_is_a_conflict(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the move somebody moved the alias: it stays where they put it."""
    for content in "abc":
        registry.register(content=content)
    history = registry.lifecycle.history

    def look_and_be_overtaken(adapter: AdapterName, alias: str) -> list[AliasMove]:
        found = history(adapter, alias)
        registry.catalog.move_alias(BOT, BOT.name, 1)
        return found

    monkeypatch.setattr(registry.lifecycle, "history", look_and_be_overtaken)
    with pytest.raises(Conflict):
        registry.lifecycle.rollback(BOT, BOT.name)
    assert registry.version().version == 1


def test_removed_alias_is_announced_and_its_version_stays(registry: Registry) -> None:
    """Only an alias that is not the adapter's own goes, and only from where it was expected."""
    registry.register(content="one")
    registry.catalog.move_alias(BOT, "stable", 1)
    with pytest.raises(Conflict):
        registry.lifecycle.remove_alias(BOT, "stable", expect=2)
    with pytest.raises(Rejected, match="own alias"):
        registry.lifecycle.remove_alias(BOT, BOT.name)
    assert registry.lifecycle.remove_alias(BOT, "stable", expect=1) == 1
    assert told(registry)[-1] == "alias.removed default.support-bot@stable"
    with pytest.raises(NotFound):
        registry.lifecycle.remove_alias(BOT, "stable")
    assert numbers(registry) == [1]
    assert set(registry.view().aliases) == {"default.support-bot@support-bot"}


def test_of_fifty_writers_one_wins_each_time_and_the_history_is_complete(registry: Registry) -> None:
    """Fifty compare and swap the same alias at once until each has won: fifty moves, each from where the last went."""
    for content in "abc":
        registry.register(content=content)
    registry.catalog.move_alias(BOT, "stable", 1)
    barrier = threading.Barrier(50)
    lost = [0] * 50

    def write(writer: int) -> None:
        barrier.wait()
        while True:
            target = registry.lifecycle.target(BOT, "stable")
            assert target is not None
            try:
                registry.catalog.move_alias(
                    BOT, "stable", target.version % 3 + 1, expect=target.version, by=f"writer-{writer}"
                )
            except Conflict:
                lost[writer] += 1
                continue
            return

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    moves = registry.lifecycle.history(BOT, "stable")[::-1]
    assert sorted(each.by for each in moves[1:]) == sorted(f"writer-{writer}" for writer in range(50))
    assert all(before.after == after.before for before, after in itertools.pairwise(moves))
    target = registry.lifecycle.target(BOT, "stable")
    assert target is not None
    assert target.version == moves[-1].after == 50 % 3 + 1
    assert sum(lost) > 0
    moved = [each for each in told(registry) if each == "alias.moved default.support-bot@stable"]
    assert len(moved) == 51


@pytest.mark.parametrize("expected_by_all", [1])
def test_of_fifty_who_expect_the_same_exactly_one_wins(registry: Registry, expected_by_all: int) -> None:
    """Fifty who all saw version 1 move the alias at once: one does, and 49 are told that it has moved."""
    for content in "ab":
        registry.register(content=content)
    registry.catalog.move_alias(BOT, "stable", 1)
    barrier = threading.Barrier(50)

    def write(_: int) -> bool:
        barrier.wait()
        try:
            registry.catalog.move_alias(BOT, "stable", 2, expect=expected_by_all)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(50) as pool:
        won = list(pool.map(write, range(50)))
    assert won.count(True) == 1
    assert len(registry.lifecycle.history(BOT, "stable")) == 2
