"""Old versions stand in for new ones that do not answer on a node, whatever restarts; and who has a slot keeps it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from lora_registry import node_codes as codes
from lora_registry.artifacts import Manifest
from lora_registry.lifecycle import Lifecycle
from lora_registry.names import AdapterName, Reference
from lora_registry.nodes import NodeState
from lora_registry.settings import Settings
from lora_workers.node.failures import NodeFailure
from lora_workers.node.lookup import LazyOrigin
from lora_workers.node.note_files import NoteFiles
from tests.helpers.engine_double import EngineDouble, wait_for_looks
from tests.helpers.node_stand import StoringRegistry, make_options, running_agent, said_of
from tests.helpers.registry import Registry
from tests.helpers.waiting import wait_until

BOT = AdapterName("default", "support-bot")


@pytest.fixture
def registry(settings: Settings, registry: Registry) -> StoringRegistry:
    """A registry with real artifacts."""
    return StoringRegistry(registry.client, settings)


@pytest.fixture
def engine() -> EngineDouble:
    """An engine that refuses one version for good."""
    double = EngineDouble()
    double.refuses.add("support-bot.v2")
    return double


class SlowOrigin(LazyOrigin):
    """A store that gives nothing of some artifacts until it may."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.holds_back = threading.Event()
        self.may_go_on = threading.Event()

    def manifest(self, digest: str) -> Manifest:
        """See `LazyOrigin`."""
        if self.holds_back.is_set():
            self.may_go_on.wait(30)
        return super().manifest(digest)


def test_the_old_version_answers_until_the_new_one_was_fetched(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path
) -> None:
    """A store that takes longer than the drain time leaves no gap."""
    engine.refuses.clear()
    origin = SlowOrigin(settings)
    with running_agent(make_options(tmp_path, engine="vllm"), settings, driver=engine, origin=origin):
        old = registry.publish_version(content="one")
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
        origin.holds_back.set()
        new = registry.publish_version(content="two")
        registry.wait_for(new.served_name, NodeState.SEEN)
        wait_for_looks(engine, 5)
        assert old.served_name in engine.loaded
        origin.may_go_on.set()
        registry.wait_for(new.served_name, NodeState.ROUTABLE)
        registry.wait_for(old.served_name, NodeState.RETIRED)


def test_the_old_version_answers_if_the_engine_refuses_the_new_one(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path
) -> None:
    """For as long as the alias points at what cannot be served, unless somebody retires the old one."""
    engine.refuses.add("support-bot.v2")
    with running_agent(make_options(tmp_path, engine="vllm"), settings, driver=engine):
        old = registry.publish_version(content="one")
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
        new = registry.publish_version(content="two")
        registry.wait_for(new.served_name, NodeState.FAILED)
        wait_for_looks(engine, 5)
        assert old.served_name in engine.loaded
        assert registry.states(old.served_name) == {"node-1": NodeState.ROUTABLE}
        Lifecycle(registry.client, settings).retire_version(BOT, old.version)
        registry.wait_for(old.served_name, NodeState.RETIRED)


def test_the_old_version_goes_on_answering_when_the_agent_is_started_again(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path
) -> None:
    """A new agent has not seen the alias move: the last life noted what it stood for."""
    engine.refuses.clear()
    options = make_options(tmp_path, engine="vllm")
    with running_agent(options, settings, driver=engine):
        first = registry.publish_version(content="zero")
        registry.wait_for(first.served_name, NodeState.ROUTABLE)
        old = registry.publish_version(content="one")
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
    engine.refuses.add("support-bot.v3")
    new = registry.publish_version(content="two")
    with running_agent(options, settings, driver=engine):
        registry.wait_for(new.served_name, NodeState.FAILED)
        wait_for_looks(engine, 5)
        assert engine.loaded.keys() == {old.served_name}
        engine.refuses.clear()
        better = registry.publish_version(content="three")
        registry.wait_for(better.served_name, NodeState.ROUTABLE)
        wait_until(lambda: engine.loaded.keys() == {better.served_name}, what="the old one is gone")


@pytest.mark.parametrize("slots", [0, 1])
def test_an_engine_that_restarts_gets_the_old_version_of_one_that_it_refuses_back(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path, slots: int
) -> None:
    """And unloads it when a version comes that it takes."""
    engine.refuses.add("support-bot.v2")
    with running_agent(make_options(tmp_path, engine="vllm", slots=slots), settings, driver=engine):
        old = registry.publish_version(content="one")
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
        new = registry.publish_version(content="two")
        registry.wait_for(new.served_name, NodeState.FAILED)
        engine.loaded.clear()
        with said_of(old.served_name) as said:
            wait_until(lambda: NodeState.ROUTABLE in said, what="the old version answers again")
        assert engine.loaded.keys() == {old.served_name}
        assert registry.states(new.served_name) == {"node-1": NodeState.FAILED}
        better = registry.publish_version(content="three")
        registry.wait_for(better.served_name, NodeState.ROUTABLE)
        registry.wait_for(old.served_name, NodeState.RETIRED)


def test_the_old_version_of_one_that_is_refused_takes_its_slot(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path
) -> None:
    """The engine is given no more than its slots, what has none says so, and the refused one names who answers."""
    options = make_options(tmp_path, engine="vllm", slots=1, max_lora_rank=16)
    with running_agent(options, settings, driver=engine):
        old = registry.publish_version(content="one")
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
        registry.rank = 64
        new = registry.publish_version(content="two")
        ack = registry.wait_for(new.served_name, NodeState.SKIPPED)
        assert (ack.code, ack.reason.endswith("Meanwhile support-bot.v1 answers for it.")) == (
            "ENGINE_RANK_TOO_LARGE",
            True,
        )
        registry.rank = 8
        other = registry.publish_version("other", content="other")
        assert registry.wait_for(other.served_name, NodeState.SKIPPED).code == "NODE_SLOTS_TAKEN"
        assert engine.loaded.keys() == {old.served_name}
        Lifecycle(registry.client, settings).retire_version(BOT, old.version)
        registry.wait_for(other.served_name, NodeState.ROUTABLE)
        assert not registry.nodes.acks(new.served_name)[0].reason.endswith("answers for it.")


def test_what_a_request_loaded_beside_the_slots_takes_none(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path
) -> None:
    """The plug-in gives vLLM what a request names: it goes again, and what has the slot stays."""
    with running_agent(make_options(tmp_path, engine="vllm", slots=1), settings, driver=engine):
        first = registry.publish_version("first", content="one")
        registry.wait_for(first.served_name, NodeState.ROUTABLE)
        second = registry.publish_version("second", content="two")
        registry.wait_for(second.served_name, NodeState.SKIPPED)
        engine.loaded[second.served_name] = str(tmp_path / "cache" / "sha256" / second.digest.removeprefix("sha256:"))
        wait_until(lambda: second.served_name not in engine.loaded, what="what was asked for goes")
        assert engine.asked == {first.served_name: 1}
        assert registry.states(first.served_name) == {"node-1": NodeState.ROUTABLE}


def test_the_old_version_comes_back_when_the_whole_machine_was_started_again(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path
) -> None:
    """The agent noted what the alias stood for: neither it nor the engine remembers."""
    options = make_options(tmp_path, engine="vllm", slots=1)
    with running_agent(options, settings, driver=engine):
        old = registry.publish_version(content="one")
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
        new = registry.publish_version(content="two")
        registry.wait_for(new.served_name, NodeState.FAILED)
    assert NoteFiles(options.cache).recall_routes() == {"default.support-bot@support-bot": old.served_name}
    engine.loaded.clear()
    with running_agent(options, settings, driver=engine):
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
        registry.wait_for(new.served_name, NodeState.FAILED)
        assert engine.loaded.keys() == {old.served_name}


def test_each_alias_has_its_own_old_version_when_the_agent_is_started_again(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path
) -> None:
    """The newest one that is there may be another alias's."""
    options = make_options(tmp_path, engine="vllm")
    with running_agent(options, settings, driver=engine):
        old = registry.publish_version(content="one")
        registry.catalog.move_alias(BOT, "stable", 1)
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
        refused = registry.publish_version(content="two")
        registry.catalog.move_alias(BOT, "stable", 2)
        registry.wait_for(refused.served_name, NodeState.FAILED)
        newest = registry.publish_version(content="three")
        registry.wait_for(newest.served_name, NodeState.ROUTABLE)
    with running_agent(options, settings, driver=engine):
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
        registry.wait_for(newest.served_name, NodeState.ROUTABLE)
        registry.wait_for(refused.served_name, NodeState.FAILED)
        wait_for_looks(engine, 5)
        assert engine.loaded.keys() == {old.served_name, newest.served_name}


@pytest.mark.parametrize("is_refused", [True, False])
def test_what_another_alias_names_keeps_its_slot_against_the_new_version(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path, is_refused: bool
) -> None:
    """One slot, two aliases of which one moves on: what the other one names stays, whatever the new one is."""
    if not is_refused:
        engine.refuses.clear()
    with running_agent(make_options(tmp_path, engine="vllm", slots=1), settings, driver=engine):
        old = registry.publish_version(content="one")
        registry.catalog.move_alias(BOT, "stable", 1)
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
        new = registry.publish_version(content="two")
        assert registry.wait_for(new.served_name, NodeState.SKIPPED).code == "NODE_SLOTS_TAKEN"
        wait_for_looks(engine, 5)
        assert engine.loaded.keys() == {old.served_name}


def test_an_engine_that_restarts_gets_back_what_had_the_slots(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path
) -> None:
    """And not what is newer and waited."""
    with running_agent(make_options(tmp_path, engine="vllm", slots=1), settings, driver=engine):
        first = registry.publish_version("first", content="one")
        registry.wait_for(first.served_name, NodeState.ROUTABLE)
        second = registry.publish_version("second", content="two")
        registry.wait_for(second.served_name, NodeState.SKIPPED)
        engine.loaded.clear()
        wait_until(lambda: engine.loaded, what="something is loaded again")
        wait_for_looks(engine, 3)
        assert engine.loaded.keys() == {first.served_name}
        assert engine.asked[second.served_name] == 0


def test_to_try_out_what_stands_in_takes_nothing_from_it(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path
) -> None:
    """Somebody promotes the old version to get back to it, on a full node."""
    with running_agent(make_options(tmp_path, engine="vllm", slots=1), settings, driver=engine):
        old = registry.publish_version(content="one")
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
        new = registry.publish_version(content="two")
        registry.wait_for(new.served_name, NodeState.FAILED)
        other = registry.publish_version("other", content="other")
        registry.wait_for(other.served_name, NodeState.SKIPPED)
        registry.lifecycle.direct(old, ["node-1"], token="t", for_s=60)
        wait_for_looks(engine, 8)
        registry.lifecycle.direct(old, [], token="t", for_s=0)
        wait_for_looks(engine, 8)
        assert engine.calls["unload"] == 0
        assert registry.states(old.served_name) == {"node-1": NodeState.ROUTABLE}


def test_the_old_version_comes_back_while_a_load_of_the_new_one_hangs(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """The engine was restarted meanwhile; a load may take two minutes."""
    engine = EngineDouble()
    with running_agent(make_options(tmp_path, engine="vllm"), settings, driver=engine):
        old = registry.publish_version(content="one")
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
        hung = engine.hangs["support-bot.v2"] = threading.Event()
        new = registry.publish_version(content="two")
        wait_until(lambda: engine.asked[new.served_name], what="the load that hangs")
        engine.loaded.clear()
        wait_until(lambda: old.served_name in engine.loaded, what="the old version again")
        hung.set()
        registry.wait_for(new.served_name, NodeState.ROUTABLE)


def test_what_the_selector_does_not_want_any_more_stands_in_for_nothing(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path
) -> None:
    """It was given to another team meanwhile."""
    with running_agent(make_options(tmp_path, engine="vllm", select="team=a"), settings, driver=engine):
        old = registry.publish_version(content="one", labels={"team": "a"})
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
        new = registry.publish_version(content="two", labels={"team": "a"})
        registry.wait_for(new.served_name, NodeState.FAILED)
        registry.lifecycle.label(Reference(BOT, version=1), {"team": "b"})
        registry.wait_for(old.served_name, NodeState.RETIRED)
        assert not engine.loaded


def test_every_refused_version_names_who_answers(registry: StoringRegistry, settings: Settings, tmp_path: Path) -> None:
    """One old version may stand in for two."""
    engine = EngineDouble()
    with running_agent(make_options(tmp_path, engine="vllm", max_lora_rank=16), settings, driver=engine):
        old = registry.publish_version(content="one")
        registry.catalog.move_alias(BOT, "stable", 1)
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
        registry.rank = 64
        for number, alias in (2, "stable"), (3, BOT.name):
            new = registry.publish_version(content=str(number), follow="manual")
            registry.catalog.move_alias(BOT, alias, number)
            ack = registry.wait_for(new.served_name, NodeState.SKIPPED)
            assert ack.reason.endswith("Meanwhile support-bot.v1 answers for it.")


class Mortal(EngineDouble):
    """An engine that dies of a load, and comes back empty after a while.

    Args:
        answers_first: whether it answers the call, and dies a moment later.

    Attributes:
        deaths: how often it died.
    """

    def __init__(self, *, answers_first: bool = False) -> None:
        super().__init__()
        self.deaths = 0
        self._dies_at = self._dead_until = 0.0
        self._delay_s = 0.1 if answers_first else 0.0

    def load(self, served_name: str, path: str) -> None:
        """See `Driver`."""
        is_killer = served_name == "support-bot.v2" and time.monotonic() >= self._dead_until
        if is_killer:
            self._dies_at = time.monotonic() + self._delay_s
            self._dead_until = self._dies_at + 0.3
        super().load(served_name, path)
        if is_killer:
            raise NodeFailure(codes.NODE_PROBE_FAILED, "500 Internal Server Error", may_pass=True)

    def _call(self, method: str) -> None:
        super()._call(method)
        if self._dies_at <= time.monotonic() < self._dead_until:
            self.deaths += self._dies_at > 0
            self._dies_at = 0.0
            self.loaded.clear()
            raise NodeFailure(codes.NODE_ENGINE_UNREACHABLE, f"{method}: ConnectError", may_pass=True)


@pytest.mark.parametrize("answers_first", [False, True])
def test_what_the_engine_dies_of_waits_until_the_others_are_up(
    registry: StoringRegistry, settings: Settings, tmp_path: Path, answers_first: bool
) -> None:
    """Each time longer; else it would kill the engine whenever that is back."""
    engine = Mortal(answers_first=answers_first)
    options = make_options(tmp_path, engine="vllm", retry_first_s=0.5, retry_max_s=2.0)
    with running_agent(options, settings, driver=engine):
        old, other = registry.publish_version(content="one"), registry.publish_version("other", content="other")
        for record in (old, other):
            registry.wait_for(record.served_name, NodeState.ROUTABLE)
        registry.publish_version(content="two")
        up = {old.served_name, other.served_name}
        for deaths in (1, 2):
            wait_until(lambda count=deaths: engine.deaths == count, what=f"it died {deaths} times")
            wait_until(lambda: engine.loaded.keys() == up, what="all that was up is up again")
            assert engine.deaths == deaths


def test_what_waited_for_its_turn_when_the_engine_died_is_not_to_blame(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """Everything is loaded at once after a restart, and one of it kills the engine."""
    others = {registry.publish_version(f"bot-{number}", content=str(number)).served_name for number in range(12)}
    registry.publish_version(content="one")
    killer = registry.publish_version(content="two")  # the newest one is loaded first
    engine = Mortal()
    engine.fails.add("listed")
    options = make_options(tmp_path, engine="vllm", retry_first_s=0.1, retry_max_s=30.0)
    with running_agent(options, settings, driver=engine):
        for name in (killer.served_name, *others):
            registry.wait_for(name, NodeState.FETCHED)
        engine.fails.clear()
        wait_until(lambda: engine.deaths == 1, what="it died")
        wait_until(
            lambda: len(others & engine.loaded.keys()) >= len(others) - 3, what="the others are up", timeout_s=15
        )
        assert (engine.deaths, killer.served_name in engine.loaded) == (1, False)


def test_a_catalog_that_holds_nothing_takes_no_note_of_what_aliases_stood_for(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """An agent that knows nothing joins beside a server that lost everything: a backup may come."""
    options, routes = make_options(tmp_path, engine="vllm"), {"default.support-bot@support-bot": "support-bot.v1"}
    NoteFiles(options.cache).remember_routes(routes)
    engine = EngineDouble()
    with running_agent(options, settings, driver=engine):
        wait_until(lambda: registry.nodes.nodes(), what="the node joined")
        wait_for_looks(engine, 3)
    assert NoteFiles(options.cache).recall_routes() == routes
