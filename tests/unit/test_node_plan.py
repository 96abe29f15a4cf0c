"""What a node does next, from what is wanted and what is."""

from __future__ import annotations

from typing import Any

from lora_registry.catalog_records import VersionRecord
from lora_registry.nodes import NodeState
from lora_registry.selection import Wanted
from lora_workers.node.plan import (
    Confirm,
    Fetch,
    Leave,
    Load,
    Refuse,
    Return,
    Say,
    Situation,
    Unload,
    next_look_s,
    plan,
)
from lora_workers.node.wishes import Wish, wishes_of


def make_record(version: int = 1, *, name: str = "bot") -> VersionRecord:
    """A published version; its digest is written like its served name."""
    return VersionRecord(
        namespace="default",
        name=name,
        version=version,
        lora_int_id=version,
        served_name=f"{name}.v{version}",
        base_model="tiny-llama",
        base_revision="main",
        digest=f"sha256:{name}.v{version}",
        rank=8,
        size_bytes=1,
        source="/x",
        registration_id="r",
    )


V1, V2 = make_record(1), make_record(2)
STANDS_IN = Wish(V1, instead_of=("bot.v2",))
INSTEAD = {"bot.v2": frozenset({"bot.v1"})}


def make_situation(*records: VersionRecord, **fields: Any) -> Situation:
    """A situation in which these versions are wanted and verified in the cache."""
    usual: dict[str, Any] = {
        "wishes": tuple(Wish(record) for record in records),
        "listed": {},
        "ready": {record.digest: path_of(record) for record in records},
        "is_ours": lambda path: path is None or path.startswith("/cache/"),
        "now": 100.0,
        "drain_s": 10.0,
        "longest_drain_s": 60.0,
    }
    return Situation(**(usual | fields))


def path_of(record: VersionRecord) -> str:
    """Where the artifact lies."""
    return f"/cache/{record.digest}"


def test_what_is_missing_is_fetched_once() -> None:
    """A fetch on its way is not begun again."""
    assert plan(make_situation(V1, ready={})) == [Fetch(V1)]
    assert plan(make_situation(V1, ready={}, fetching=frozenset({V1.digest}))) == []


def test_what_is_there_is_loaded_then_confirmed_then_left_alone() -> None:
    """Three looks bring a version to answer, and the fourth finds nothing to do."""
    assert plan(make_situation(V1)) == [Load(V1, path_of(V1))]
    listed = {"bot.v1": path_of(V1)}
    assert plan(make_situation(V1, listed=listed)) == [Confirm(V1, path_of(V1))]
    assert plan(make_situation(V1, listed=listed, confirmed=frozenset({"bot.v1"}))) == []


def test_fetches_begin_before_loads() -> None:
    """A load may take long, and a fetch runs beside it."""
    assert plan(make_situation(V1, V2, ready={V1.digest: path_of(V1)})) == [Fetch(V2), Load(V1, path_of(V1))]


def test_a_damaged_file_of_a_loaded_adapter_is_fetched_again_without_an_unload() -> None:
    """Its path stays, and nobody who asks for it notices."""
    situation = make_situation(V1, listed={"bot.v1": path_of(V1)}, ready={}, confirmed=frozenset({"bot.v1"}))
    assert plan(situation) == [Fetch(V1)]


def test_the_old_version_goes_after_its_drain_time() -> None:
    """First it is noticed, then waited for, then unloaded; the new one is loaded before."""
    listed = {"bot.v1": path_of(V1)}
    assert plan(make_situation(V2, listed=listed)) == [Load(V2, path_of(V2)), Leave("bot.v1")]
    done = {"listed": listed | {"bot.v2": path_of(V2)}, "confirmed": frozenset({"bot.v2"})}
    assert plan(make_situation(V2, leaving={"bot.v1": 95.0}, **done)) == []
    assert plan(make_situation(V2, leaving={"bot.v1": 90.0}, **done)) == [Unload("bot.v1")]


def test_what_requests_run_on_is_not_unloaded_but_not_kept_for_ever() -> None:
    """An endless request holds an adapter for the longest drain time and no longer."""
    listed = {"bot.v1": path_of(V1)}
    busy = frozenset({"bot.v1"})
    assert plan(make_situation(listed=listed, leaving={"bot.v1": 60.0}, busy=busy)) == []
    assert plan(make_situation(listed=listed, leaving={"bot.v1": 40.0}, busy=busy)) == [Unload("bot.v1")]


def test_what_is_wanted_again_returns_without_an_unload() -> None:
    """A rollback within the drain time costs nothing."""
    listed = {"bot.v1": path_of(V1)}
    situation = make_situation(V1, listed=listed, leaving={"bot.v1": 1.0}, confirmed=frozenset({"bot.v1"}))
    assert plan(situation) == [Return("bot.v1")]


def test_a_name_on_which_requests_still_run_is_not_loaded_a_second_time() -> None:
    """vLLM dies of one name with two numbers in a batch: unloaded, running, and loaded again."""
    assert plan(make_situation(V1, busy=frozenset({"bot.v1"}))) == []


def test_another_path_under_the_name_is_unloaded_first() -> None:
    """After the cache was moved: never in place."""
    assert plan(make_situation(V1, listed={"bot.v1": "/cache/elsewhere"})) == [Unload("bot.v1")]


def test_an_engine_that_tells_no_paths_is_believed() -> None:
    """Its names are all there is."""
    assert plan(make_situation(V1, listed={"bot.v1": None})) == [Confirm(V1, path_of(V1))]


def test_what_others_loaded_stays() -> None:
    """Only what lies in this cache is the node's."""
    assert plan(make_situation(listed={"bot.v1": "/home/somebody"})) == []


def test_what_failed_rests_until_its_time() -> None:
    """No hammering; then it is tried again."""
    assert plan(make_situation(V1, resting={"bot.v1": 101.0})) == []
    assert plan(make_situation(V1, resting={"bot.v1": 99.0})) == [Load(V1, path_of(V1))]


def test_what_the_engine_is_being_called_for_is_left_alone_until_that_ends() -> None:
    """Not loaded a second time, not unloaded, not said to be gone, not waited for; the others go on."""
    under_way = frozenset({"bot.v1"})
    assert plan(make_situation(V1, V2, under_way=under_way)) == [Load(V2, path_of(V2))]
    listed = {"bot.v1": path_of(V1)}
    assert plan(make_situation(V1, listed=listed, under_way=under_way)) == []
    leaving = make_situation(listed=listed, leaving={"bot.v1": 5.0}, under_way=under_way)
    assert plan(leaving) == []
    assert next_look_s(leaving) is None
    assert plan(make_situation(known=frozenset({"bot.v1"}), under_way=under_way)) == []


def test_what_the_engine_would_not_serve_is_neither_fetched_nor_kept() -> None:
    """It is skipped; if it is loaded (the engine was replaced by another kind), it goes."""
    refused = frozenset({"bot.v1"})
    assert plan(make_situation(V1, ready={}, refused=refused)) == [Refuse(V1)]
    listed = {"bot.v1": path_of(V1)}
    assert plan(make_situation(V1, listed=listed, refused=refused)) == [Refuse(V1), Leave("bot.v1")]


def test_what_is_not_for_the_engine_now_waits_in_the_cache() -> None:
    """A lazy node, or one without a free slot, has it at hand."""
    situation = make_situation(wishes=(Wish(V1, eager=False),), ready={V1.digest: path_of(V1)})
    assert plan(situation) == [Say("bot.v1", NodeState.RESOLVABLE)]


def test_a_retired_version_is_said_to_be_gone_when_it_is() -> None:
    """Not while the engine lists it, nor while it is wanted."""
    fields: dict[str, Any] = {"known": frozenset({"bot.v1"})}
    assert plan(make_situation(**fields)) == [Say("bot.v1", NodeState.RETIRED)]
    leaving = make_situation(listed={"bot.v1": path_of(V1)}, leaving={"bot.v1": 95.0}, **fields)
    assert plan(leaving) == []
    wanted = make_situation(V1, ready={}, fetching=frozenset({V1.digest}), **fields)
    assert plan(wanted) == []


def test_a_name_that_others_took_is_said_to_be_gone() -> None:
    """What lies at another place is theirs, and left alone; the node's own is not there any more."""
    known = {"known": frozenset({"bot.v1"})}
    assert plan(make_situation(listed={"bot.v1": "/elsewhere"}, **known)) == [Say("bot.v1", NodeState.RETIRED)]


def test_the_next_look_is_when_something_is_due() -> None:
    """The end of a rest or of a drain time, whichever is first; rests of what nobody wants do not count."""
    assert next_look_s(make_situation(V1)) is None
    assert next_look_s(make_situation(V1, resting={"bot.v1": 103.0, "gone.v1": 101.0})) == 3.0
    assert next_look_s(make_situation(leaving={"bot.v1": 95.0}, resting={})) == 5.0


def test_what_is_due_and_cannot_be_done_yet_is_looked_at_in_a_while_and_not_at_once() -> None:
    """Requests that hold an adapter past its drain time, an unload that failed, a rest that is over: no busy loop."""
    busy: dict[str, Any] = {"leaving": {"bot.v1": 5.0}, "busy": frozenset({"bot.v1"}), "busy_look_s": 0.5}
    assert next_look_s(make_situation(**busy)) == 0.5
    assert next_look_s(make_situation(**busy, resting={"bot.v1": 130.0})) == 30.0
    assert next_look_s(make_situation(V1, resting={"bot.v1": 99.0})) is None


def test_an_unload_that_failed_rests_too() -> None:
    """An engine that does not unload is not asked over and over."""
    listed = {"bot.v1": path_of(V1)}
    gone: dict[str, Any] = {"listed": listed, "leaving": {"bot.v1": 5.0}}
    assert plan(make_situation(**gone, resting={"bot.v1": 101.0})) == []
    assert plan(make_situation(**gone, resting={"bot.v1": 99.0})) == [Unload("bot.v1")]


def test_the_old_version_stays_until_the_new_one_answers() -> None:
    """However long it takes, or if it never does: else nobody would answer for the alias."""
    stands_in: dict[str, Any] = {"listed": {"bot.v1": path_of(V1)}, "confirmed": frozenset({"bot.v1"})}
    stands_in |= {"wishes": (Wish(V2), STANDS_IN), "stand_ins": INSTEAD}
    assert plan(make_situation(V1, V2, **stands_in)) == [Load(V2, path_of(V2))]
    assert plan(make_situation(V1, V2, **stands_in, resting={"bot.v2": 900.0})) == []
    refused = frozenset({"bot.v2"})
    assert plan(make_situation(V1, V2, **stands_in, refused=refused)) == [Refuse(V2, frozenset({"bot.v1"}))]
    assert plan(make_situation(V1, V2, **stands_in, leaving={"bot.v1": 1.0}, resting={"bot.v2": 900.0})) == [
        Return("bot.v1")
    ]


def test_an_engine_that_lost_the_old_version_gets_it_back_if_the_new_one_is_held_up() -> None:
    """Refused, failed a moment ago, or not fetched yet; else the new one is loaded, and one load is enough."""
    lost: dict[str, Any] = {"wishes": (Wish(V2), STANDS_IN)}
    load = Load(V1, path_of(V1))
    assert plan(make_situation(V1, V2, **lost)) == [Load(V2, path_of(V2))]
    assert plan(make_situation(V1, V2, **lost, resting={"bot.v2": 900.0})) == [load]
    assert plan(make_situation(V1, V2, **lost, refused=frozenset({"bot.v2"}))) == [Refuse(V2), load]
    assert plan(make_situation(V1, **lost)) == [Fetch(V2), load]
    assert plan(make_situation(V1, **lost, fetching=frozenset({V2.digest}))) == [load]
    assert plan(make_situation(V1, V2, **lost, under_way=frozenset({"bot.v2"}))) == [load]  # it may hang


def test_what_stands_in_and_did_not_answer_is_not_said_to_answer() -> None:
    """It is listed, and nobody asked it for anything since it was loaded."""
    wishes = (Wish(V2), STANDS_IN)
    situation = make_situation(V1, V2, wishes=wishes, listed={"bot.v1": path_of(V1)}, refused=frozenset({"bot.v2"}))
    assert plan(situation) == [Refuse(V2), Confirm(V1, path_of(V1))]


def test_what_has_no_slot_any_more_leaves_the_engine_unless_that_loads_by_itself() -> None:
    """After a restart with fewer slots, or a direction; on a lazy node, what a request loaded stays."""
    fields: dict[str, Any] = {
        "wishes": (Wish(V1, eager=False),),
        "ready": {V1.digest: path_of(V1)},
        "listed": {"bot.v1": path_of(V1)},
    }
    assert plan(make_situation(**fields)) == [Leave("bot.v1")]
    assert plan(make_situation(**fields, leaving={"bot.v1": 5.0})) == [Unload("bot.v1")]
    assert plan(make_situation(**fields, lazy=True)) == [Confirm(V1, path_of(V1))]


def test_slots_go_to_what_is_loaded_then_to_the_newest_and_what_is_tried_out_takes_what_is_left() -> None:
    """Nothing is swapped to and fro; no canary takes a slot from what people use; what is refused takes none."""
    records = [make_record(number, name=f"bot{number}") for number in range(1, 6)]
    wanted = [Wanted(each, () if each.name == "bot5" else (f"default.{each.name}@prod",), True) for each in records]
    for slots, eager in (3, ["bot1.v1", "bot3.v3", "bot2.v2"]), (4, ["bot1.v1", "bot3.v3", "bot2.v2", "bot5.v5"]):
        wishes = wishes_of(wanted, eager=True, slots=slots, held={"bot1.v1", "bot5.v5"}, refused={"bot4.v4"})
        assert [wish.name for wish in wishes if wish.eager] == eager
        assert {wish.name for wish in wishes} == {record.served_name for record in records}
    assert all(wish.eager for wish in wishes_of(wanted, eager=True, slots=0))
    assert not any(wish.eager for wish in wishes_of(wanted, eager=False, slots=0))


def eager_of(*wanted: VersionRecord, **fields: Any) -> list[str]:
    """Which of these have slots, in a node of two."""
    given: dict[str, Any] = {"eager": True, "slots": 2} | fields
    wishes = wishes_of([Wanted(each, (f"default.{each.name}@prod",)) for each in wanted], **given)
    return [wish.name for wish in wishes if wish.eager]


def test_what_a_request_loaded_takes_no_slot_from_what_has_one() -> None:
    """The plug-in loads what is asked for: it is listed, too, and newer."""
    one, two, three = (make_record(number, name=f"bot{number}") for number in (1, 2, 3))
    had, held = {"bot1.v1", "bot2.v2"}, {"bot1.v1", "bot2.v2", "bot3.v3"}
    assert eager_of(one, two, three, held=held, had=had) == ["bot2.v2", "bot1.v1"]
    assert eager_of(one, two, three, held=held) == ["bot3.v3", "bot2.v2"]


def test_what_stands_in_for_a_refused_version_takes_its_slot() -> None:
    """What answers for an alias keeps its slot against newer wishes, and they get the others: never more than slots."""
    one, two, three = (make_record(number, name=f"bot{number}") for number in (1, 2, 3))
    old = make_record(9, name="bot1")
    refused: dict[str, Any] = {"stand_ins": {"bot1.v1": [old]}, "refused": {"bot1.v1"}, "had": {"bot1.v9"}}
    assert eager_of(one, two, three, **refused) == ["bot1.v1", "bot1.v9", "bot3.v3"]
    assert eager_of(one, two, three, refused={"bot1.v1"}) == ["bot3.v3", "bot2.v2"]
    assert eager_of(one, two, three, **refused, slots=0) == ["bot1.v1", "bot1.v9", "bot3.v3", "bot2.v2"]


def test_what_stands_in_for_several_is_counted_once_and_several_for_one_each() -> None:
    """One old version of two aliases has one slot; two old versions of one alias's target have two."""
    one, two, three = (make_record(number, name=f"bot{number}") for number in (1, 2, 3))
    olds = [make_record(number, name="old") for number in (1, 2)]
    both = dict.fromkeys(("bot1.v1", "bot2.v2"), olds[:1])
    kept: dict[str, Any] = {"refused": {"bot1.v1", "bot2.v2"}, "had": {"old.v1", "old.v2"}}
    assert eager_of(one, two, three, stand_ins=both, **kept) == ["bot2.v2", "old.v1", "bot3.v3"]
    pair: dict[str, Any] = {"stand_ins": {"bot1.v1": olds}}
    assert eager_of(one, three, **pair, **kept) == ["bot1.v1", "old.v1", "old.v2"]
    assert eager_of(one, three, **pair, had=kept["had"]) == ["bot1.v1", "old.v1", "old.v2"]  # all until it answers
    assert eager_of(one, three, **pair) == ["bot3.v3"]  # they had no slot: for one that has none nobody stands in


def test_what_stands_in_and_is_named_by_another_alias_keeps_its_own_slot() -> None:
    """Of two aliases one moved on: the version that the other one names is no less wanted for that."""
    new, old = make_record(2), make_record(1)
    given: dict[str, Any] = {"stand_ins": {"bot.v2": [old]}, "had": {"bot.v1"}, "held": {"bot.v1"}}
    assert eager_of(old, new, slots=1, **given) == ["bot.v1"]
    assert eager_of(old, new, slots=2, **given) == ["bot.v1", "bot.v2"]


def test_what_stands_in_and_is_tried_out_besides_is_wanted_for_its_own_sake_in_the_slot_that_it_has() -> None:
    """Somebody promotes the old version to get back to it: that takes nothing from it."""
    new, old = Wanted(make_record(2), ("default.bot@bot",)), Wanted(make_record(1), (), directed=True)
    given: dict[str, Any] = {"stand_ins": {"bot.v2": [old.record]}, "refused": {"bot.v2"}, "had": {"bot.v1"}}
    wishes = wishes_of([old, new], eager=True, slots=1, **given)
    assert [(wish.name, wish.eager, wish.instead_of) for wish in wishes] == [("bot.v2", True, ()), ("bot.v1", True, ())]
