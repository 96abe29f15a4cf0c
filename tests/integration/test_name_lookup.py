"""How the plug-in for vLLM finds served names: from the registry, from the cache while that is away, never raising."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from lora_registry.artifacts import WEIGHTS_FILE, Manifest
from lora_registry.lifecycle import Lifecycle
from lora_registry.names import AdapterName
from lora_registry.settings import Settings
from lora_workers.node import lookup as lookup_module
from lora_workers.node.drivers import EngineDescription
from lora_workers.node.judging import describe_node
from lora_workers.node.lookup import Found, LazyOrigin, NameLookup
from tests.helpers.adapters import make_base
from tests.helpers.node_stand import StoringRegistry, make_options
from tests.helpers.registry import BASE, Registry


@pytest.fixture
def registry(settings: Settings, registry: Registry) -> StoringRegistry:
    """A registry whose versions have artifacts."""
    return StoringRegistry(registry.client, settings)


def make_lookup(settings: Settings, directory: Path, **fields: Any) -> NameLookup:
    """The lookup of a node."""
    options = make_options(directory, engine="vllm", **fields)
    told = EngineDescription("vllm", version="0.32.0", max_lora_rank=options.max_lora_rank)
    return NameLookup(describe_node(told, options), options, settings)


def run(lookup: NameLookup, test: Callable[[NameLookup], Awaitable[None]]) -> None:
    """Run a test in a loop of its own."""

    async def begin() -> None:
        try:
            await test(lookup)
        finally:
            await lookup.close()

    asyncio.run(begin())


def find(settings: Settings, directory: Path, served_name: str, **fields: Any) -> Found | None:
    """What a new process finds."""
    found: list[Found | None] = []

    async def test(lookup: NameLookup) -> None:
        found.append(await lookup.find(served_name))

    run(make_lookup(settings, directory, **fields), test)
    return found[0]


def away(settings: Settings) -> Settings:
    """The same registry on a server that is not there."""
    return settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})


def test_a_published_name_is_found_fetched_and_verified(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """Without an agent: record and files come from the registry and its store."""
    record = registry.publish_version(content="hello")
    found = find(settings, tmp_path, record.served_name)
    assert found
    assert found.record == record
    assert (found.path / WEIGHTS_FILE).read_text() == "/hello"


@pytest.mark.parametrize(
    "name", ["support-bot", "support-bot@support-bot", "default.support-bot.v1", "../support-bot.v1", "/x", "", "base"]
)
def test_what_is_no_served_name_is_not_looked_up(
    registry: StoringRegistry, settings: Settings, tmp_path: Path, name: str
) -> None:
    """No second spelling of a version, no alias, no path: nothing is even asked."""
    registry.publish_version()
    assert find(settings, tmp_path, name) is None
    assert not (tmp_path / "cache").exists()


def test_a_name_that_is_published_later_is_found_soon(
    registry: StoringRegistry, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown name is not asked for again at once, and not forgotten for long."""
    monkeypatch.setattr(lookup_module, "UNKNOWN_FOR_S", 0.3)

    async def test(lookup: NameLookup) -> None:
        assert await lookup.find("support-bot.v1") is None
        record = await asyncio.to_thread(registry.publish_version)
        assert record.served_name == "support-bot.v1"
        assert await lookup.find("support-bot.v1") is None
        async with asyncio.timeout(10):
            while await lookup.find("support-bot.v1") is None:
                await asyncio.sleep(0.02)

    run(make_lookup(settings, tmp_path), test)


def test_while_redis_is_away_the_cache_knows_its_names(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """What this node was told before is answered from its disk; the rest is unknown, and nothing is raised."""
    record = registry.publish_version(content="hello")
    assert find(settings, tmp_path, record.served_name)
    found = find(away(settings), tmp_path, record.served_name)
    assert found
    assert found.record == record
    assert find(away(settings), tmp_path, "other.v1") is None


def test_every_name_of_the_same_bytes_is_known_while_redis_is_away(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """The second one needs no fetch, and is noted all the same."""
    records = [registry.publish_version(name, content="the same") for name in ("support-bot", "sales-bot")]

    async def test(lookup: NameLookup) -> None:
        for record in records:
            assert await lookup.find(record.served_name)

    run(make_lookup(settings, tmp_path), test)
    for record in records:
        found = find(away(settings), tmp_path, record.served_name)
        assert found
        assert found.record == record


def test_a_note_that_cannot_be_written_keeps_no_name_from_being_found(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """What may only read the agent's cache serves from it, also before the agent has noted the newest labels."""
    record = registry.publish_version()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "served").write_text("a file where a directory should be")
    found = find(settings, tmp_path, record.served_name)
    assert found
    assert found.record == record


def test_a_store_that_hangs_delays_no_name_whose_files_are_here(
    registry: StoringRegistry, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many fetches hang: vLLM asks for all names in one loop."""
    here = registry.publish_version("here", content="here")
    others = [registry.publish_version(f"bot-{number}", content=str(number)) for number in range(8)]
    may_go_on, usual = threading.Event(), LazyOrigin.manifest

    def manifest(self: LazyOrigin, digest: str) -> Manifest:
        if digest != here.digest:
            may_go_on.wait(30)
        return usual(self, digest)

    async def test(lookup: NameLookup) -> None:
        assert await lookup.find(here.served_name)
        hung = [asyncio.create_task(lookup.find(each.served_name)) for each in others]
        await asyncio.sleep(0.2)
        try:
            async with asyncio.timeout(5):
                assert await lookup.find(here.served_name)
            fetching = [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]
            assert [thread.daemon for thread in fetching] == 4 * [True]  # vLLM's process ends all the same
        finally:
            may_go_on.set()
        assert all(await asyncio.gather(*hung))

    monkeypatch.setattr(LazyOrigin, "manifest", manifest)
    run(make_lookup(settings, tmp_path), test)


def test_a_server_that_came_back_empty_is_no_reason_to_forget(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """Until an operator says that it counts, what was known of a name before does."""
    record = registry.publish_version()
    assert find(settings, tmp_path, record.served_name)
    registry.client.flushdb()
    for _ in range(2):
        found = find(settings, tmp_path, record.served_name)
        assert found
        assert found.record == record
        registry.admit()
    other = registry.publish_version("other", content="other")
    assert find(settings, tmp_path, other.served_name)
    Lifecycle(registry.client, settings).retire_adapter(AdapterName("default", "other"))
    assert find(settings, tmp_path, other.served_name) is None
    registry.admit(by_operator=True)
    assert find(settings, tmp_path, record.served_name) is None


def test_a_known_name_stands_for_no_other_bytes_until_an_operator_says_so(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """A server that lost everything, and that somebody's dispatcher admitted, gives names a second time."""
    record = registry.publish_version(content="one")
    assert find(settings, tmp_path, record.served_name)
    registry.client.flushdb()
    registry.admit()
    other = registry.publish_version(content="two")
    assert (other.served_name, other.digest == record.digest) == (record.served_name, False)
    found = find(settings, tmp_path, record.served_name)
    assert found
    assert found.record == record
    registry.admit(by_operator=True)
    found = find(settings, tmp_path, record.served_name)
    assert found
    assert found.record == other


def test_a_retired_name_is_unknown_and_forgotten(registry: StoringRegistry, settings: Settings, tmp_path: Path) -> None:
    """Redis says so, and from then on the cache does."""
    record = registry.publish_version()
    assert find(settings, tmp_path, record.served_name)
    Lifecycle(registry.client, settings).retire_adapter(AdapterName("default", "support-bot"))
    assert find(settings, tmp_path, record.served_name) is None
    assert find(away(settings), tmp_path, record.served_name) is None


def test_a_version_for_another_base_or_another_engine_is_not_served(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """One node serves one base model, and what its engine takes."""
    record = registry.publish_version()
    assert find(settings, tmp_path, record.served_name, base="other") is None
    assert find(settings, tmp_path, record.served_name, max_lora_rank=4) is None
    assert find(settings, tmp_path, record.served_name, select="tier=gold") is None
    assert find(settings, tmp_path, record.served_name, max_lora_rank=8)


def test_an_engine_on_another_base_is_given_nothing(
    registry: StoringRegistry,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """That is logged once; once somebody says that it is the same base, or that any is right, adapters are served."""
    base = make_base(name=BASE).model_copy(update={"source": "hf://acme/llama@abc"})
    registry.catalog.bases.add(base)
    record = registry.publish_version()
    monkeypatch.setattr(lookup_module, "COMPARE_BASES_S", 0.0)
    monkeypatch.setattr(lookup_module, "UNKNOWN_FOR_S", 0.0)

    async def test(lookup: NameLookup) -> None:
        for _ in range(3):
            assert await lookup.find(record.served_name, told_base="acme/llama-instruct") is None
        assert await lookup.find(record.served_name, told_base="acme/llama")
        assert await lookup.find(record.served_name, told_base="acme/llama")

    run(make_lookup(settings, tmp_path), test)
    (said,) = [each.message for each in caplog.records if "acme/llama-instruct" in each.message]
    assert "no adapter of the registry is served here" in said

    async def test_renamed(lookup: NameLookup) -> None:
        assert await lookup.find(record.served_name, told_base="mirror/llama") is None
        registry.catalog.bases.add(base.model_copy(update={"also_known_as": ("mirror/llama",)}))
        assert await lookup.find(record.served_name, told_base="mirror/llama")

    run(make_lookup(settings, tmp_path), test_renamed)

    async def test_any(lookup: NameLookup) -> None:
        assert await lookup.find(record.served_name, told_base="acme/llama-instruct")

    run(make_lookup(settings, tmp_path, any_base=True), test_any)


def test_bases_are_not_compared_while_redis_is_away(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """What the cache was given for this base before goes on being served."""
    registry.catalog.bases.add(make_base(name=BASE).model_copy(update={"source": "hf://acme/llama@abc"}))
    record = registry.publish_version()
    assert find(settings, tmp_path, record.served_name)

    async def test(lookup: NameLookup) -> None:
        assert await lookup.find(record.served_name, told_base="acme/llama")

    run(make_lookup(away(settings), tmp_path), test)


def test_nothing_that_goes_wrong_gets_out(registry: StoringRegistry, settings: Settings, tmp_path: Path) -> None:
    """An exception would end a client's request with its text: a broken cache, a broken record."""
    record = registry.publish_version()
    (tmp_path / "cache").write_text("a file")
    assert find(settings, tmp_path, record.served_name) is None
    (tmp_path / "cache").unlink()
    registry.client.hset(registry.keys.versions(record.base_model), record.field, "{")
    assert find(settings, tmp_path, record.served_name) is None
