"""The node agent beside (a stand-in for) SGLang: its faults do not get past the driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lora_registry.names import AdapterName
from lora_registry.nodes import NodeState
from lora_registry.settings import Settings
from lora_workers.node.drivers import open_driver
from tests.helpers.adapters import make_base
from tests.helpers.node_stand import StoringRegistry, make_options, running_agent, said_of
from tests.helpers.registry import BASE, Registry
from tests.helpers.sglang_server import SglangServer, sglang_server
from tests.helpers.waiting import wait_until

BOT = AdapterName("default", "support-bot")


@pytest.fixture
def registry(settings: Settings, registry: Registry) -> StoringRegistry:
    """A registry whose versions have artifacts."""
    return StoringRegistry(registry.client, settings)


@pytest.fixture
def engine() -> Iterator[SglangServer]:
    """A running stand-in."""
    with sglang_server() as server:
        yield server


def ask(engine: SglangServer, name: str) -> httpx.Response:
    """What a client sends."""
    return httpx.post(f"{engine.url}/generate", json={"lora_path": name, "text": "hello"})


def test_a_version_answers_and_the_node_tells_what_the_engine_tells(
    registry: StoringRegistry, settings: Settings, engine: SglangServer, tmp_path: Path
) -> None:
    """Version and largest rank come from the engine; the answer is the adapter's."""
    options = make_options(tmp_path, engine="sglang", engine_url=engine.url)
    with running_agent(options, settings):
        record = registry.publish_version(content="hello")
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        assert ask(engine, record.served_name).json()["text"] == "/hello"
        (node,) = registry.nodes.nodes()
        assert (node.info.engine, node.info.engine_version, node.info.max_lora_rank) == ("sglang", "0.5.23", 16)


def test_an_engine_is_reached_past_a_proxy(engine: SglangServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment is the way to hubs and stores: it knows no engine on this machine."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    driver = open_driver("sglang", engine.url)
    assert driver.listed() == {}
    driver.close()


def test_an_adapter_that_came_back_by_a_late_request_is_unloaded_again(
    registry: StoringRegistry, settings: Settings, engine: SglangServer, tmp_path: Path
) -> None:
    """SGLang loads an unloaded name again when it is asked for; the node notices and unloads it once more."""
    options = make_options(tmp_path, engine="sglang", engine_url=engine.url)
    with running_agent(options, settings):
        old = registry.publish_version(content="old")
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
        new = registry.publish_version(content="new")
        registry.wait_for(old.served_name, NodeState.RETIRED)
        assert ask(engine, old.served_name).json()["text"] == "/old"
        assert engine.loaded.keys() == {old.served_name, new.served_name}
        wait_until(lambda: engine.loaded.keys() == {new.served_name}, what="the old one gone again")


def test_a_load_that_failed_halfway_is_cleared_and_tried_again(
    registry: StoringRegistry, settings: Settings, engine: SglangServer, tmp_path: Path
) -> None:
    """ "Incomplete unload" blocks a name until somebody unloads it: the driver does."""
    options = make_options(tmp_path, engine="sglang", engine_url=engine.url, retry_refused_s=0.2)
    engine.fail_halfway.add("support-bot.v1")
    with running_agent(options, settings):
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)


def test_what_passes_in_a_moment_is_no_failure(
    registry: StoringRegistry, settings: Settings, engine: SglangServer, tmp_path: Path
) -> None:
    """The first probe fails, the second does not: nobody hears of it, for a failure would abort a promotion."""
    options = make_options(tmp_path, engine="sglang", engine_url=engine.url)
    engine.mute.add("support-bot.v1")
    with said_of("support-bot.v1") as said, running_agent(options, settings):
        record = registry.publish_version()
        wait_until(lambda: "/generate" in engine.calls, what="the first probe")
        engine.mute.clear()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
    assert said == [NodeState.SEEN, NodeState.FETCHED, NodeState.LOADED, NodeState.ROUTABLE]


def test_what_is_wanted_again_is_tried_again(
    registry: StoringRegistry, settings: Settings, engine: SglangServer, tmp_path: Path
) -> None:
    """A refused version rests for long; if nobody wants it and then somebody does, it begins anew, and says so."""
    options = make_options(tmp_path, engine="sglang", engine_url=engine.url)
    with said_of("support-bot.v1") as said, running_agent(options, settings):
        good = registry.publish_version("good", content="good")
        registry.wait_for(good.served_name, NodeState.ROUTABLE)
        engine.max_lora_rank = 4  # told 16 before
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.FAILED)
        newer = registry.publish_version(content="newer")
        registry.wait_for(newer.served_name, NodeState.FAILED)
        registry.wait_for(record.served_name, NodeState.RETIRED)
        engine.max_lora_rank = 16
        registry.catalog.move_alias(BOT, "stable", record.version)
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
    assert said.count(NodeState.SEEN) == 2


def test_a_refusal_is_said_in_the_engines_words_and_not_repeated_at_once(
    registry: StoringRegistry, settings: Settings, engine: SglangServer, tmp_path: Path
) -> None:
    """A 400 of a healthy engine is the adapter's fault: one load, one acknowledgement, no hammering."""
    options = make_options(tmp_path, engine="sglang", engine_url=engine.url)
    with running_agent(options, settings):
        good = registry.publish_version("good", content="good")
        registry.wait_for(good.served_name, NodeState.ROUTABLE)
        engine.max_lora_rank = 4  # told 16 before: the engine knows better than what it tells
        record = registry.publish_version()
        ack = registry.wait_for(record.served_name, NodeState.FAILED)
        assert ack.code == "NODE_ENGINE_REFUSED"
        assert "with rank 8 is incompatible" in ack.reason
        loads = engine.calls.count("/load_lora_adapter")
        other = registry.publish_version("other", content="other")
        registry.wait_for(other.served_name, NodeState.FAILED)
        assert engine.calls.count("/load_lora_adapter") == loads + 1


def test_an_engine_on_another_base_is_given_nothing(
    registry: StoringRegistry, settings: Settings, engine: SglangServer, tmp_path: Path
) -> None:
    """The node says which base the engine serves; once the registry knows that name, too, everything is loaded."""
    base = make_base(name=BASE).model_copy(update={"source": "hf://acme/tiny-llama@main"})
    registry.catalog.bases.add(base)
    engine.model_path = "acme/tiny-llama-instruct"
    options = make_options(tmp_path, engine="sglang", engine_url=engine.url)
    with running_agent(options, settings):
        record = registry.publish_version()
        ack = registry.wait_for(record.served_name, NodeState.SKIPPED)
        assert ack.code == "NODE_OTHER_BASE"
        assert "serves acme/tiny-llama-instruct, not acme/tiny-llama." in ack.reason
        assert "/load_lora_adapter" not in engine.calls
        registry.catalog.bases.add(base.model_copy(update={"also_known_as": (engine.model_path,)}))
        registry.wait_for(record.served_name, NodeState.ROUTABLE)


def test_an_operator_may_say_that_any_base_is_right(
    registry: StoringRegistry, settings: Settings, engine: SglangServer, tmp_path: Path
) -> None:
    """With `--any-base` names are not compared."""
    registry.catalog.bases.add(make_base(name=BASE).model_copy(update={"source": "hf://acme/tiny-llama"}))
    engine.model_path = "acme/another"
    options = make_options(tmp_path, engine="sglang", engine_url=engine.url, any_base=True)
    with running_agent(options, settings):
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)


def test_an_unhealthy_engine_is_waited_for(
    registry: StoringRegistry, settings: Settings, engine: SglangServer, tmp_path: Path
) -> None:
    """A load that fails while `/health` does is the engine's fault: it is tried again soon."""
    options = make_options(tmp_path, engine="sglang", engine_url=engine.url)
    engine.healthy = False
    engine.fail_halfway.add("support-bot.v1")
    with running_agent(options, settings):
        record = registry.publish_version()
        ack = registry.wait_for(record.served_name, NodeState.FAILED)
        assert ack.code == "NODE_ENGINE_UNREACHABLE"
        engine.halfway.clear()
        engine.healthy = True
        registry.wait_for(record.served_name, NodeState.ROUTABLE)


def test_a_restarted_engine_gets_its_adapters_back(
    registry: StoringRegistry, settings: Settings, engine: SglangServer, tmp_path: Path
) -> None:
    """It forgot all of them, and lists them again soon after."""
    options = make_options(tmp_path, engine="sglang", engine_url=engine.url)
    with running_agent(options, settings):
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        engine.restart()
        wait_until(lambda: record.served_name in engine.loaded, what="the adapter back")
        registry.wait_for(record.served_name, NodeState.ROUTABLE)


def test_an_engine_that_is_away_is_said_and_fetching_goes_on(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """What was routable has failed until the engine is back; what is published meanwhile is fetched already."""
    with sglang_server() as engine:
        options = make_options(tmp_path, engine="sglang", engine_url=engine.url)
        with running_agent(options, settings):
            record = registry.publish_version()
            registry.wait_for(record.served_name, NodeState.ROUTABLE)
            engine.away = True
            ack = registry.wait_for(record.served_name, NodeState.FAILED)
            assert ack.code == "NODE_ENGINE_UNREACHABLE"
            other = registry.publish_version("other", content="other")
            registry.wait_for(other.served_name, NodeState.FETCHED)
            engine.restart()
            engine.away = False
            for name in (record.served_name, other.served_name):
                registry.wait_for(name, NodeState.ROUTABLE)


def test_what_is_listed_and_does_not_answer_is_not_routable(
    registry: StoringRegistry, settings: Settings, engine: SglangServer, tmp_path: Path
) -> None:
    """A 200 for the load and a place in the list are not enough: one token is."""
    options = make_options(tmp_path, engine="sglang", engine_url=engine.url)
    engine.mute.add("support-bot.v1")
    with running_agent(options, settings):
        record = registry.publish_version()
        ack = registry.wait_for(record.served_name, NodeState.FAILED)
        assert ack.code == "NODE_PROBE_FAILED"
        assert "contains nan" in ack.reason
        engine.mute.clear()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
