"""Selectors: read from text and written back, and what a node is to hold by its own."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.test_announcements import make_record

from lora_registry.announcements import CatalogView, Direction
from lora_registry.catalog_records import AliasMode, AliasTarget
from lora_registry.errors import InvalidName, Rejected
from lora_registry.names import AdapterName
from lora_registry.selection import Selector, parse_selector, wanted_by

NOW_S = 1_000.0


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("", Selector()),
        (" , ", Selector()),
        ("namespace=team", Selector(namespace="team")),
        ("tier=gold, env!=test", Selector(labels={"tier": "gold"}, not_labels={"env": "test"})),
        ("beta", Selector(has_labels=("beta",))),
        ("name=a,name=sql-*", Selector(names=("a", "sql-*"))),
        ("alias=stable,alias=@own", Selector(aliases=("stable", "@own"))),
        ("label:name=x,label:alias", Selector(labels={"name": "x"}, has_labels=("alias",))),
        ("url=a=b", Selector(labels={"url": "a=b"})),
        ("tier==gold,name==a", Selector(labels={"tier": "gold"}, names=("a",))),
        ("sum===5,sum!==6", Selector(labels={"sum": "=5"}, not_labels={"sum": "=6"})),
        ("label:collection=x", Selector(labels={"collection": "x"})),
        ("empty=", Selector(labels={"empty": ""})),
        ("namespace=team,namespace=team,tier=gold,tier==gold", Selector(namespace="team", labels={"tier": "gold"})),
        (
            "tier=gold,tier!=silver,tier",
            Selector(labels={"tier": "gold"}, not_labels={"tier": "silver"}, has_labels=("tier",)),
        ),
    ],
)
def test_terms_are_read(text: str, selector: Selector) -> None:
    """Each term is one field, and the text that a selector is written as reads back as the same."""
    assert parse_selector(text) == selector
    assert parse_selector(str(selector)) == selector


@pytest.mark.parametrize(
    "text",
    ["=x", "a b=c", "namespace!=team", "namespace",
     "alias!=x", "alias!==x", "bad key=x", "!tier", "tier in (gold)",
     "collection=x", "collection!=x", "collection", "a:b=c", f"k={'x' * 257}"],
)  # fmt: skip
def test_what_is_no_term_is_refused(text: str) -> None:
    """The refusal says how terms are written."""
    with pytest.raises(Rejected) as refused:
        parse_selector(text)
    assert "=" in refused.value.remedy


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("namespace=Team A!!", "namespace 'Team A!!'"),
        ("tier=gold,namespace=team.x", "namespace 'team.x'"),
        ("namespace=", "namespace ''"),
        ("name=UPPER", "name 'UPPER'"),
        ("name=", "name ''"),
        ("name=v3", "name 'v3'"),
        ("name=base", "name 'base'"),
        ("name=team.*", "name 'team.*'"),
        ("alias=v 1", "alias 'v 1'"),
        ("alias=@mine", "alias '@mine'"),
        ("alias=v1", "alias 'v1'"),
    ],
)
def test_what_can_be_no_name_is_refused(text: str, wrong: str) -> None:
    """Nothing is ever called so: the selector would select nothing for ever, and say nothing."""
    with pytest.raises(InvalidName, match=re.escape(wrong)):
        parse_selector(text)


@pytest.mark.parametrize(
    "text",
    [
        "namespace=a,namespace=b",
        "tier=gold,tier=silver",
        "env!=a,env!=b",
        "tier=gold,label:tier!=gold",
        "label:name=a,label:name=b",
    ],
)
def test_terms_that_contradict_one_another_are_refused(text: str) -> None:
    """The last one is not taken for all; both are named."""
    first, second = text.replace("label:", "").split(",")
    with pytest.raises(Rejected, match=f"{first} and {second}"):
        parse_selector(text)


def test_selector_is_narrowed_by_more_terms() -> None:
    """What it says already may be said again; what contradicts it is refused, and names have to be legal."""
    selector = parse_selector("namespace=team,tier=gold,alias=stable")
    narrower = selector.narrowed(namespace="team", labels={"tier": "gold", "env": "prod"}, aliases=("@own", "stable"))
    assert str(narrower) == "namespace=team,alias=stable,alias=@own,env=prod,tier=gold"
    for contrary in ({"namespace": "other"}, {"labels": {"tier": "silver"}}):
        with pytest.raises(Rejected, match=r"=\w+ and \w+="):
            selector.narrowed(**contrary)
    for wrong in ({"namespace": "Team A!!"}, {"aliases": ("v 1",)}):
        with pytest.raises(InvalidName):
            Selector().narrowed(**wrong)


def test_a_collection_is_no_term_and_its_own_terms_are_asked_for() -> None:
    """Taken for a label it would select nothing, and say nothing."""
    with pytest.raises(Rejected, match="'collection=gold'") as refused:
        parse_selector("tier=gold,collection=gold")
    assert "lora-registry collection list" in refused.value.remedy
    assert "label:collection=" in refused.value.remedy


words = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,8}", fullmatch=True)
values = st.from_regex(r"=?[a-z0-9=!:-]{0,8}", fullmatch=True)


@given(
    st.dictionaries(words, values, max_size=3), st.dictionaries(words, values, max_size=3), st.lists(words, max_size=3)
)
def test_any_labels_survive_text(labels: dict[str, str], not_labels: dict[str, str], has: list[str]) -> None:
    """Writing and reading is the identity for labels without commas, those named like other terms included."""
    contrary = labels.items() & not_labels.items()
    not_labels = {key: value for key, value in not_labels.items() if (key, value) not in contrary}
    selector = Selector(labels=labels, not_labels=not_labels, has_labels=tuple(has))
    assert parse_selector(str(selector)) == selector


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("namespace=default", True),
        ("namespace=team", False),
        ("name=support-bot", True),
        ("name=support-*", True),
        ("name=sql", False),
        ("name=sql,name=*-bot", True),
        ("tier=gold", True),
        ("tier=silver", False),
        ("tier", True),
        ("env", False),
        ("tier!=gold", False),
        ("tier!=silver", True),
        ("env!=test", True),
        ("tier=gold,env=prod", False),
    ],
)
def test_all_terms_have_to_hold(text: str, matches: bool) -> None:
    """Names are alternatives; everything else has to hold at once."""
    assert parse_selector(text).matches(make_record(labels={"tier": "gold"})) is matches


@pytest.mark.parametrize(
    ("text", "own", "stable"),
    [
        ("", True, True),
        ("alias=@any", True, True),
        ("alias=@own", True, False),
        ("alias=stable", False, True),
        ("alias=other,alias=stable", False, True),
    ],
)
def test_aliases_that_are_followed(text: str, own: bool, stable: bool) -> None:
    """Without a word about aliases any is followed; else those named, each adapter's own by a word of its own."""
    selector, adapter = parse_selector(text), AdapterName("default", "support-bot")
    assert selector.follows(adapter, "support-bot") is own
    assert selector.follows(adapter, "stable") is stable


def view() -> CatalogView:
    """Three versions of one adapter: the newest under its own alias, one stable, one that no alias names."""
    records = [make_record(number, labels={"tier": "gold"}) for number in (1, 2, 3)]
    records.append(make_record(4, name="other"))
    return CatalogView(
        versions={record.field: record for record in records},
        aliases={
            "default.support-bot@support-bot": AliasTarget(3, AliasMode.FOLLOW),
            "default.support-bot@stable": AliasTarget(1, AliasMode.PINNED),
            "default.support-bot@good": AliasTarget(1, AliasMode.PINNED),
            "default.other@other": AliasTarget(4, AliasMode.FOLLOW),
        },
    )


def held(text: str, catalog: CatalogView, node_id: str = "node-1") -> dict[str, tuple[tuple[str, ...], bool]]:
    """Served names that a node with this selector is to hold: by which aliases, and whether directed."""
    found = wanted_by(parse_selector(text), node_id, catalog, now_s=NOW_S)
    return {each.record.served_name: (each.aliases, each.directed) for each in found}


def test_node_holds_what_its_aliases_point_at() -> None:
    """By default the target of every alias, and no version that none names; the selector narrows that."""
    stable = ("default.support-bot@good", "default.support-bot@stable")
    assert held("", view()) == {
        "other.v4": (("default.other@other",), False),
        "support-bot.v1": (stable, False),
        "support-bot.v3": (("default.support-bot@support-bot",), False),
    }
    assert held("tier=gold,alias=stable", view()) == {"support-bot.v1": (stable[1:], False)}
    assert held("name=nobody", view()) == {}


def test_node_holds_what_it_is_told_to_whatever_its_selector_says() -> None:
    """A direction reaches the nodes it names and no others, until its time is over."""
    catalog = view()
    catalog.directed["default.support-bot.v2"] = Direction(("node-1",), NOW_S + 1)
    assert held("name=nobody", catalog) == {"support-bot.v2": ((), True)}
    assert held("name=nobody", catalog, "node-2") == {}
    catalog.directed["default.support-bot.v2"] = Direction(("node-1",), NOW_S)
    assert held("name=nobody", catalog) == {}


def test_alias_whose_version_is_not_known_is_left_out() -> None:
    """A view that was begun at a cursor may know an alias and not its version."""
    catalog = view()
    del catalog.versions["default.support-bot.v3"]
    assert "support-bot.v3" not in held("", catalog)
