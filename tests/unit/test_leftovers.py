"""What is loaded and is to go: aliases left it, or it was retired, and it drained for long enough."""

from __future__ import annotations

import pytest
from tests.unit.test_alias_table import make_view

from lora_registry.announcements import CatalogView
from lora_workers.node.leftovers import Leftovers

V1, V2 = {"bot.v1": "/cache/1"}, {"bot.v2": "/cache/2"}


def make_leftovers(*views: CatalogView) -> Leftovers:
    """Of a node whose cache is /cache, after these catalogs."""
    leftovers = Leftovers(lambda path: path is not None and path.startswith("/cache/"), drain_s=10)
    for view in views:
        leftovers.follow(view)
    return leftovers


def due(leftovers: Leftovers, listed: dict[str, str | None], now: float, *, in_use: str = "", running: str = "") -> str:
    """What is due, in one text."""
    found = leftovers.due(listed, in_use=in_use.split(), running=running.split(), now=now)
    return " ".join(found)


def test_what_aliases_left_goes_after_the_drain_time() -> None:
    """It stays published; the time begins when it is first seen to be unused."""
    leftovers = make_leftovers(make_view(bot=2))
    listed = {**V1, **V2}
    assert not leftovers
    leftovers.leave({"bot.v1"})
    assert leftovers
    assert [due(leftovers, listed, now, in_use="bot.v2") for now in (100, 109, 110)] == ["", "", "bot.v1"]
    assert due(leftovers, {**V2}, 111, in_use="bot.v2") == ""
    assert not leftovers


def test_what_aliases_came_back_to_stays() -> None:
    """And has its whole time again when they leave it once more."""
    leftovers = make_leftovers(make_view(bot=2))
    leftovers.leave({"bot.v1"})
    assert due(leftovers, {**V1}, 100) == ""
    assert due(leftovers, {**V1}, 111, in_use="bot.v1") == ""
    assert due(leftovers, {**V1}, 200) == ""
    leftovers.leave({"bot.v1"})
    assert [due(leftovers, {**V1}, now) for now in (201, 211)] == ["", "bot.v1"]


def test_what_left_the_catalog_goes_whatever_its_path() -> None:
    """An engine that does not tell paths, too; but not while an alias still stands for it."""
    leftovers = make_leftovers(make_view(bot=1), CatalogView())
    listed: dict[str, str | None] = {"bot.v1": None}
    assert due(leftovers, listed, 100, in_use="bot.v1") == ""
    assert [due(leftovers, listed, now) for now in (200, 210)] == ["", "bot.v1"]


def test_what_was_retired_before_this_server_started_is_known_by_its_path() -> None:
    """Nobody told this process that it was ever published."""
    leftovers = make_leftovers(make_view(bot=1))
    listed = {"bot.v9": "/cache/9", "other.v1": "/home/me/other", "bot.v1": "/cache/1", "hand-made": "/cache/5"}
    assert [due(leftovers, {**listed}, now) for now in (100, 110)] == ["", "bot.v9"]


@pytest.mark.parametrize("listed", [{}, {"other.v1": "/home/me/other"}])
def test_what_is_not_here_is_forgotten(listed: dict[str, str | None]) -> None:
    """Retired or left: there is nothing to unload, and nothing to remember."""
    leftovers = make_leftovers(make_view(bot=1), CatalogView())
    leftovers.leave({"bot.v1"})
    assert due(leftovers, listed, 100) == ""
    assert not leftovers


def test_what_a_request_is_loading_is_remembered() -> None:
    """It is not in the list yet, and will be."""
    leftovers = make_leftovers(make_view(bot=1), CatalogView())
    assert due(leftovers, {}, 100, running="bot.v1") == ""
    assert [due(leftovers, {**V1}, now) for now in (101, 111)] == ["", "bot.v1"]


def test_what_is_published_again_stays() -> None:
    """A catalog that was not whole for a moment."""
    leftovers = make_leftovers(make_view(bot=1), CatalogView(), make_view(bot=1))
    assert [due(leftovers, {**V1}, now) for now in (100, 110)] == ["", ""]
