"""A promoter that dies: after it moved the alias workers decide in its place, once; before, nothing has happened."""

from __future__ import annotations

import signal
import sys
import threading
from subprocess import Popen

import pytest

from lora_registry.catalog_records import MovedBy
from lora_registry.client import RegistrationClient
from lora_registry.errors import Conflict
from lora_registry.lifecycle import AliasMove
from lora_registry.names import AdapterName
from lora_registry.nodes import NodeState
from lora_registry.stages import Stage
from lora_workers import processes
from tests.helpers.registry import Registry
from tests.helpers.simulated_nodes import Fault, fleet
from tests.helpers.stack import Stack, environment_of
from tests.helpers.waiting import wait_until

BOT = AdapterName("default", "support-bot")


@pytest.fixture
def promoting(stack: Stack) -> Stack:
    """Two dispatchers, two workers that publish, and an adapter of two versions whose alias points at the first."""
    registry = stack.registry
    stack.dispatchers(2)
    for _ in range(2):
        stack.worker(Stage.PUBLISH)
    stack.wait_until(lambda: registry.client.hget(registry.keys.server, "run_id"), what="admission")
    stack.wait_for_slots()
    for content in ("one", "two"):
        registry.register(content=content, follow="manual")
    for alias in ("stable", BOT.name):
        registry.catalog.move_alias(BOT, alias, 1)
    return stack


def start_promoter(stack: Stack, *arguments: str) -> Popen[bytes]:
    """Start to promote the second version through the canary `a`."""
    command = [sys.executable, "-m", "tests.helpers.promoter_process", "2", "stable", "a", *arguments]
    with (stack.directory / "promoter.log").open("ab") as log:
        return processes.start(command, environment=environment_of(stack.settings), log=log)


def die_in_the_middle(stack: Stack) -> None:
    """Promote until the alias has moved, and be killed by that."""
    assert start_promoter(stack, "die").wait(60) == -signal.SIGKILL
    assert is_open(stack.registry)


def is_open(registry: Registry) -> bool:
    """Whether a promotion waits to be decided."""
    return bool(registry.client.exists(registry.keys.promotions))


def history(registry: Registry) -> list[AliasMove]:
    """The moves of the alias, newest first."""
    return registry.lifecycle.history(BOT, "stable")


def node_b_says(state: NodeState, *, once: threading.Event) -> Fault:
    """What makes the node `b` wait for an event and then say this of the second version."""

    def say(node_id: str, served_name: str) -> tuple[NodeState, str] | None:
        if (node_id, served_name) != ("b", "support-bot.v2"):
            return None
        assert once.wait(60)
        return (state, "no memory") if state is NodeState.FAILED else None

    return say


def test_node_that_fails_after_the_promoter_was_killed_brings_the_alias_back_once(promoting: Stack) -> None:
    """SIGKILL right after the move, then a node fails: the alias is back, once, and its history says by whom."""
    registry, dead = promoting.registry, threading.Event()
    with fleet(registry, "a", "b", fault=node_b_says(NodeState.FAILED, once=dead)):
        die_in_the_middle(promoting)
        dead.set()
        promoting.wait_until(lambda: not is_open(registry), what="the decision")
        wait_until(lambda: not registry.view().directed, what="the end of the direction")
    assert registry.version(alias="stable").version == 1
    back, promoted = history(registry)[:2]
    assert (promoted.how, promoted.before, promoted.after, promoted.by) == (MovedBy.PROMOTE, 1, 2, "me")
    assert (back.how, back.before, back.after) == (MovedBy.ROLLBACK, 2, 1)
    assert back.by.startswith("worker ")
    assert back.by.endswith(" for me")
    assert [each.how for each in history(registry)].count(MovedBy.ROLLBACK) == 1


def test_alias_stays_where_a_killed_promoter_moved_it_if_all_nodes_serve_it(promoting: Stack) -> None:
    """The promotion is over, and nothing of it is left."""
    registry = promoting.registry
    with fleet(registry, "a", "b"):
        die_in_the_middle(promoting)
        promoting.wait_until(lambda: not is_open(registry), what="the decision")
    assert registry.version(alias="stable").version == 2
    assert history(registry)[0].how is MovedBy.PROMOTE
    assert registry.view().directed == {}


def test_a_promoter_that_was_killed_before_the_move_leaves_a_direction_and_nothing_else(promoting: Stack) -> None:
    """SIGKILL between the canary's word and the move: the canary holds the version for its time and gives it up then,
    the alias never moved, nobody decides anything, and another promotion may have other canaries."""
    registry = promoting.registry
    with fleet(registry, "a", "b") as nodes:
        assert start_promoter(promoting, "die-before").wait(60) == -signal.SIGKILL
        assert not is_open(registry)
        (direction,) = registry.view().directed.values()
        assert direction.nodes == ("a",)
        assert "support-bot.v2" in nodes["a"].held
        with pytest.raises(Conflict, match="being tried on a"):
            promote_through(registry, "b")
        wait_until(lambda: "support-bot.v2" not in nodes["a"].held, what="the end of its time")
        assert registry.version(alias="stable").version == 1
        assert [each.how for each in history(registry)] == [MovedBy.SET]
        promote_through(registry, "b")
    assert registry.version(alias="stable").version == 2
    assert registry.view().directed == {}


def promote_through(registry: Registry, canary: str) -> None:
    """Promote the second version in this process."""
    promotions = RegistrationClient(registry.client, registry.settings).promotions()
    promotions.promote(BOT, 2, "stable", canaries=(canary,), timeout_s=60)


def test_nobody_interferes_with_a_promoter_that_lives(promoting: Stack) -> None:
    """A node takes longer than the promoter's first lease: it waits, says that it lives, and decides by itself."""
    registry, late = promoting.registry, threading.Event()

    def lease_until_us() -> int:
        (stored,) = registry.client.hgetall(registry.keys.promotions).values()
        return int(stored.split(" ")[0])

    with fleet(registry, "a", "b", fault=node_b_says(NodeState.ROUTABLE, once=late)):
        promoter = start_promoter(promoting)
        promoting.wait_until(lambda: is_open(registry), what="the move")
        first = lease_until_us()
        promoting.wait_until(lambda: registry.client.time()[0] * 1_000_000 > first, what="the end of the first lease")
        promoting.wait_until(lambda: lease_until_us() > first, what="a later one")
        late.set()
        assert promoter.wait(60) == 0
    assert not is_open(registry)
    assert [each.how for each in history(registry)][:2] == [MovedBy.PROMOTE, MovedBy.SET]
    assert registry.version(alias="stable").version == 2
