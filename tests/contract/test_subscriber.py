"""One suite for both faces of the subscriber, blocking and asyncio, on a real server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest

from lora_registry import subscriber as module
from lora_registry.announcements import CatalogView, Direction, Kind, Update
from lora_registry.errors import RedisUnavailable
from lora_registry.names import AdapterName, Reference
from lora_registry.subscriber import AsyncSubscriber, Command, Subscriber, SubscriberCore
from tests.helpers.registry import BASE, Registry

BOT = AdapterName("default", "support-bot")


class Face(Protocol):
    """What a face does, without saying whether it waits by blocking."""

    @property
    def view(self) -> CatalogView:
        """The catalog as of its cursor."""

    def poll(self) -> list[Update]:
        """Everything new."""

    def follow(self, count: int) -> list[Update]:
        """The next `count` updates, waited for."""


class Blocking:
    """The blocking face."""

    def __init__(self, registry: Registry, view: CatalogView | None) -> None:
        settings = registry.settings
        self._face = Subscriber(BASE, url=settings.redis_url, key_prefix=settings.key_prefix, view=view)

    @property
    def view(self) -> CatalogView:
        """See `Face`."""
        return self._face.view

    def poll(self) -> list[Update]:
        """See `Face`."""
        return self._face.poll()

    def follow(self, count: int) -> list[Update]:
        """See `Face`."""
        following = self._face.follow()
        found = [next(following) for _ in range(count)]
        following.close()
        return found

    def close(self) -> None:
        """Nothing to do: redis-py closes with the object."""


class Asyncio:
    """The asyncio face, in an event loop of its own."""

    def __init__(self, registry: Registry, view: CatalogView | None) -> None:
        settings = registry.settings
        self._runner = asyncio.Runner()
        self._face = AsyncSubscriber(BASE, url=settings.redis_url, key_prefix=settings.key_prefix, view=view)

    @property
    def view(self) -> CatalogView:
        """See `Face`."""
        return self._face.view

    def poll(self) -> list[Update]:
        """See `Face`."""
        return self._runner.run(self._face.poll())

    def follow(self, count: int) -> list[Update]:
        """See `Face`."""
        return self._runner.run(self._follow(count))

    async def _follow(self, count: int) -> list[Update]:
        following = self._face.follow()
        found = [await anext(following) for _ in range(count)]
        await following.aclose()
        return found

    def close(self) -> None:
        """Close the connection and the loop."""
        self._runner.run(self._face.close())
        self._runner.close()


Open = Callable[..., Face]


@pytest.fixture(params=[Blocking, Asyncio])
def open_face(request: pytest.FixtureRequest, registry: Registry) -> Iterator[Open]:
    """Opens subscribers of one face, from nothing or from a view."""
    opened: list[Blocking | Asyncio] = []

    def open_one(view: CatalogView | None = None) -> Face:
        opened.append(request.param(registry, view))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def kinds(updates: list[Update]) -> list[str]:
    """What changed, in order."""
    return [f"{change.kind} {change.subject}" for update in updates for change in update.changes]


def copy(view: CatalogView) -> CatalogView:
    """A view as it comes back after a restart of the node."""
    return CatalogView.from_json(view.to_json())


def test_first_look_is_the_whole_catalog(registry: Registry, open_face: Open) -> None:
    """From nothing, a subscriber gets every version before the aliases that point at them, as one reset."""
    registry.register("a", content="one")
    registry.register("b", content="two")
    (update,) = open_face().poll()
    assert update.reset
    assert sorted(change.subject for change in update.changes[:2]) == ["a.v1", "b.v1"]
    assert [change.kind for change in update.changes] == [Kind.VERSION_PUBLISHED] * 2 + [Kind.ALIAS_MOVED] * 2
    assert update.changes[2].record is not None


def test_changes_come_once_and_in_order(registry: Registry, open_face: Open) -> None:
    """After the first look each announcement is handed over exactly once, in the order of its sequence."""
    face = open_face()
    face.poll()
    for content in ("one", "two"):
        registry.register(content=content)
    updates = face.poll()
    assert kinds(updates) == [
        "version.published support-bot.v1",
        "alias.moved default.support-bot@support-bot",
        "version.published support-bot.v2",
        "alias.moved default.support-bot@support-bot",
    ]
    assert [update.cursor.sequence for update in updates] == [1, 2, 3, 4]
    assert not any(update.reset for update in updates)
    assert face.poll() == []


def test_announcement_between_two_looks_is_no_reset(registry: Registry) -> None:
    """What is announced after the log was read and before the head is read is handed over one by one."""
    core = SubscriberCore(BASE, key_prefix=registry.settings.key_prefix)
    registry.register(content="one")
    run(registry, core)
    heads = 0

    def publish_before_the_first_head(command: Command) -> None:
        nonlocal heads
        heads += command[0] == "HGET"
        if command[0] == "HGET" and heads == 1:
            registry.register(content="two")

    updates = run(registry, core, before=publish_before_the_first_head)
    assert [update.reset for update in updates] == [False, False]
    assert kinds(updates) == ["version.published support-bot.v2", "alias.moved default.support-bot@support-bot"]


def run(
    registry: Registry, core: SubscriberCore, *, before: Callable[[Command], None] = lambda _: None
) -> list[Update]:
    """What `poll` does, with something done before each command."""
    looking = core.catch_up()
    try:
        command = next(looking)
        while True:
            before(command)
            command = looking.send(registry.client.execute_command(*command))
    except StopIteration as done:
        return done.value


def test_replay_goes_on_from_a_kept_view(registry: Registry, open_face: Open) -> None:
    """A node that was away gets exactly what it missed, and ends with the same view as one that stayed."""
    stayed = open_face()
    registry.register(content="one")
    stayed.poll()
    kept = copy(stayed.view)
    registry.register(content="two", labels={"tier": "gold"})
    returned = open_face(kept)
    assert kinds(returned.poll()) == kinds(stayed.poll())
    assert returned.view == stayed.view == registry.view()


def test_cursor_older_than_the_log_gets_the_net_difference(registry: Registry, open_face: Open) -> None:
    """When the log was trimmed past the cursor: one reset, with what differs in the end and nothing between."""
    face = open_face()
    registry.register(content="one")
    face.poll()
    kept = copy(face.view)
    registry.register(content="two")
    short = registry.with_settings(log_length=10)
    for number in range(250):  # the server trims whole blocks of about 100 entries
        short.catalog.move_alias(BOT, "stable", 1 + number % 2)
    (update,) = open_face(kept).poll()
    assert update.reset
    assert update.gone == ()
    assert sorted(kinds([update])) == [
        "alias.moved default.support-bot@stable",
        "alias.moved default.support-bot@support-bot",
        "version.published support-bot.v2",
    ]
    face.poll()
    assert face.view == registry.view()


def change_everything(registry: Registry) -> None:
    """Every kind of change to a catalog in which support-bot has version 1 under its own alias and `stable`."""
    lifecycle, first = registry.lifecycle, Reference(BOT, version=1)
    registry.register(content="two")
    lifecycle.label(first, {"tier": "gold"})
    registry.catalog.move_alias(BOT, "stable", 2)
    lifecycle.direct(registry.catalog.version(first), ["node-1", "node-2"], token="t", for_s=60)
    lifecycle.label(Reference(BOT, version=2), {"env": "prod"})
    registry.register(content="three")
    lifecycle.remove_alias(BOT, "stable")
    lifecycle.retire_version(BOT, 2)
    lifecycle.retire_adapter(AdapterName("default", "old"))
    lifecycle.direct(registry.catalog.version(Reference(BOT, version=3)), ["node-1"], token="t", for_s=60)


CHANGES = [
    "version.published support-bot.v2",
    "alias.moved default.support-bot@support-bot",
    "version.labels-changed support-bot.v1",
    "alias.moved default.support-bot@stable",
    "version.directed support-bot.v1",
    "version.labels-changed support-bot.v2",
    "version.published support-bot.v3",
    "alias.moved default.support-bot@support-bot",
    "alias.removed default.support-bot@stable",
    "version.retired support-bot.v2",
    "alias.removed default.old@old",
    "version.retired old.v1",
    "version.directed support-bot.v3",
]


def begin(registry: Registry, face: Face) -> CatalogView:
    """The catalog that `change_everything` starts from, as a node keeps it that goes away then."""
    registry.register(content="one")
    registry.register("old", content="old")
    registry.catalog.move_alias(BOT, "stable", 1)
    face.poll()
    return copy(face.view)


def test_every_kind_of_change_is_heard_in_order(registry: Registry, open_face: Open) -> None:
    """Who stayed and who comes back to a whole log hear the same, and both hold what the server holds."""
    stayed = open_face()
    kept = begin(registry, stayed)
    change_everything(registry)
    returned = open_face(kept)
    heard = returned.poll()
    assert kinds(heard) == kinds(stayed.poll()) == CHANGES
    assert returned.view == stayed.view == registry.view()
    retired = next(change for update in heard for change in update.changes if change.subject == "support-bot.v2")
    assert retired.record is not None
    assert set(stayed.view.versions) == {"default.support-bot.v1", "default.support-bot.v3"}


def test_who_was_away_for_too_long_ends_with_the_same_catalog(registry: Registry, open_face: Open) -> None:
    """From a reset: what was retired or removed is gone, labels and directions are as they are now, and no more."""
    kept = begin(registry, open_face())
    change_everything(registry)
    registry.client.delete(registry.keys.log(BASE))
    returned = open_face(kept)
    (update,) = returned.poll()
    assert update.reset
    assert set(update.gone) == {"old.v1", "default.old@old", "default.support-bot@stable"}
    assert sorted(kinds([update])) == [
        "alias.moved default.support-bot@support-bot",
        "version.directed support-bot.v1",
        "version.directed support-bot.v3",
        "version.labels-changed support-bot.v1",
        "version.published support-bot.v3",
    ]
    assert returned.view == registry.view()
    assert copy(returned.view) == returned.view


def test_direction_that_ended_while_away_is_told_by_a_reset(registry: Registry, open_face: Open) -> None:
    """The change says that no node is to hold the version any more."""
    registry.register(content="one")
    record = registry.version()
    registry.lifecycle.direct(record, ["node-1"], token="t", for_s=60)
    face = open_face()
    face.poll()
    kept = copy(face.view)
    registry.lifecycle.direct(record, [], token="t", for_s=0)
    registry.client.delete(registry.keys.log(BASE))
    (update,) = open_face(kept).poll()
    (change,) = update.changes
    assert (change.kind, change.subject, change.direction) == (Kind.VERSION_DIRECTED, "support-bot.v1", Direction())


def test_missing_log_entry_is_never_skipped(registry: Registry, open_face: Open) -> None:
    """A hole in the log leads to the net difference, not to a view without what was in the hole."""
    face = open_face()
    registry.register(content="one")
    face.poll()
    registry.register(content="two", labels={"tier": "gold"})
    registry.register(content="three")
    registry.client.xdel(registry.keys.log(BASE), "3-0")
    (update,) = face.poll()
    assert update.reset
    assert face.view == registry.view()
    assert "default.support-bot.v2" in face.view.versions


def test_new_generation_means_resync(registry: Registry, open_face: Open) -> None:
    """After an admission nothing is compared by sequence: the subscriber takes the snapshot's difference."""
    face = open_face()
    registry.register(content="one")
    face.poll()
    registry.forget_server()
    registry.admit()
    registry.register(content="two")
    (update,) = face.poll()
    assert update.reset
    assert kinds([update])[0] == f"version.published support-bot.v{registry.version().version}"
    assert face.view == registry.view()


def test_subscriber_ahead_of_a_restored_server_loses_what_the_server_lost(registry: Registry, open_face: Open) -> None:
    """Versions that a restored server does not know are named as gone; the view equals the server's."""
    face = open_face()
    registry.register("a", content="one")
    saved = snapshot_catalog(registry)
    registry.register("b", content="two")
    face.poll()
    restore_catalog(registry, saved)
    registry.forget_server()
    registry.admit()
    (update,) = face.poll()
    assert update.reset
    assert set(update.gone) == {"b.v1", "default.b@b"}
    assert face.view == registry.view()


def test_an_emptied_server_counts_when_an_operator_says_so(registry: Registry, open_face: Open) -> None:
    """A dispatcher that is started beside it admits it, and things are published: who knows more goes on with that."""
    face = open_face()
    registry.register("a", content="one")
    face.poll()
    known = face.view
    registry.client.flushdb()
    for step in (lambda: None, registry.admit, lambda: registry.register("b", content="two"), registry.forget_server):
        step()
        with pytest.raises(RedisUnavailable):
            face.poll()
        assert face.view == known
    registry.admit()  # it was restarted since
    assert open_face().poll()  # who knows nothing takes what is there
    with pytest.raises(RedisUnavailable):
        face.poll()
    registry.admit(by_operator=True)
    (update,) = face.poll()
    assert (update.reset, set(update.gone)) == (True, {"a.v1", "default.a@a"})
    assert face.view == registry.view()


def snapshot_catalog(registry: Registry) -> list[str]:
    """Copy what a backup would hold: the catalog and the log."""
    prefix = registry.settings.key_prefix
    parts = [*registry.client.scan_iter(f"{prefix}:catalog:*"), *registry.client.scan_iter(f"{prefix}:log:*")]
    for key in parts:
        registry.client.copy(key, key.replace(prefix, f"backup-of-{prefix}"))
    return parts


def restore_catalog(registry: Registry, saved: list[str]) -> None:
    """Put the backup in place of what is there."""
    prefix = registry.settings.key_prefix
    now = [*registry.client.scan_iter(f"{prefix}:catalog:*"), *registry.client.scan_iter(f"{prefix}:log:*")]
    registry.client.delete(*now)
    for key in saved:
        registry.client.rename(key.replace(prefix, f"backup-of-{prefix}"), key)


def test_kinds_of_the_future_are_skipped(registry: Registry, open_face: Open) -> None:
    """An announcement of an unknown kind moves the cursor and is handed over as no change."""
    face = open_face()
    registry.register(content="one")
    face.poll()
    unknown = registry.log()[-1].replace("alias.moved", "version.praised").replace('"sequence":"2"', '"sequence":"3"')
    registry.client.hincrby(registry.keys.sequences, BASE, 1)
    registry.client.xadd(registry.keys.log(BASE), {"generation": "-", "message": unknown}, id="3-0")
    (update,) = face.poll()
    assert update.changes == ()
    assert update.cursor.sequence == 3


def test_snapshot_while_others_publish_is_the_catalog(registry: Registry, open_face: Open) -> None:
    """Versions that appear between the pages of a snapshot are in the view once it is handed over."""
    for number in range(30):
        registry.register(f"adapter-{number}", content=str(number))
    stop = threading.Event()

    def publish_more() -> None:
        number = 0
        while not stop.is_set():
            registry.register("busy", content=str(number))
            registry.lifecycle.direct(registry.version("busy"), ["node-1"], token="t", for_s=60)
            registry.catalog.move_alias(AdapterName("default", "busy"), f"alias-{number % 3}", number + 1)
            if number % 4 == 3:
                registry.lifecycle.remove_alias(AdapterName("default", "busy"), f"alias-{number % 3}")
            if number < 30:
                registry.lifecycle.retire_adapter(AdapterName("default", f"adapter-{number}"))
            number += 1

    thread = threading.Thread(target=publish_more)
    thread.start()
    faces = [open_face() for _ in range(5)]
    for face in faces:
        face.poll()
    stop.set()
    thread.join()
    for face in faces:
        face.poll()
        assert face.view == registry.view()


@pytest.mark.parametrize("ring", ["publish", "forged"])
def test_bell_wakes_a_waiting_subscriber(
    registry: Registry, open_face: Open, ring: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A waiting subscriber hears of an announcement by its ring; a forged one before it changes nothing."""
    monkeypatch.setattr(module, "_RECHECK_S", 3600.0)
    face = open_face()
    registry.register(content="one")
    face.poll()
    before = copy(face.view)

    def announce() -> None:
        channel = registry.keys.channel(BASE)
        while not registry.client.pubsub_numsub(channel)[0][1]:
            pass
        if ring == "forged":
            forged = registry.log()[0].replace("support-bot", "evil").replace('"sequence":"1"', '"sequence":"3"')
            registry.client.publish(channel, forged)
            registry.client.publish(channel, "\x00 no json")
        registry.register(content="two")

    thread = threading.Thread(target=announce)
    thread.start()
    updates = face.follow(2)
    thread.join()
    assert kinds(updates) == ["version.published support-bot.v2", "alias.moved default.support-bot@support-bot"]
    assert set(face.view.versions) - set(before.versions) == {"default.support-bot.v2"}


def test_lost_ring_costs_a_recheck_and_no_more(
    registry: Registry, open_face: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any ring the subscriber looks at the log from time to time, and finds what it missed."""
    monkeypatch.setattr(module, "_RECHECK_S", 0.05)
    face = open_face()
    registry.register(content="one")
    face.poll()

    def announce_silently() -> None:
        # What the publish script does, less the PUBLISH.
        channel = registry.keys.channel(BASE)
        while not registry.client.pubsub_numsub(channel)[0][1]:
            pass
        quiet = registry.log()[0].replace("support-bot.v1", "support-bot.v7").replace('"version":1', '"version":7')
        quiet = quiet.replace('"sequence":"1"', '"sequence":"3"')
        registry.client.xadd(registry.keys.log(BASE), {"generation": "-", "message": quiet}, id="3-0")
        registry.client.hincrby(registry.keys.sequences, BASE, 1)

    thread = threading.Thread(target=announce_silently)
    thread.start()
    updates = face.follow(1)
    thread.join()
    assert kinds(updates) == ["version.published support-bot.v7"]
