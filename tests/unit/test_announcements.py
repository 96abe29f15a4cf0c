"""Announcements: applied in order and each once they add up to the catalog; a gap is noticed, never papered over."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_registry.announcements import CatalogView, Change, Cursor, Direction, Kind, Update, apply, difference
from lora_registry.catalog_records import AliasMode, AliasTarget, VersionRecord
from lora_registry.errors import AnnouncementGap

GENERATION = "1700000000000-0123abcd"


def make_record(version: int = 1, *, name: str = "support-bot", **changes: Any) -> VersionRecord:
    """A version record."""
    fields: dict[str, Any] = {
        "namespace": "default",
        "name": name,
        "version": version,
        "lora_int_id": version,
        "served_name": f"{name}.v{version}",
        "base_model": "tiny-llama",
        "base_revision": "main",
        "digest": f"sha256:{version:064x}",
        "rank": 8,
        "size_bytes": 4096,
        "source": "/adapters/support-bot",
        "registration_id": f"reg_{version:024x}",
    }
    return VersionRecord(**(fields | changes))


def make_message(kind: str, data: dict[str, Any], *, sequence: int, generation: str = GENERATION) -> str:
    """An announcement as the publish script puts it together."""
    return json.dumps(
        {
            "specversion": "1.0",
            "id": f"{generation}/tiny-llama/{sequence}",
            "source": "/lora-registry",
            "type": f"io.lora-registry.{kind}.v1",
            "generation": generation,
            "sequence": str(sequence),
            "data": data,
        }
    )


def published(record: VersionRecord, *, sequence: int, **options: str) -> str:
    """The announcement of a version."""
    return make_message("version.published", record.model_dump(mode="json"), sequence=sequence, **options)


def moved(version: int, *, sequence: int, alias: str = "support-bot", mode: str = "follow") -> str:
    """The announcement of an alias."""
    data = {
        "namespace": "default",
        "name": "support-bot",
        "alias": alias,
        "version": version,
        "previous": None,
        "mode": mode,
    }
    return make_message("alias.moved", data, sequence=sequence)


def make_view(*records: VersionRecord, sequence: int = 0, **aliases: AliasTarget) -> CatalogView:
    """A view of the catalog with these versions and aliases of support-bot."""
    return CatalogView(
        Cursor(GENERATION, sequence),
        {record.field: record for record in records},
        {f"default.support-bot@{name}": target for name, target in aliases.items()},
    )


def apply_all(view: CatalogView, *messages: str) -> tuple[CatalogView, list[Change | None]]:
    """Apply announcements one after the other."""
    changes = []
    for message in messages:
        view, change = apply(view, message)
        changes.append(change)
    return view, changes


def test_announcements_in_order_add_up_to_the_catalog() -> None:
    """A version and then its alias: both are in the view, and both changes say what they are about."""
    record = make_record()
    messages = (published(record, sequence=1), moved(1, sequence=2))
    view, (first, second) = apply_all(make_view(), *messages)
    assert view == CatalogView(
        Cursor(GENERATION, 2),
        {"default.support-bot.v1": record},
        {"default.support-bot@support-bot": AliasTarget(1, AliasMode.FOLLOW)},
    )
    assert first == Change(Kind.VERSION_PUBLISHED, "support-bot.v1", record, message=messages[0])
    target = AliasTarget(1, AliasMode.FOLLOW)
    assert second == Change(Kind.ALIAS_MOVED, "default.support-bot@support-bot", record, target, messages[1])
    assert view.resolve("default.support-bot@support-bot") == record


def test_changed_labels_replace_the_record() -> None:
    """The whole new state is in the message, so the view takes it over."""
    relabelled = make_record(labels={"tier": "gold"})
    message = make_message("version.labels-changed", relabelled.model_dump(mode="json"), sequence=1)
    view, change = apply(make_view(make_record()), message)
    assert view.versions == {"default.support-bot.v1": relabelled}
    assert change == Change(Kind.LABELS_CHANGED, "support-bot.v1", relabelled, message=message)


def test_alias_of_a_version_that_was_never_heard_of_is_a_change_without_a_record() -> None:
    """Who began at a cursor without the catalog learns the target; the record is left out, nothing is made up."""
    _, change = apply(make_view(sequence=6), moved(3, sequence=7, alias="stable", mode="pinned"))
    assert change is not None
    assert (change.record, change.target) == (None, AliasTarget(3, AliasMode.PINNED))


@pytest.mark.parametrize("sequence", [0, 1, 3, 4, 100])
def test_another_sequence_than_the_next_is_a_gap(sequence: int) -> None:
    """One that was missed, one that comes twice and one from the past are all noticed, and change nothing."""
    view = make_view(sequence=1)
    with pytest.raises(AnnouncementGap):
        apply(view, published(make_record(), sequence=sequence))
    assert view == make_view(sequence=1)


def test_another_generation_is_a_gap() -> None:
    """After the server lost its last writes the next number may be another's: it is not taken for the next."""
    view = make_view(sequence=1)
    with pytest.raises(AnnouncementGap):
        apply(view, published(make_record(), sequence=2, generation="1800000000000-0123abcd"))
    assert view == make_view(sequence=1)


@pytest.mark.parametrize("kind", ["version.praised", "something.else", ""])
def test_unknown_kind_is_skipped_and_counted(kind: str) -> None:
    """An announcement of a later version changes nothing here, and the one after it is no gap."""
    view, changes = apply_all(
        make_view(), make_message(kind, {"any": "thing"}, sequence=1), published(make_record(), sequence=2)
    )
    assert changes[0] is None
    assert changes[1] is not None
    assert view.cursor == Cursor(GENERATION, 2)


def test_unknown_fields_of_a_record_are_ignored() -> None:
    """A record with a field that a later version added is read."""
    data = make_record().model_dump(mode="json") | {"retired_at": None}
    view, _ = apply(make_view(), make_message("version.published", data, sequence=1))
    assert view.versions["default.support-bot.v1"] == make_record()


def test_view_survives_a_restart() -> None:
    """What a node keeps as text is the view it had."""
    view = make_view(
        make_record(1, labels={"a": "ü"}),
        make_record(2),
        sequence=9,
        stable=AliasTarget(1, AliasMode.PINNED),
        canary=AliasTarget(2, AliasMode.FOLLOW),
    )
    assert CatalogView.from_json(view.to_json()) == view
    assert CatalogView.from_json(CatalogView().to_json()) == CatalogView()


def test_alias_that_is_not_there_is_a_key_error() -> None:
    """Asking for an alias that nobody set finds nothing."""
    with pytest.raises(KeyError):
        make_view(make_record()).resolve("default.support-bot@stable")


def test_difference_of_equal_views_is_only_the_cursor() -> None:
    """A resync that finds the same catalog asks nothing of the node."""
    view = make_view(make_record(), stable=AliasTarget(1, AliasMode.PINNED))
    later = replace(view, cursor=Cursor("next", 3))
    assert difference(view, later) == Update((), Cursor("next", 3), reset=True)


def test_difference_names_versions_before_the_aliases_that_point_at_them() -> None:
    """New versions, changed labels and moved aliases are changes, in an order in which they can be applied."""
    old = make_view(make_record(1), stable=AliasTarget(1, AliasMode.PINNED))
    relabelled = make_record(1, labels={"tier": "gold"})
    new = make_view(relabelled, make_record(2), sequence=8, stable=AliasTarget(2, AliasMode.PINNED))
    assert difference(old, new).changes == (
        Change(Kind.LABELS_CHANGED, "support-bot.v1", relabelled),
        Change(Kind.VERSION_PUBLISHED, "support-bot.v2", make_record(2)),
        Change(Kind.ALIAS_MOVED, "default.support-bot@stable", make_record(2), AliasTarget(2, AliasMode.PINNED)),
    )


@pytest.mark.parametrize("changes", [{"digest": "sha256:" + "f" * 64}, {"lora_int_id": 99}])
def test_a_version_with_other_bytes_or_another_id_is_published_anew(changes: dict[str, Any]) -> None:
    """After a restore a name may come to mean something else: to the node that is a version it has not loaded."""
    again = make_record(1, **changes)
    (change,) = difference(make_view(make_record(1)), make_view(again)).changes
    assert change == Change(Kind.VERSION_PUBLISHED, "support-bot.v1", again)


def test_difference_names_what_is_gone() -> None:
    """What the node holds and the snapshot has not, versions and aliases, is said by name."""
    old = make_view(make_record(1), make_record(2), stable=AliasTarget(2, AliasMode.PINNED))
    update = difference(old, make_view(make_record(1)))
    assert update.changes == ()
    assert update.gone == ("support-bot.v2", "default.support-bot@stable")
    assert update.reset


def named(version: int, **data: Any) -> dict[str, Any]:
    """What announcements about a version of support-bot name it by."""
    return {"namespace": "default", "name": "support-bot", "version": version} | data


def test_retired_version_leaves_the_view_with_its_direction() -> None:
    """The change still holds the record that the view had; one that the view never had is a change without."""
    view = make_view(make_record(1))
    view.directed["default.support-bot.v1"] = Direction(("node-1",), 1e10)
    messages = [make_message("version.retired", named(number), sequence=number) for number in (1, 2)]
    after, changes = apply_all(view, *messages)
    assert (after.versions, after.directed) == ({}, {})
    assert changes == [
        Change(Kind.VERSION_RETIRED, "support-bot.v1", make_record(1), message=messages[0]),
        Change(Kind.VERSION_RETIRED, "support-bot.v2", None, message=messages[1]),
    ]


def test_removed_alias_leaves_the_view() -> None:
    """It points nowhere; one that is not there is no error."""
    view = make_view(make_record(1), stable=AliasTarget(1, AliasMode.PINNED))
    message = make_message("alias.removed", named(1, alias="stable"), sequence=1)
    after, (change,) = apply_all(view, message)
    assert after.aliases == {}
    assert change == Change(Kind.ALIAS_REMOVED, "default.support-bot@stable", None, message=message)
    assert apply(after, make_message("alias.removed", named(1, alias="stable"), sequence=2))[0].aliases == {}


def test_direction_is_kept_until_it_is_over() -> None:
    """The nodes and the time are in the view and the change; without nodes it is over."""
    begun = make_message("version.directed", named(1, nodes=["a", "b"], until_s=1_700_000_000), sequence=1)
    over = make_message("version.directed", named(1, nodes=[], until_s=0), sequence=2)
    view, change = apply(make_view(make_record(1)), begun)
    direction = Direction(("a", "b"), 1_700_000_000)
    assert view.directed == {"default.support-bot.v1": direction}
    assert change == Change(Kind.VERSION_DIRECTED, "support-bot.v1", make_record(1), message=begun, direction=direction)
    assert CatalogView.from_json(view.to_json()) == view
    view, change = apply(view, over)
    assert view.directed == {}
    assert change is not None
    assert change.direction == Direction()


def test_direction_holds_its_nodes_until_its_time() -> None:
    """Nobody else, and nobody afterwards."""
    direction = Direction.parse("1700000000 =token a b")
    assert direction == Direction.parse("1700000000 a b")  # as it was stored before there were tokens
    assert direction == Direction(("a", "b"), 1_700_000_000)
    assert direction.holds("b", now_s=1_699_999_999.9)
    assert not direction.holds("c", now_s=0)
    assert not direction.holds("b", now_s=1_700_000_000)


def test_view_of_an_earlier_release_is_read() -> None:
    """A node that kept its view before there were directions goes on from it."""
    kept = json.loads(make_view(make_record(1)).to_json())
    del kept["directed"]
    assert CatalogView.from_json(json.dumps(kept)) == make_view(make_record(1))


histories = st.lists(
    st.tuples(
        st.sampled_from(["publish", "relabel", "move", "retire", "remove", "direct"]),
        st.integers(1, 4),
        st.sampled_from(["stable", "canary"]),
    ),
    max_size=20,
)


def step(view: CatalogView, what: str, version: int, alias: str, sequence: int) -> str:
    """The announcement of a step, or of a publication where the step is not one that the server takes."""
    field = f"default.support-bot.v{version}"
    is_there = field in view.versions
    if what == "move" and is_there:
        return moved(version, sequence=sequence, alias=alias, mode="pinned")
    if what == "retire" and is_there and field not in map(view.version_of, view.aliases):
        return make_message("version.retired", named(version), sequence=sequence)
    if what == "remove":
        return make_message("alias.removed", named(version, alias=alias), sequence=sequence)
    if what == "direct" and is_there:
        nodes = ["a"] * (sequence % 2)
        return make_message("version.directed", named(version, nodes=nodes, until_s=sequence), sequence=sequence)
    labels = {"step": str(sequence)} if what == "relabel" else {}
    return published(make_record(version, labels=labels), sequence=sequence)


def follow(view: CatalogView, update: Update) -> None:
    """What a node does that keeps a catalog of its own by what it is handed."""
    for change in update.changes:
        if change.direction is not None:
            assert change.record is not None
            view.directed[change.record.field] = change.direction
            if not change.direction.nodes:
                del view.directed[change.record.field]
        elif change.target is not None:
            view.aliases[change.subject] = change.target
        elif change.record is not None:
            view.versions[change.record.field] = change.record
    for gone in update.gone:
        view.aliases.pop(gone, None)
        if view.versions.pop(f"default.{gone}", None):
            view.directed.pop(f"default.{gone}", None)


@settings(deadline=None)
@given(histories, st.integers(0, 20))
def test_the_net_difference_leads_to_the_same_catalog_as_every_step(
    history: list[tuple[str, int, str]], missed_from: int
) -> None:
    """Who is handed each announcement, and who is handed the net difference over any part, end with the same view."""
    view, before = make_view(), make_view()
    for sequence, (what, version, alias) in enumerate(history, start=1):
        if sequence == missed_from:
            before = CatalogView.from_json(view.to_json())
        view, _ = apply(view, step(view, what, version, alias, sequence))
    follow(before, difference(before, view))
    assert (before.versions, before.aliases, before.directed) == (view.versions, view.aliases, view.directed)
