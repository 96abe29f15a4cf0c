"""What engines list: read if it is a list of models, and nothing is made of what is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_workers.node.model_list import add_aliases, parse_model_list

BASE: dict[str, Any] = {"id": "base", "root": "/models/base", "parent": None}
BOT: dict[str, Any] = {"id": "bot.v1", "root": "/cache/x", "parent": "base"}


def listing(*cards: Any) -> dict[str, Any]:
    """An answer with these cards."""
    return {"object": "list", "data": list(cards)}


def test_base_models_are_told_from_adapters() -> None:
    """An adapter has a parent. Paths may be missing; a base model may have several names."""
    models = parse_model_list(listing(BASE, {"id": "alias-of-base"}, BOT, {"id": "x", "parent": "base"}))
    assert models.bases == {"base": "/models/base", "alias-of-base": None}
    assert models.adapters == {"bot.v1": "/cache/x", "x": None}
    assert models.base == "base"


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        "<html>",
        {"data": None},
        {"data": {"base": BASE}},
        listing(),
        listing(BOT),
        listing(BASE, None),
        listing(BASE, "bot.v1"),
        listing(BASE, {"root": "/cache/x", "parent": "base"}),
        listing(BASE, BOT | {"id": ""}),
        listing(BASE, BOT | {"id": 5}),
        listing(BASE, BOT | {"root": 5}),
        listing(BASE, BOT | {"parent": ["base"]}),
    ],
)
def test_what_no_engine_answers_is_no_list(answer: object) -> None:
    """Not even an empty one: a node would take everything for lost."""
    with pytest.raises(ValueError, match=r"."):
        parse_model_list(answer)
    body = json.dumps(answer).encode()
    assert add_aliases(body, {"bot": "bot.v1"}) == body


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["data", "id", "root", "parent", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(answer=JSON | st.builds(listing, JSON, JSON))
def test_any_json_is_a_list_or_a_value_error(answer: object) -> None:
    """No other exception comes out of it."""
    try:
        models = parse_model_list(answer)
    except ValueError:
        return
    assert models.base in models.bases


def test_aliases_come_after_what_the_engine_lists() -> None:
    """What else the engine says stays; each alias tells what it stands for."""
    body = json.dumps(listing(BASE | {"max_model_len": 512}, BOT)).encode()
    answer = json.loads(add_aliases(body, {"bot@stable": "bot.v2", "bot": "bot.v1"}))
    assert answer["data"][:2] == [BASE | {"max_model_len": 512}, BOT]
    told = [(card["id"], card["root"], card["parent"]) for card in answer["data"][2:]]
    assert told == [("bot", "bot.v1", "base"), ("bot@stable", "bot.v2", "base")]
    assert answer["object"] == "list"


def test_a_name_is_listed_once_as_what_requests_mean_by_it() -> None:
    """A base model's name stays the base model's; an adapter's that is an alias, too, is the alias."""
    body = json.dumps(listing(BASE, {"id": "bot", "root": "/home/me/bot", "parent": "base"})).encode()
    answer = json.loads(add_aliases(body, {"base": "base.v1", "bot": "bot.v1"}))
    assert [(card["id"], card["root"]) for card in answer["data"]] == [("base", "/models/base"), ("bot", "bot.v1")]


def test_an_answer_that_is_no_json_stays_as_it_is() -> None:
    """Whatever it is, the client gets it."""
    assert add_aliases(b"\xff<html>", {"bot": "bot.v1"}) == b"\xff<html>"
