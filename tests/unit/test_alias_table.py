"""Which served name an alias stands for on a server."""

from __future__ import annotations

import pytest
from tests.unit.test_node_plan import make_record

from lora_registry.announcements import CatalogView
from lora_registry.catalog_records import AliasMode, AliasTarget, VersionRecord
from lora_workers.node.aliases import AliasTable, is_served_name


def make_view(**aliases: int) -> CatalogView:
    """A catalog of one adapter `bot` in two versions, and these of its aliases."""
    records = {f"default.bot.v{number}": make_record(number) for number in (1, 2)}
    targets = {f"default.bot@{name}": AliasTarget(number, AliasMode.FOLLOW) for name, number in aliases.items()}
    return CatalogView(versions=dict(records), aliases=targets)


def test_a_new_alias_stands_for_its_target_at_once() -> None:
    """There is nothing to go on with meanwhile."""
    table = AliasTable()
    table.follow(make_view(bot=1, stable=1))
    assert table.resolve("bot") == table.resolve("bot@stable") == table.resolve("default.bot@bot") == "bot.v1"
    assert table.names() == {"bot": "bot.v1", "bot@stable": "bot.v1"}
    assert table.waiting() == {}


def test_a_moved_alias_waits_until_the_new_version_answers() -> None:
    """Until `swap` it stands for the old one; both are in use."""
    table = AliasTable()
    table.follow(make_view(bot=1, stable=1))
    table.follow(make_view(bot=2, stable=1))
    assert table.resolve("bot") == "bot.v1"
    assert table.waiting() == {"bot.v2": {"bot.v1"}}
    assert table.in_use() == {"bot.v1", "bot.v2"}
    table.swap("bot.v2")
    assert (table.resolve("bot"), table.resolve("bot@stable")) == ("bot.v2", "bot.v1")
    assert table.waiting() == {}


def test_a_move_back_before_the_swap_leaves_nothing_to_wait_for() -> None:
    """A rollback that overtakes: the alias stood for the right one all the time."""
    table = AliasTable()
    for number in (1, 2, 1):
        table.follow(make_view(bot=number))
    assert table.resolve("bot") == "bot.v1"
    assert table.waiting() == {}


def test_a_removed_alias_means_nothing_any_more() -> None:
    """Neither it nor one whose version is not published."""
    table = AliasTable()
    table.follow(make_view(bot=1, stable=1, ghost=7))
    assert table.resolve("bot@ghost") is None
    table.follow(make_view(bot=1))
    assert table.resolve("bot@stable") is None


@pytest.mark.parametrize("model", ["", "base", "bot.v1", "meta-llama/Llama-3.1-8B", "../bot", "bot@", "BOT", "x.y.z"])
def test_other_names_are_not_aliases(model: str) -> None:
    """Served names, base models and nonsense pass by."""
    table = AliasTable()
    table.follow(make_view(bot=1))
    assert table.resolve(model) is None


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("bot.v1", True),
        ("team.bot.v12", True),
        ("bot", False),
        ("bot@stable", False),
        ("default.bot.v1", False),
        ("bot.v01", False),
        ("../bot.v1", False),
        ("/abs/bot.v1", False),
        ("bot.v1/..", False),
        ("bot.v1\n", False),
    ],
)
def test_only_what_engines_are_given_is_a_served_name(model: str, expected: bool) -> None:
    """One name for one version: no other spelling is looked up, and no path."""
    assert is_served_name(model) is expected


def test_records_are_versions() -> None:
    """The builder makes what the catalog holds."""
    assert isinstance(make_view(bot=1).resolve("default.bot@bot"), VersionRecord)
