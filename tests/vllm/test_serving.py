"""From a training job to two vLLM servers that answer with the adapter, and what happens to it later."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from lora_registry.artifacts import WEIGHTS_FILE
from lora_registry.lifecycle import Lifecycle
from lora_registry.names import AdapterName
from lora_registry.nodes import NodeState
from lora_workers import installation
from lora_workers.node.note_files import NoteFiles
from tests.helpers.node_stand import damage
from tests.helpers.waiting import wait_until
from tests.vllm.asking import (
    HEADER,
    TOKENS,
    acks_of_the_agent,
    check_answer,
    publish,
    wait_for_ack,
    wait_for_version,
)
from tests.vllm.conftest import Stand
from tests.vllm.models import BASE_NAME, LONG_PROMPT, PROMPT, Reference, train_adapter, vary
from tests.vllm.node import Node
from tests.vllm.server import SOURCES, VLLM, environment_of_a_node
from tests.vllm.traffic import Answered, traffic

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Trained:
    """An adapter and what PEFT answers with it."""

    path: Path
    reference: Reference


@pytest.fixture(scope="session")
def trained(stand: Stand) -> dict[str, Trained]:
    """Adapters by the word that they were trained to say."""
    return {word: train(stand, word) for word in ("bravo", "charlie", "delta")}


def train(stand: Stand, word: str) -> Trained:
    """Train an adapter."""
    path = train_adapter(stand.base, stand.stack.sources / word, word)
    return Trained(path, Reference(stand.base, path))


def lifecycle(stand: Stand) -> Lifecycle:
    """What an operator changes the catalog with."""
    return Lifecycle(stand.stack.registry.client, stand.stack.settings)


def test_what_is_trained_answers_on_both_nodes(stand: Stand, trained: dict[str, Trained]) -> None:
    """Log-probabilities are PEFT's within 0.01, through the agent's node and through the plug-in's."""
    bravo = trained["bravo"]
    served_name = publish(stand, "first-bot", bravo.path)
    wait_for_ack(stand, served_name, NodeState.ROUTABLE)
    check_answer(stand.bare, served_name, bravo.reference)
    check_answer(stand.resolving, served_name, bravo.reference)
    wait_until(lambda: "first-bot" in stand.resolving.listed(), what="the alias in the list of models")
    response = check_answer(stand.resolving, "first-bot", bravo.reference)
    assert response.headers["x-lora-served-name"] == served_name
    assert response.json()["model"] == served_name
    check_answer(stand.resolving, "base", Reference(stand.base, None))
    assert "Failed to load plugin" not in stand.resolving.log.read_text()


def test_a_retrained_version_under_traffic(stand: Stand, trained: dict[str, Trained]) -> None:
    """Every answer is wholly the old version's or wholly the new one's, none fails, and long prompts are right, too:
    with two places for three adapters, so that the engine evicts and reads files again all the while."""
    adapters = {"live-bot.v1": trained["charlie"], "live-bot.v2": trained["delta"], "first-bot.v1": trained["bravo"]}
    prompts = (PROMPT, LONG_PROMPT)
    expected = {
        (name, prompt): adapter.reference.answer(prompt, tokens=TOKENS)[0]
        for name, adapter in adapters.items()
        for prompt in prompts
    }
    assert len(set(expected.values())) > len(prompts)  # the adapters do differ
    assert publish(stand, "live-bot", trained["charlie"].path) == "live-bot.v1"
    wait_for_version(stand.resolving, "live-bot", "live-bot.v1")
    with traffic(stand.resolving, ("live-bot", "first-bot"), prompts) as seen:
        seen.wait_for("live-bot", "live-bot.v1", count=10)
        assert publish(stand, "live-bot", trained["delta"].path) == "live-bot.v2"
        seen.wait_for("live-bot", "live-bot.v2", count=20)
        wait_until(lambda: "live-bot.v1" not in stand.resolving.listed(), what="the old version unloaded")
        count = len(seen.answers)
        wait_until(lambda: len(seen.answers) > count + 10, what="answers after that")
    for each in seen.answers:
        assert each.status == 200, each
        assert each.text == expected[each.served_name, each.prompt], each
    live = [each.served_name for each in sorted(seen.answers, key=lambda each: each.at) if each.alias == "live-bot"]
    assert set(live) == {"live-bot.v1", "live-bot.v2"}
    check_answer(stand.resolving, "live-bot", trained["delta"].reference, prompt=LONG_PROMPT)


def test_a_rollback_and_a_retirement_reach_both_nodes(stand: Stand, trained: dict[str, Trained]) -> None:
    """The alias answers with the old version again; what is retired is gone from both engines."""
    adapter = AdapterName("default", "live-bot")
    wait_for_ack(stand, "live-bot.v2", NodeState.ROUTABLE)
    lifecycle(stand).rollback(adapter, "live-bot")
    wait_for_version(stand.resolving, "live-bot", "live-bot.v1")
    check_answer(stand.resolving, "live-bot", trained["charlie"].reference)
    wait_for_ack(stand, "live-bot.v1", NodeState.ROUTABLE)
    check_answer(stand.bare, "live-bot.v1", trained["charlie"].reference, prompt=LONG_PROMPT)

    lifecycle(stand).retire_version(adapter, 2)
    wait_for_ack(stand, "live-bot.v2", NodeState.RETIRED)
    assert "live-bot.v2" not in stand.bare.listed()
    wait_until(lambda: "live-bot.v2" not in stand.resolving.listed(), what="unloaded by the middleware")
    assert stand.resolving.complete("live-bot.v2", PROMPT).status_code == 404
    assert stand.bare.complete("live-bot.v2", PROMPT).status_code == 404


def test_a_node_that_was_down_during_ten_changes(stand: Stand, trained: dict[str, Trained]) -> None:
    """The agent was away for ten versions: it loads the last one and unloads what it left."""
    variants = [vary(trained["bravo"].path, stand.stack.sources / f"busy-{n}", n) for n in range(1, 12)]
    first = publish(stand, "busy-bot", variants[0])
    wait_for_ack(stand, first, NodeState.ROUTABLE)
    stand.agent.stop()
    last = [publish(stand, "busy-bot", variant) for variant in variants[1:]][-1]
    assert last == "busy-bot.v11"
    assert last not in stand.bare.listed()
    stand.agent.start()
    wait_for_ack(stand, last, NodeState.ROUTABLE)
    check_answer(stand.bare, last, Reference(stand.base, variants[-1]))
    wait_until(lambda: first not in stand.bare.listed(), what="the first one unloaded", timeout_s=60)


def test_a_damaged_cache_is_mended_under_a_running_engine(stand: Stand, trained: dict[str, Trained]) -> None:
    """Somebody overwrote the weights of a loaded adapter: the agent puts them right before the engine reads again."""
    weights = Path(stand.bare.listed()["first-bot.v1"]) / WEIGHTS_FILE
    right = weights.read_bytes()
    damage(weights.parent, {WEIGHTS_FILE: b"not what was validated"})
    wait_until(lambda: weights.read_bytes() == right, what="the right bytes", timeout_s=30)
    check_answer(stand.bare, "first-bot.v1", trained["bravo"].reference)


def test_redis_away_for_a_minute(stand: Stand, trained: dict[str, Trained]) -> None:
    """What is loaded goes on serving, the plug-in answers for names it knows, and the agent catches up afterwards.

    Requests go to both nodes all the while, and every answer is right; three times the plug-in has to resolve again.
    """
    bravo, prompts = trained["bravo"].reference, (PROMPT, LONG_PROMPT)
    expected = {prompt: bravo.answer(prompt, tokens=TOKENS)[0] for prompt in prompts}
    check_answer(stand.resolving, "first-bot", bravo)  # loaded, whatever was asked for before
    stand.valkey.stop()
    since, at_resolving = time.monotonic(), list[Answered]()
    try:
        with traffic(stand.bare, ("first-bot.v1",), prompts, clients=1) as at_bare:
            for moment_s in (20, 40, 60):
                unloaded = stand.resolving.http.post("/v1/unload_lora_adapter", json={"lora_name": "first-bot.v1"})
                assert unloaded.status_code == 200
                check_answer(stand.resolving, "first-bot", bravo)  # resolved again, from the cache
                with traffic(stand.resolving, ("first-bot", "first-bot.v1"), prompts, clients=1) as seen:
                    seen.wait_until_after(since + moment_s)
                at_resolving += seen.answers
                assert stand.resolving.complete("never-heard-of.v1", PROMPT).status_code == 404
    finally:
        stand.valkey.start()
    for each in [*at_bare.answers, *at_resolving]:
        assert (each.status, each.text) == (200, expected[each.prompt]), each
    assert {each.alias for each in at_resolving} == {"first-bot", "first-bot.v1"}

    stand.stack.wait_until(lambda: stand.stack.registry.client.ping(), what="the server back")
    served_name = publish(stand, "after-bot", trained["delta"].path)
    wait_for_ack(stand, served_name, NodeState.ROUTABLE)
    check_answer(stand.bare, served_name, trained["delta"].reference)
    wait_for_version(stand.resolving, "after-bot", served_name)
    assert acks_of_the_agent(stand, "first-bot.v1")[stand.agent.node_id].state is NodeState.ROUTABLE


def test_an_engine_that_restarts_gets_its_adapters_back(stand: Stand, trained: dict[str, Trained]) -> None:
    """The engine was killed and lost everything; the agent loads it all again without being told."""
    before = {name for name in stand.bare.listed() if name != "base"}
    stand.bare.kill()
    wait_for_ack(stand, "first-bot.v1", NodeState.FAILED)
    stand.bare.start()
    stand.bare.wait()
    wait_for_ack(stand, "first-bot.v1", NodeState.ROUTABLE)
    wait_until(lambda: before <= stand.bare.listed().keys(), what="all adapters back")
    check_answer(stand.bare, "first-bot.v1", trained["bravo"].reference)


def test_an_agent_beside_plug_in_and_middleware(stand: Stand, trained: dict[str, Trained], tmp_path: Path) -> None:
    """All three on one server and one cache, under traffic: forth and back, and every answer is right."""
    settings = stand.stack.settings
    agent = Node(stand.resolving.url, settings, tmp_path, node_id="beside", cache=stand.resolving_cache)
    agent.start("--select", "name=trio-bot", "--drain-s", "0.5")
    try:
        old = publish(stand, "trio-bot", trained["charlie"].path)
        wait_for_version(stand.resolving, "trio-bot", old)
        with traffic(stand.resolving, ("trio-bot",), (PROMPT, LONG_PROMPT)) as seen:
            new = publish(stand, "trio-bot", trained["delta"].path)
            seen.wait_for("trio-bot", new, count=5)
            wait_until(lambda: old not in stand.resolving.listed(), what="the old version unloaded")
            lifecycle(stand).rollback(AdapterName("default", "trio-bot"), "trio-bot")
            wait_until(lambda: seen.answers[-1].served_name == old, what="the old version again")
            wait_until(lambda: new not in stand.resolving.listed(), what="the new version unloaded")
    finally:
        agent.stop()
    words = {old: "charlie", new: "delta"}
    expected = {
        (name, prompt): trained[word].reference.answer(prompt, tokens=TOKENS)[0]
        for name, word in words.items()
        for prompt in (PROMPT, LONG_PROMPT)
    }
    for each in seen.answers:
        assert each.status == 200, each
        assert each.text == expected[each.served_name, each.prompt], each
    assert stand.resolving.is_healthy()


def test_what_stands_in_answers_after_vllm_was_started_again(
    stand: Stand, trained: dict[str, Trained], tmp_path: Path
) -> None:
    """The alias names a version that the node refuses: whatever forgot what it stood for is told by the agent."""
    large = train_adapter(stand.base, stand.stack.sources / "large", "echo", r=32, steps=5)
    agent = Node(stand.resolving.url, stand.stack.settings, tmp_path, node_id="beside", cache=stand.resolving_cache)
    agent.start("--select", "name=duo-bot", "--drain-s", "0.5")
    try:
        old = publish(stand, "duo-bot", trained["charlie"].path)
        wait_until(lambda: "beside" in acks_of_the_agent(stand, old), what="the agent has the old version")
        wait_for_version(stand.resolving, "duo-bot", old)
        new = publish(stand, "duo-bot", large)
        wait_until(lambda: "beside" in acks_of_the_agent(stand, new), what="the new version is refused")
        routes = {"default.duo-bot@duo-bot": old}
        wait_until(
            lambda: NoteFiles(agent.cache).recall_routes() == routes, what="the note of what the alias stands for"
        )
        stand.resolving.kill()
        stand.resolving.start()
        stand.resolving.wait()
        wait_until(lambda: old in stand.resolving.listed(), what="the old version is back", timeout_s=60)
        for _ in range(20):  # it looks meanwhile whether the new one answers
            response = check_answer(stand.resolving, "duo-bot", trained["charlie"].reference)
            assert response.headers[HEADER] == old
    finally:
        agent.stop()


def test_requests_inside_the_process_carry_the_registrys_number() -> None:
    """`to_lora_request` gives vLLM's own class, with the id that the registry never reuses."""
    code = (
        "from lora_registry.catalog import VersionRecord\n"
        "from lora_workers.node.vllm_plugin import to_lora_request\n"
        "record = VersionRecord.model_construct(served_name='bot.v3', lora_int_id=7001)\n"
        "request = to_lora_request(record, '/cache/x')\n"
        "print(type(request).__name__, request.lora_name, request.lora_int_id, request.lora_path)\n"
    )
    result = subprocess.run(
        [VLLM.parent / "python", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.stdout.split() == ["LoRARequest", "bot.v3", "7001", "/cache/x"], result.stderr


def test_a_vllm_on_another_base_is_given_nothing(stand: Stand, tmp_path: Path) -> None:
    """The resolver inside vLLM hears which model it was started with, and compares."""
    code = (
        "import asyncio\n"
        "from vllm.lora.resolver import LoRAResolverRegistry\n"
        "from lora_workers.node.vllm_plugin import NAME, register\n"
        "register()\n"
        "resolver = LoRAResolverRegistry.get_resolver(NAME)\n"
        "async def ask():\n"
        "    for base in ('acme/tiny', 'acme/other', '/models/any'):\n"
        "        found = await resolver.resolve_lora(base, 'first-bot.v1')\n"
        "        print('found', base, found and found.lora_name)\n"
        "        resolver._lookup._compare_bases_at = 0\n"
        "        resolver._lookup._unknown.clear()\n"
        "asyncio.run(ask())\n"
    )
    environment = environment_of_a_node(
        installation.environment_of(stand.stack.settings), base=BASE_NAME, cache=str(tmp_path / "cache")
    )
    result = subprocess.run(
        [VLLM.parent / "python", "-c", code],
        env=environment | SOURCES,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    found = [line for line in result.stdout.splitlines() if line.startswith("found ")]
    assert found == [
        "found acme/tiny first-bot.v1",
        "found acme/other None",
        "found /models/any first-bot.v1",
    ], result.stdout + result.stderr
    assert "It serves acme/other, not acme/tiny." in result.stderr
