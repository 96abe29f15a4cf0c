"""The node agent with a directory for an engine: what it holds is what the registry says, whatever happens."""

from __future__ import annotations

import shutil
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from lora_registry import node_codes as codes
from lora_registry.artifacts import WEIGHTS_FILE, Manifest
from lora_registry.errors import PromotionAborted, RedisUnavailable
from lora_registry.lifecycle import Lifecycle
from lora_registry.marks import Marks
from lora_registry.names import AdapterName, Reference
from lora_registry.nodes import NodeState
from lora_registry.open_promotions import OpenPromotions
from lora_registry.promotion import Promotions
from lora_registry.rollout import Rollouts
from lora_registry.settings import Settings
from lora_workers.garbage import GarbageCollection
from lora_workers.node import wishes
from lora_workers.node.drivers.directory import DirectoryDriver
from lora_workers.node.failures import NodeFailure
from lora_workers.node.lookup import LazyOrigin
from lora_workers.node.note_files import NoteFiles
from lora_workers.node.options import NodeOptions
from tests.helpers.keys import leaked_keys
from tests.helpers.node_stand import (
    StoringRegistry,
    damage,
    links,
    make_options,
    running_agent,
    weights_of,
)
from tests.helpers.registry import BASE, Registry
from tests.helpers.waiting import wait_until

BOT = AdapterName("default", "support-bot")


@pytest.fixture
def registry(settings: Settings, registry: Registry) -> StoringRegistry:
    """A registry whose versions have artifacts."""
    return StoringRegistry(registry.client, settings)


def test_a_version_comes_to_answer_and_is_acknowledged(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """Published while the node runs: fetched, loaded, read back and routable; the engine's user may read it."""
    options = make_options(tmp_path)
    with running_agent(options, settings.model_copy(update={"heartbeat_s": 0.1})):
        record = registry.publish_version(content="first")
        registry.wait_for(record.served_name, NodeState.ROUTABLE)

        path = links(options)[record.served_name]
        assert weights_of(options, record.served_name) == "/first"
        assert path == options.cache / "sha256" / record.digest.removeprefix("sha256:")
        assert stat.S_IMODE(path.stat().st_mode) == 0o555
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o444}
        (node,) = registry.nodes.nodes()
        assert (node.info.engine, node.info.eager, node.alive) == ("directory", True, True)
        wait_until(lambda: registry.nodes.digests_in_use() == {record.digest}, what="the digest in the heartbeat")
    assert registry.nodes.nodes() == []  # it said that it ends
    assert record.served_name in links(options)  # and left the engine as it was


def test_a_newer_version_replaces_the_old_one_after_the_drain_time(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """The new one is there before the old one goes; the old one's files stay in the cache."""
    options = make_options(tmp_path, drain_s=0.6)
    with running_agent(options, settings):
        old = registry.publish_version(content="one")
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
        new = registry.publish_version(content="two")
        registry.wait_for(new.served_name, NodeState.ROUTABLE)
        assert links(options).keys() == {old.served_name, new.served_name}
        registry.wait_for(old.served_name, NodeState.RETIRED)
        assert links(options).keys() == {new.served_name}
        assert (options.cache / "sha256" / old.digest.removeprefix("sha256:")).is_dir()


def test_a_rollback_within_the_drain_time_keeps_the_old_version_loaded(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """What is wanted again before it went never went."""
    options = make_options(tmp_path, drain_s=30)
    with running_agent(options, settings):
        old = registry.publish_version(content="one")
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
        before = (Path(options.engine_url) / old.served_name).lstat().st_mtime_ns
        new = registry.publish_version(content="two")
        registry.wait_for(new.served_name, NodeState.ROUTABLE)
        registry.catalog.move_alias(BOT, BOT.name, old.version)
        registry.catalog.move_alias(BOT, "stable", new.version)
        third = registry.publish_version("other", content="three")
        registry.wait_for(third.served_name, NodeState.ROUTABLE)
        assert (Path(options.engine_url) / old.served_name).lstat().st_mtime_ns == before
        assert registry.states(old.served_name) == {"node-1": NodeState.ROUTABLE}


def test_a_retired_version_is_unloaded_and_said_to_be_gone(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """After `retire` nobody asks for it: it is unloaded, and acknowledged as retired."""
    options = make_options(tmp_path)
    with running_agent(options, settings):
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        Lifecycle(registry.client, settings).retire_adapter(BOT)
        registry.wait_for(record.served_name, NodeState.RETIRED)
        assert links(options) == {}
        assert list((options.cache / "served").iterdir()) == []


class PickyDirectory(DirectoryDriver):
    """An engine that refuses some served names for good."""

    def __init__(self, options: NodeOptions) -> None:
        super().__init__(Path(options.engine_url))
        self.refuses: set[str] = set()

    def load(self, served_name: str, path: str) -> None:
        """See `Driver`."""
        if served_name in self.refuses:
            raise NodeFailure(codes.NODE_ENGINE_REFUSED, "no memory", may_pass=False)
        super().load(served_name, path)


class SlowDirectory(DirectoryDriver):
    """An engine that loads and answers when it is told to."""

    is_at_once = False

    def __init__(self, options: NodeOptions) -> None:
        super().__init__(Path(options.engine_url))
        self.may_load, self.may_answer = threading.Event(), threading.Event()

    def load(self, served_name: str, path: str) -> None:
        """See `Driver`."""
        assert self.may_load.wait(20)
        super().load(served_name, path)

    def probe(self, served_name: str) -> None:
        """See `Driver`."""
        assert self.may_answer.wait(20)
        super().probe(served_name)


class CountingDirectory(DirectoryDriver):
    """An engine that counts how often it is looked at."""

    looks = 0

    def listed(self) -> dict[str, str | None]:
        """See `Driver`."""
        self.looks += 1
        return super().listed()


class WaitingOrigin(LazyOrigin):
    """An artifact store that answers when it is told to."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.is_asked, self.may_answer = threading.Event(), threading.Event()

    def manifest(self, digest: str) -> Manifest:
        """See `Origin`."""
        self.is_asked.set()
        assert self.may_answer.wait(20)
        return super().manifest(digest)


def test_what_waited_to_be_said_is_said_without_a_look(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """A fetch takes longer than its beginning may wait for company: that it began is told, and nothing else is done."""
    options = make_options(tmp_path, reconcile_s=60.0)
    engine, origin = CountingDirectory(Path(options.engine_url)), WaitingOrigin(settings)
    with running_agent(options, settings, driver=engine, origin=origin):
        record = registry.publish_version()
        assert origin.is_asked.wait(20)
        looks = engine.looks
        registry.wait_for(record.served_name, NodeState.SEEN)
        assert engine.looks == looks
        origin.may_answer.set()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)


def test_how_far_it_is_can_be_seen_while_the_engine_is_waited_for(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """An engine that takes long to load, and then to answer: the node said what came before."""
    options = make_options(tmp_path)
    slow = SlowDirectory(options)
    with running_agent(options, settings, driver=slow):
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.FETCHED)
        slow.may_load.set()
        registry.wait_for(record.served_name, NodeState.LOADED)
        slow.may_answer.set()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)


def test_a_promotion_goes_back_by_itself_and_may_be_repeated_at_once(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """The canary serves it, the other node refuses: back for all. Repaired, the same promotion succeeds: the earlier
    failure counts for nothing, and its long rest is over."""
    options = [make_options(tmp_path / name, node_id=name) for name in ("node-1", "node-2")]
    picky = PickyDirectory(options[1])
    picky.refuses.add("support-bot.v2")
    client = registry.client
    promotions = Promotions(Lifecycle(client, settings), Rollouts(client, settings), OpenPromotions(client, settings))
    with running_agent(options[0], settings), running_agent(options[1], settings, driver=picky):
        old = registry.publish_version(follow="manual")
        new = registry.publish_version(content="two", follow="manual")
        registry.catalog.move_alias(BOT, BOT.name, old.version)
        for node in ("node-1", "node-2"):
            registry.wait_for(old.served_name, NodeState.ROUTABLE, node=node)
        with pytest.raises(PromotionAborted, match=r"node-2 failed: NODE_ENGINE_REFUSED no memory.*v1 again"):
            promotions.promote(BOT, new.version, BOT.name, canaries=("node-1",), timeout_s=30)
        for node in ("node-1", "node-2"):
            registry.wait_for(new.served_name, NodeState.RETIRED, node=node)
        assert [set(links(each)) for each in options] == [{old.served_name}, {old.served_name}]
        picky.refuses.clear()
        done = promotions.promote(BOT, new.version, BOT.name, canaries=("node-1",), timeout_s=30)
        assert {each.node_id for each in done.standings if each.is_served} == {"node-1", "node-2"}
        assert registry.version().version == new.version


@pytest.mark.parametrize("ahead_s", [86_400.0, -86_400.0])
def test_a_direction_lasts_as_long_as_the_server_says_whatever_the_node_s_clock(
    registry: StoringRegistry, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    """A clock that is a day ahead does not end it at once, and one that is a day behind does not keep it for a day."""
    options = make_options(tmp_path)
    told, own = registry.publish_version(follow="manual"), time.time
    monkeypatch.setattr(time, "time", lambda: own() + ahead_s)
    with running_agent(options, settings):
        registry.publish_version("other", content="other")
        wait_until(lambda: links(options), what="the node at work")
        registry.lifecycle.direct(told, ["node-1"], token="t", for_s=60)
        registry.wait_for(told.served_name, NodeState.ROUTABLE)
        registry.lifecycle.direct(told, ["node-1"], token="t", for_s=0)
        registry.wait_for(told.served_name, NodeState.RETIRED)


def test_a_direction_goes_on_while_the_server_s_clock_cannot_be_read(
    registry: StoringRegistry, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of it before counts on, and not this machine's, which is a day ahead."""
    told, own = registry.publish_version(follow="manual"), time.time
    monkeypatch.setattr(time, "time", lambda: own() + 86_400.0)

    def away(_: redis.Redis) -> float:
        raise RedisUnavailable

    with running_agent(make_options(tmp_path), settings):
        registry.lifecycle.direct(told, ["node-1"], token="t", for_s=60)
        registry.wait_for(told.served_name, NodeState.ROUTABLE)
        monkeypatch.setattr(wishes, "server_time_s", away)
        for name in ("other", "another"):
            registry.wait_for(registry.publish_version(name, content=name).served_name, NodeState.ROUTABLE)
        assert registry.states(told.served_name) == {"node-1": NodeState.ROUTABLE}


def test_an_artifact_is_collected_when_no_node_lists_it_any_more(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """Retired and still draining: the collection leaves it alone; once it is unloaded it goes."""
    options = make_options(tmp_path, drain_s=1.0)
    brief = settings.model_copy(update={"heartbeat_s": 0.1})

    def collect() -> list[str]:
        marks = Marks(registry.client, settings)
        held = registry.nodes.digests_in_use
        return (
            GarbageCollection(
                registry.store, catalog=registry.catalog, marks=marks, in_use=held, grace_s=0, reports_for_s=0
            )
            .run(allow_all=True)
            .removed
        )

    with running_agent(options, brief):
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        wait_until(lambda: registry.nodes.digests_in_use() == {record.digest}, what="the digest in the heartbeat")
        Lifecycle(registry.client, settings).retire_adapter(BOT)
        other = registry.publish_version("other", content="other")
        wait_until(lambda: other.digest in registry.nodes.digests_in_use(), what="a heartbeat after the retirement")
        assert collect() == []
        assert record.served_name in links(options)
        registry.wait_for(record.served_name, NodeState.RETIRED)
        wait_until(lambda: registry.nodes.digests_in_use() == {other.digest}, what="a heartbeat without the digest")
        assert collect() == [record.digest]
        assert registry.store.digests() == [other.digest]


def test_an_engine_that_lost_its_adapters_gets_them_back(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """A restart of the engine forgets every adapter; no announcement comes, and all are loaded again."""
    options = make_options(tmp_path)
    with running_agent(options, settings):
        names = [registry.publish_version(f"bot-{number}", content=str(number)).served_name for number in range(3)]
        for name in names:
            registry.wait_for(name, NodeState.ROUTABLE)
        Path(options.engine_url).rename(tmp_path / "lost")
        wait_until(lambda: links(options).keys() == set(names), what="all adapters back")
        for name in names:
            registry.wait_for(name, NodeState.ROUTABLE)


def test_what_others_loaded_is_left_alone(registry: StoringRegistry, settings: Settings, tmp_path: Path) -> None:
    """An adapter from elsewhere than the node's cache is none of its business, even if it is called alike."""
    options = make_options(tmp_path)
    Path(options.engine_url).mkdir()
    (Path(options.engine_url) / "by-hand.v1").symlink_to(tmp_path)
    with running_agent(options, settings):
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        registry.catalog.move_alias(BOT, BOT.name, None)
        wait_until(lambda: links(options).keys() == {"by-hand.v1", record.served_name}, what="both")


def test_a_node_that_was_down_during_ten_changes_catches_up(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """It ends with the newest version alone, and says that what it left behind is gone."""
    options = make_options(tmp_path)
    first = registry.publish_version(content="0")
    with running_agent(options, settings):
        registry.wait_for(first.served_name, NodeState.ROUTABLE)
    newest = [registry.publish_version(content=str(number)) for number in range(1, 10)][-1]
    Lifecycle(registry.client, settings).retire_version(BOT, first.version)
    with running_agent(options, settings):
        registry.wait_for(newest.served_name, NodeState.ROUTABLE)
        wait_until(lambda: links(options).keys() == {newest.served_name}, what="the old one gone")
        assert weights_of(options, newest.served_name) == "/9"


def test_slots_hold_the_newest_and_the_rest_is_said(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """Two slots: two adapters are loaded, the third is in the cache, and the node says why it skips it."""
    options = make_options(tmp_path, slots=2)
    records = [registry.publish_version(f"bot-{number}", content=str(number)) for number in range(3)]
    with running_agent(options, settings):
        for record in records[1:]:
            registry.wait_for(record.served_name, NodeState.ROUTABLE)
        ack = registry.wait_for(records[0].served_name, NodeState.SKIPPED)
        assert ack.code == "NODE_SLOTS_TAKEN"
        assert links(options).keys() == {record.served_name for record in records[1:]}
        Lifecycle(registry.client, settings).retire_adapter(AdapterName("default", "bot-2"))
        registry.wait_for(records[0].served_name, NodeState.ROUTABLE)


def test_a_lazy_node_loads_nothing_and_has_everything_at_hand(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """It fetches and says that requests will load it; the note of the served name is what the plug-in reads."""
    options = make_options(tmp_path, eager=False)
    with running_agent(options, settings):
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.RESOLVABLE)
        assert links(options) == {}
        assert (options.cache / "served" / f"{record.served_name}.json").is_file()


def test_all_names_are_noted_of_one_artifact_and_each_as_it_is_now(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """Or the plug-in, while Redis is away, would not know the second one, or judge it by the labels that it had."""
    options = make_options(tmp_path)
    noted = NoteFiles(options.cache).recall
    with running_agent(options, settings):
        records = [registry.publish_version(name, content="the same") for name in ("support-bot", "sales-bot")]
        for record in records:
            registry.wait_for(record.served_name, NodeState.ROUTABLE)
            assert noted(record.served_name) == record
        assert records[0].digest == records[1].digest
        labelled, _ = registry.lifecycle.label(Reference(BOT), {"tier": "gold"})
        wait_until(lambda: noted(labelled.served_name) == labelled, what="a new note")


def test_the_note_of_a_version_that_is_retired_later_goes_too(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """The node is done with it before the catalog is."""
    options = make_options(tmp_path)
    with running_agent(options, settings):
        old = registry.publish_version(content="old")
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
        new = registry.publish_version(content="new")
        registry.wait_for(old.served_name, NodeState.RETIRED)
        assert NoteFiles(options.cache).recall(old.served_name) == old
        registry.lifecycle.retire_version(BOT, old.version)
        wait_until(lambda: NoteFiles(options.cache).recall(old.served_name) is None, what="the note is gone")
        assert NoteFiles(options.cache).recall(new.served_name) == new


def test_the_notes_of_an_earlier_life_are_as_the_catalog_is(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """One version was retired while the agent was down, and the labels of another one changed."""
    options = make_options(tmp_path)
    kept = registry.publish_version("other", content="other", labels={"tier": "gold"})
    with running_agent(options, settings):
        old = registry.publish_version(content="old")
        registry.wait_for(old.served_name, NodeState.ROUTABLE)
    registry.lifecycle.retire_adapter(BOT)
    kept, _ = registry.lifecycle.label(Reference(kept.adapter), {"tier": "silver"})
    notes = NoteFiles(options.cache)
    with running_agent(make_options(tmp_path, select="tier=gold"), settings):
        wait_until(lambda: notes.noted() == {kept.served_name}, what="the note of the old one is gone")
        wait_until(lambda: notes.recall(kept.served_name) == kept, what="the new labels")


def test_what_the_plug_in_noted_goes_with_its_version(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """Of what no alias names the agent knows nothing else."""
    options = make_options(tmp_path)
    notes = NoteFiles(options.cache)
    with running_agent(options, settings):
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        unnamed = registry.publish_version("unnamed", content="unnamed", follow="manual")
        notes.remember(unnamed)
        Lifecycle(registry.client, settings).retire_version(unnamed.adapter, unnamed.version)
        wait_until(lambda: notes.noted() == {record.served_name}, what="its note is gone")


def test_the_note_of_what_the_node_does_not_want_any_more_has_its_labels(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """Or the plug-in would go by the old ones, and serve it while Redis is away."""
    options = make_options(tmp_path, select="tier=gold")
    with running_agent(options, settings):
        record = registry.publish_version(labels={"tier": "gold"})
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        labelled, _ = registry.lifecycle.label(Reference(BOT), {"tier": "silver"})
        wait_until(lambda: NoteFiles(options.cache).recall(record.served_name) == labelled, what="a new note")


def test_notes_come_back_with_the_files(registry: StoringRegistry, settings: Settings, tmp_path: Path) -> None:
    """Somebody removed what is in the cache."""
    options = make_options(tmp_path)
    with running_agent(options, settings):
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        for part in ("served", "sha256"):
            shutil.rmtree(options.cache / part)
        wait_until(lambda: NoteFiles(options.cache).recall(record.served_name) == record, what="the note is back")


def test_a_server_that_came_back_empty_takes_nothing_from_the_engine(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """What it does not know counts only when an operator says so, whatever is published meanwhile."""
    options = make_options(tmp_path)
    with running_agent(options, settings):
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        registry.client.flushdb()
        registry.client.publish(registry.keys.channel(BASE), "ring")
        threading.Event().wait(1.0)  # what must not happen would have happened
        registry.admit()
        other = registry.publish_version("other", content="other")
        threading.Event().wait(1.0)  # likewise
        assert links(options).keys() == {record.served_name}
        registry.admit(by_operator=True)
        registry.wait_for(other.served_name, NodeState.ROUTABLE)
        wait_until(lambda: links(options).keys() == {other.served_name}, what="what nobody knows any more is gone")


def test_a_note_that_cannot_be_written_keeps_no_adapter_from_serving(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """It matters only while Redis is away, and is written as soon as it can be."""
    options = make_options(tmp_path)
    options.cache.mkdir()
    (options.cache / "served").write_text("a file where a directory should be")
    with running_agent(options, settings):
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        (options.cache / "served").unlink()
        wait_until(lambda: NoteFiles(options.cache).recall(record.served_name) == record, what="the note")
        assert [path.name for path in (options.cache / "served").iterdir()] == [f"{record.served_name}.json"]


def test_a_selector_narrows_what_a_node_serves(registry: StoringRegistry, settings: Settings, tmp_path: Path) -> None:
    """Only versions with the label are fetched; the other is none of this node's wishes."""
    options = make_options(tmp_path, select="tier=gold")
    gold = registry.publish_version("gold-bot", content="a", labels={"tier": "gold"})
    tin = registry.publish_version("tin-bot", content="b", labels={"tier": "tin"})
    with running_agent(options, settings):
        registry.wait_for(gold.served_name, NodeState.ROUTABLE)
        assert links(options).keys() == {gold.served_name}
        assert registry.states(tin.served_name) == {}


def test_a_version_that_the_node_cannot_serve_is_skipped_with_the_reason(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """Rank 8 on a node for rank 4: nothing is fetched and the engine is asked nothing."""
    options = make_options(tmp_path, max_lora_rank=4)
    with running_agent(options, settings):
        record = registry.publish_version()
        ack = registry.wait_for(record.served_name, NodeState.SKIPPED)
        assert ack.code == "ENGINE_RANK_TOO_LARGE"
        assert "8" in ack.reason
        assert not (options.cache / "sha256").exists()


def test_damaged_files_are_mended_where_they_lie(registry: StoringRegistry, settings: Settings, tmp_path: Path) -> None:
    """A cache that somebody wrote into is put right at the same path, while it runs and at its start."""
    options = make_options(tmp_path)
    with running_agent(options, settings):
        record = registry.publish_version(content="good")
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        directory = links(options)[record.served_name]
        damage(directory, {WEIGHTS_FILE: b"evil!"})
        wait_until(lambda: weights_of(options, record.served_name) == "/good", what="the right bytes")
    damage(directory, {WEIGHTS_FILE: b"/gooD"})  # the same size
    with running_agent(options, settings):
        wait_until(lambda: weights_of(options, record.served_name) == "/good", what="the right bytes again")
        wait_until(lambda: stat.S_IMODE(directory.stat().st_mode) == 0o555, what="nobody writes there")


@pytest.mark.parametrize("obstacle", ["full", "not writable"])
def test_a_cache_that_cannot_be_used_is_said_and_tried_again(
    registry: StoringRegistry, settings: Settings, tmp_path: Path, obstacle: str
) -> None:
    """The acknowledgement carries the code; when the obstacle is gone the version comes to answer by itself."""
    options = make_options(tmp_path, **({"max_cache_gb": 1e-8} if obstacle == "full" else {}))
    if obstacle == "not writable":
        options.cache.write_text("a file where a directory should be")
    record = registry.publish_version(content="a longer content")
    with running_agent(options, settings):
        ack = registry.wait_for(record.served_name, NodeState.FAILED)
        assert ack.code == ("NODE_CACHE_FULL" if obstacle == "full" else "NODE_CACHE_UNUSABLE")
        if obstacle == "not writable":
            options.cache.unlink()
            registry.wait_for(record.served_name, NodeState.ROUTABLE)


def test_the_cache_makes_room_by_what_the_engine_does_not_list(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """Room for three artifacts: another removes one that nobody serves any more, never one that is loaded.

    (The old version is served until the new one answers, so there has to be room for both.)
    """
    options = make_options(tmp_path, max_cache_gb=900e-9)
    with running_agent(options, settings):
        kept = registry.publish_version("kept", content="k" * 30)
        registry.wait_for(kept.served_name, NodeState.ROUTABLE)
        versions = [registry.publish_version(content=f"{number}" * 30) for number in range(4)]
        registry.wait_for(versions[-1].served_name, NodeState.ROUTABLE)
        for each in (kept, versions[-1]):
            assert (links(options)[each.served_name] / WEIGHTS_FILE).is_file()
        wait_until(lambda: len(list((options.cache / "sha256").iterdir())) <= 3, what="room made")


def test_an_artifact_that_the_store_lost_is_said(registry: StoringRegistry, settings: Settings, tmp_path: Path) -> None:
    """The failure names the store; other versions are served all the same."""
    options = make_options(tmp_path, retry_refused_s=0.3)
    lost = registry.publish_version("lost", content="lost")
    shutil.move(registry.store.path(lost.digest), tmp_path / "aside")
    with running_agent(options, settings):
        ack = registry.wait_for(lost.served_name, NodeState.FAILED)
        assert ack.code == "NODE_ARTIFACT_MISSING"
        other = registry.publish_version("other", content="other")
        registry.wait_for(other.served_name, NodeState.ROUTABLE)
        shutil.move(tmp_path / "aside", settings.artifact_directory / "sha256" / lost.digest.removeprefix("sha256:"))
        registry.wait_for(lost.served_name, NodeState.ROUTABLE)


def test_a_server_that_lost_its_last_writes_is_told_everything_again(
    registry: StoringRegistry, settings: Settings, tmp_path: Path
) -> None:
    """A new generation may have forgotten what nodes said; they say it again without being asked."""
    options = make_options(tmp_path)
    with running_agent(options, settings):
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        registry.client.delete(registry.keys.node_acks("node-1"))
        registry.forget_server()
        registry.admit()
        registry.publish_version("other", content="other")
        registry.wait_for(record.served_name, NodeState.ROUTABLE)


@pytest.fixture(autouse=True)
def _no_key_is_left_for_ever(registry: StoringRegistry, settings: Settings) -> Iterator[None]:
    yield
    assert not leaked_keys(registry.client, settings.key_prefix)
