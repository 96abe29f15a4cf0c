"""The node agent beside an engine or a store in trouble: it goes on, at rest, and what answers goes on answering."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_registry import node_codes as codes
from lora_registry.artifacts import WEIGHTS_FILE
from lora_registry.catalog_records import VersionRecord
from lora_registry.lifecycle import Lifecycle
from lora_registry.names import AdapterName
from lora_registry.nodes import NodeState
from lora_registry.settings import Settings
from lora_workers.node import engine_fit
from lora_workers.node.engine_calls import AT_ONCE
from lora_workers.node.failures import NodeFailure
from tests.helpers.adapters import make_base
from tests.helpers.engine_double import EngineDouble, wait_for_looks
from tests.helpers.node_stand import StoringRegistry, damage, make_options, running_agent
from tests.helpers.nodes import make_info
from tests.helpers.registry import BASE, Registry
from tests.helpers.waiting import wait_until

BOT = AdapterName("default", "support-bot")
_AT_REST = 10
"""Looks in a second that an agent at rest never makes: its usual one is every `reconcile_s`, here 0.2 s."""


@pytest.fixture
def registry(settings: Settings, registry: Registry) -> StoringRegistry:
    """A registry whose versions have artifacts."""
    return StoringRegistry(registry.client, settings)


@pytest.fixture
def engine() -> EngineDouble:
    """An engine that does as it is told."""
    return EngineDouble()


def looks_in_a_second(engine: EngineDouble) -> int:
    """How often the agent looks at the engine."""
    before = engine.calls["listed"]
    threading.Event().wait(1.0)  # what is counted is what happens in a while
    return engine.calls["listed"] - before


def test_after_a_failure_that_passed_the_agent_is_at_rest(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path
) -> None:
    """A probe that failed once leaves nothing behind that is due for ever."""
    engine.fails.add("probe")
    with running_agent(make_options(tmp_path, engine="vllm"), settings, driver=engine):
        record = registry.publish_version()
        wait_until(lambda: engine.calls["probe"], what="a probe that fails")
        engine.fails.clear()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        assert looks_in_a_second(engine) <= _AT_REST


def test_a_version_that_requests_hold_is_looked_at_now_and_then(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path
) -> None:
    """Past its drain time a stream still runs on it: the engine is not asked over and over."""
    options = make_options(tmp_path, engine="vllm", drain_s=0.3)
    with running_agent(options, settings, driver=engine):
        old = registry.publish_version(content="one")
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
        engine.running.add(old.served_name)
        new = registry.publish_version(content="two")
        registry.wait_for(new.served_name, NodeState.ROUTABLE)
        wait_until(lambda: engine.calls["busy"] > 1, what="a look at what runs")
        assert looks_in_a_second(engine) <= _AT_REST
        assert old.served_name in engine.loaded
        engine.running.clear()
        registry.wait_for(old.served_name, NodeState.RETIRED)


def unload_that_fails(registry: StoringRegistry, engine: EngineDouble) -> VersionRecord:
    """A version that another took the place of, and that the engine has all the same."""
    old = registry.publish_version(content="one")
    registry.wait_for(old.served_name, NodeState.ROUTABLE)
    engine.fails.add("unload")
    registry.publish_version(content="two")
    registry.wait_for(old.served_name, NodeState.FAILED)
    return old


def test_an_unload_that_fails_is_tried_again_with_pauses(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path
) -> None:
    """It fails for a while, is said after three times, and ends well once the engine is."""
    with running_agent(make_options(tmp_path, engine="vllm"), settings, driver=engine):
        old = unload_that_fails(registry, engine)
        assert engine.calls["unload"] == 3
        engine.fails.clear()
        registry.wait_for(old.served_name, NodeState.RETIRED)


def test_what_is_wanted_again_after_its_unload_failed_is_routable_again(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path
) -> None:
    """The engine has it all the while: a rollback to it does not wait for what has been there for long."""
    with running_agent(make_options(tmp_path, engine="vllm"), settings, driver=engine):
        old = unload_that_fails(registry, engine)
        registry.catalog.move_alias(BOT, BOT.name, old.version)
        registry.wait_for(old.served_name, NodeState.ROUTABLE)


def test_what_could_not_be_mended_for_a_while_is_routable_again(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path
) -> None:
    """Its files were damaged under an engine that has it, and the store was away: said, and taken back."""
    options = make_options(tmp_path, engine="vllm", retry_refused_s=0.2)
    with running_agent(options, settings, driver=engine):
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        kept = registry.store.path(record.digest)
        away = kept.rename(tmp_path / "away")
        damage(Path(engine.loaded[record.served_name]), {WEIGHTS_FILE: b"broken"})
        registry.wait_for(record.served_name, NodeState.FAILED)
        away.rename(kept)
        registry.wait_for(record.served_name, NodeState.ROUTABLE)


class Overloaded(EngineDouble):
    """An engine that gives no answer to the next lists.

    Attributes:
        misses: to how many.
    """

    misses = 0

    def listed(self) -> dict[str, str | None]:
        """See `Driver`."""
        listed = super().listed()
        if self.misses:
            self.misses -= 1
            raise NodeFailure(codes.NODE_ENGINE_UNREACHABLE, "ReadTimeout", may_pass=True)
        return listed


def test_an_engine_that_missed_a_list_or_two_is_not_asked_to_confirm_what_it_has(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """It is overloaded: a request for each of its adapters is the last thing that it needs."""
    engine = Overloaded()
    with running_agent(make_options(tmp_path, engine="vllm"), settings, driver=engine):
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        engine.misses = 2
        wait_until(lambda: not engine.misses, what="two lists missed")
        wait_for_looks(engine, 3)
        assert engine.calls["probe"] == 1
        assert registry.states(record.served_name) == {"node-1": NodeState.ROUTABLE}


def test_what_is_not_refused_any_more_is_routable_again_though_it_never_left_the_engine(
    registry: StoringRegistry, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within its drain time: it was confirmed before, and is to be said anew all the same."""
    engine, why = Overloaded(), [""]
    monkeypatch.setattr(engine_fit, "why_another_base", lambda *_: why[0])
    registry.catalog.bases.add(make_base(name=BASE))
    with running_agent(make_options(tmp_path, engine="vllm", drain_s=20), settings, driver=engine):
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        why[0], engine.misses = "It is another.", 1
        registry.wait_for(record.served_name, NodeState.SKIPPED)
        why[0] = ""
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        assert engine.calls["load"] == 1


def test_a_server_that_lost_everything_does_not_make_another_base_the_right_one(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows of no base model any more, so what it said before counts."""
    monkeypatch.setattr(engine_fit, "why_another_base", lambda *_: "It is another.")
    registry.catalog.bases.add(make_base(name=BASE))
    with running_agent(make_options(tmp_path, engine="vllm"), settings, driver=engine):
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.SKIPPED)
        registry.client.flushdb()
        wait_for_looks(engine, 5)
        assert engine.calls["load"] == 0


def test_a_base_model_that_is_registered_later_is_compared_then(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent may be started before anything else is there."""
    monkeypatch.setattr(engine_fit, "why_another_base", lambda *_: "It is another.")
    monkeypatch.setattr(engine_fit, "COMPARE_BASES_S", 0.1)
    registry.client.hdel(registry.keys.bases, BASE)
    with running_agent(make_options(tmp_path, engine="vllm"), settings, driver=engine):
        wait_for_looks(engine, 3)
        registry.catalog.bases.add(make_base(name=BASE))
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.SKIPPED)


class Muffled(EngineDouble):
    """An engine that does as it is told, and whose answer to an unload gets lost."""

    def unload(self, served_name: str) -> None:
        """See `Driver`."""
        super().unload(served_name)
        raise NodeFailure(codes.NODE_ENGINE_UNREACHABLE, "ReadTimeout", may_pass=True)


def test_what_was_unloaded_is_not_loaded_while_requests_run_on_it_even_if_the_answer_got_lost(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """A stream outlasted the drain time, and the version is wanted again: another load of its name would kill vLLM."""
    engine = Muffled()
    with running_agent(make_options(tmp_path, engine="vllm"), settings, driver=engine):
        record = registry.publish_version(follow="manual")
        registry.catalog.move_alias(BOT, "stable", record.version)
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        engine.running.add(record.served_name)
        registry.lifecycle.remove_alias(BOT, "stable")
        registry.wait_for(record.served_name, NodeState.RETIRED)
        registry.catalog.move_alias(BOT, "stable", record.version)
        registry.wait_for(record.served_name, NodeState.SEEN)
        wait_for_looks(engine, 5)
        assert engine.loaded == {}
        engine.running.clear()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)


def test_an_engine_that_does_not_tell_what_runs_keeps_what_it_has(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path
) -> None:
    """The agent lives on, and unloads when it knows."""
    options = make_options(tmp_path, engine="vllm", drain_s=0.2)
    with running_agent(options, settings, driver=engine):
        old = registry.publish_version(content="one")
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
        engine.fails.add("busy")
        new = registry.publish_version(content="two")
        registry.wait_for(new.served_name, NodeState.ROUTABLE)
        wait_until(lambda: engine.calls["busy"] >= 2, what="a second look at what runs")
        assert old.served_name in engine.loaded
        engine.fails.clear()
        registry.wait_for(old.served_name, NodeState.RETIRED)


def test_a_node_that_starts_with_fewer_slots_unloads_what_has_none(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path
) -> None:
    """What its last life loaded goes down to its slots, and it says so of the rest."""
    records = [registry.publish_version(f"bot-{number}", content=str(number)) for number in range(3)]
    with running_agent(make_options(tmp_path, engine="vllm"), settings, driver=engine):
        for record in records:
            registry.wait_for(record.served_name, NodeState.ROUTABLE)
    with running_agent(make_options(tmp_path, engine="vllm", slots=1), settings, driver=engine):
        for record in records[:2]:
            assert registry.wait_for(record.served_name, NodeState.SKIPPED).code == "NODE_SLOTS_TAKEN"
        assert list(engine.loaded) == [records[2].served_name]


def test_a_node_whose_engine_is_not_there_yet_is_seen_and_fetches(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path
) -> None:
    """Engines take minutes to start: meanwhile the node is known, and has the bytes at hand."""
    engine.fails.add("listed")
    record = registry.publish_version()
    with running_agent(make_options(tmp_path, engine="vllm"), settings, driver=engine):
        registry.wait_for(record.served_name, NodeState.FETCHED)
        assert [node.info.engine_version for node in registry.nodes.nodes(BASE)] == [""]
        engine.fails.clear()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        wait_until(
            lambda: [node.info.engine_version for node in registry.nodes.nodes(BASE)] == ["0.32.0"],
            what="what the engine is, in a heartbeat",
        )


def test_a_node_that_was_forgotten_says_everything_again(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, tmp_path: Path
) -> None:
    """An earlier process of the same name ends late, and says that the node ends: the one that lives is heard again."""
    brisk = settings.model_copy(update={"heartbeat_s": 0.1})
    with running_agent(make_options(tmp_path, engine="vllm"), brisk, driver=engine):
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        registry.nodes.leave(make_info().node_id)
        registry.wait_for(record.served_name, NodeState.ROUTABLE)


@pytest.fixture
def hung(engine: EngineDouble) -> Iterator[threading.Event]:
    """The end of a load of `hung.v1`, which takes until then."""
    end = engine.hangs["hung.v1"] = threading.Event()
    yield end
    end.set()


def test_a_load_that_hangs_delays_nothing_but_its_own_name(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, hung: threading.Event, tmp_path: Path
) -> None:
    """Meanwhile others are loaded and unloaded, and heartbeats come; nobody asks for that name a second time."""
    brisk = settings.model_copy(update={"heartbeat_s": 0.1})
    with running_agent(make_options(tmp_path, engine="vllm"), brisk, driver=engine):
        record = registry.publish_version("hung", content="hung")
        wait_until(lambda: engine.asked["hung.v1"], what="the load that hangs")
        other = registry.publish_version(content="other")
        registry.wait_for(other.served_name, NodeState.ROUTABLE)
        Lifecycle(registry.client, settings).retire_adapter(BOT)
        registry.wait_for(other.served_name, NodeState.RETIRED)
        expires_s = registry.nodes.node("node-1").expires_s
        wait_until(lambda: registry.nodes.node("node-1").expires_s > expires_s, what="another heartbeat")
        assert registry.states(record.served_name) == {"node-1": NodeState.FETCHED}
        hung.set()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        assert engine.asked["hung.v1"] == 1


def test_what_is_retired_while_its_load_hangs_goes_when_that_ends(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, hung: threading.Event, tmp_path: Path
) -> None:
    """The engine may have it any moment, so until then it is not said to be gone, and its files are held."""
    brisk = settings.model_copy(update={"heartbeat_s": 0.1})
    with running_agent(make_options(tmp_path, engine="vllm"), brisk, driver=engine):
        record = registry.publish_version("hung", content="hung")
        wait_until(lambda: engine.asked["hung.v1"], what="the load that hangs")
        Lifecycle(registry.client, settings).retire_adapter(record.adapter)
        other = registry.publish_version(content="other")
        registry.wait_for(other.served_name, NodeState.ROUTABLE)
        wait_until(lambda: other.digest in registry.nodes.digests_in_use(), what="a heartbeat after the retirement")
        assert record.digest in registry.nodes.digests_in_use()
        assert registry.states(record.served_name) == {"node-1": NodeState.FETCHED}
        hung.set()
        registry.wait_for(record.served_name, NodeState.RETIRED)
        assert engine.loaded.keys() == {other.served_name}


def test_what_is_being_loaded_keeps_its_slot(
    registry: StoringRegistry, settings: Settings, engine: EngineDouble, hung: threading.Event, tmp_path: Path
) -> None:
    """A newer adapter does not get it meanwhile: the engine is never given more than the slots."""
    with running_agent(make_options(tmp_path, engine="vllm", slots=1), settings, driver=engine):
        registry.publish_version("hung", content="hung")
        wait_until(lambda: engine.asked["hung.v1"], what="the load that hangs")
        newer = registry.publish_version(content="newer")
        assert registry.wait_for(newer.served_name, NodeState.SKIPPED).code == "NODE_SLOTS_TAKEN"
        hung.set()
        registry.wait_for("hung.v1", NodeState.ROUTABLE)
        assert engine.loaded.keys() == {"hung.v1"}


@pytest.fixture
def all_hung(engine: EngineDouble, registry: StoringRegistry) -> Iterator[Callable[[], threading.Event]]:
    """Have as many loads hang as run at once; returns their end. What is begun then waits for its turn."""
    end = threading.Event()

    def hang() -> threading.Event:
        names = [f"hung-{number}" for number in range(AT_ONCE)]
        engine.hangs |= dict.fromkeys([f"{name}.v1" for name in names], end)
        for name in names:
            registry.publish_version(name, content=name)
        wait_until(lambda: engine.asked.keys() >= engine.hangs.keys(), what="the loads that hang")
        return end

    yield hang
    end.set()


def test_a_load_that_waits_for_its_turn_is_not_made_if_a_newer_version_came(
    registry: StoringRegistry,
    settings: Settings,
    engine: EngineDouble,
    all_hung: Callable[[], threading.Event],
    tmp_path: Path,
) -> None:
    """An engine that takes longer for a load than a training job for a version falls no further and further behind."""
    with running_agent(make_options(tmp_path, engine="vllm"), settings, driver=engine):
        end = all_hung()
        for content in ("one", "two", "three"):
            newest = registry.publish_version(content=content)
            registry.wait_for(newest.served_name, NodeState.FETCHED)
            wait_for_looks(engine, 2)
        end.set()
        registry.wait_for(newest.served_name, NodeState.ROUTABLE)
        for overtaken in ("support-bot.v1", "support-bot.v2"):
            registry.wait_for(overtaken, NodeState.RETIRED)
        assert engine.asked.keys() == {*engine.hangs, newest.served_name}


def test_an_unload_that_waits_for_its_turn_is_not_made_if_it_is_wanted_again(
    registry: StoringRegistry,
    settings: Settings,
    engine: EngineDouble,
    all_hung: Callable[[], threading.Event],
    tmp_path: Path,
) -> None:
    """It was said to be routable, and requests come for it: it does not go after all."""
    with running_agent(make_options(tmp_path, engine="vllm"), settings, driver=engine):
        record = registry.publish_version(follow="manual")
        registry.catalog.move_alias(BOT, "stable", record.version)
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        end = all_hung()
        registry.lifecycle.remove_alias(BOT, "stable")
        wait_for_looks(engine, 5)
        registry.catalog.move_alias(BOT, "stable", record.version)
        later = registry.publish_version("later", content="later")
        registry.wait_for(later.served_name, NodeState.FETCHED)
        end.set()
        registry.wait_for(later.served_name, NodeState.ROUTABLE)
        assert engine.calls["unload"] == 0
        assert registry.states(record.served_name) == {"node-1": NodeState.ROUTABLE}


def test_an_agent_ends_while_a_load_hangs(
    registry: StoringRegistry,
    settings: Settings,
    engine: EngineDouble,
    hung: threading.Event,
    tmp_path: Path,
) -> None:
    """Its end does not wait for the engine's."""
    with running_agent(make_options(tmp_path, engine="vllm"), settings, driver=engine):
        registry.publish_version("hung", content="hung")
        wait_until(lambda: engine.asked["hung.v1"], what="the load that hangs")
    assert not hung.is_set()
    assert registry.nodes.nodes() == []


def test_a_fetch_that_hangs_does_not_keep_the_process_alive(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """SIGTERM ends the node while a store gives no byte."""
    record = registry.publish_version()
    weights = registry.store.path(record.digest) / "adapter_model.safetensors"
    weights.parent.chmod(0o755)
    weights.unlink()
    os.mkfifo(weights)
    command = ["node", "--base", BASE, "--engine", "directory", "--engine-url", str(tmp_path / "engine")]
    environment = {
        "LORA_REGISTRY_REDIS_URL": settings.redis_url,
        "LORA_REGISTRY_KEY_PREFIX": settings.key_prefix,
        "LORA_REGISTRY_ARTIFACT_STORE": str(settings.artifact_store),
    }
    node = subprocess.Popen(
        [sys.executable, "-m", "lora_workers", *command, "--cache", str(tmp_path / "cache"), "--node-id", "node-1"],
        env={**os.environ, **environment},
    )
    try:
        registry.wait_for(record.served_name, NodeState.SEEN, timeout_s=30)
        node.send_signal(signal.SIGTERM)
        assert node.wait(20) == 0
    finally:
        node.kill()
        node.wait()
