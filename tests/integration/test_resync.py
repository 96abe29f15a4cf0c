from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lora_registry import file_codes, namespace_codes, source_codes
from lora_registry.code import Code
from lora_registry.connection import connect
from lora_registry.errors import QueueFull, RateLimited, RedisUnavailable, Transient
from lora_registry.hook_deliveries import DeliveryVerdict, HookDeliveries
from lora_registry.hook_events import PendingEvents
from lora_registry.inbox import Inbox
from lora_registry.registrations import Outcome
from lora_registry.stages import Stage
from lora_workers import installation
from lora_workers.cli.app import app
from lora_workers.hooks.configuration import HooksFile
from lora_workers.hooks.heads import heads_of_repo
from lora_workers.resync import MOST_REPEATS, Places, Resync, Seen, Sight, run
from lora_workers.watched_places import Found, WatchedPlaces, WatchingHook
from tests.helpers import hooks
from tests.helpers.hooks import RULES, write_hooks
from tests.helpers.hub_server import HubServer
from tests.helpers.registry import Registry
from tests.helpers.s3_server import UNVERSIONED, VERSIONED, S3Server
from tests.helpers.sources import ADAPTER, unique, write_credentials

A, B = "a" * 40, "b" * 40


class Round:
    """A registry with hooks that watch, and what the gateway, the dispatcher and the workers do with them."""

    def __init__(
        self, registry: Registry, watched: Mapping[str, Any], *, places: Places | None = None, quiet_s: float = 0.0
    ) -> None:
        told = {name: each | {"quiet_s": quiet_s} for name, each in watched.items()}
        self.hooks: dict[str, Any] = dict(HooksFile.model_validate({"hooks": told}).hooks)
        self.registry = registry
        self.now_s = 0.0
        self.deliveries = HookDeliveries(registry.client, registry.settings)
        self.pending = PendingEvents(registry.client, registry.settings)
        self.resync = Resync(
            self.hooks,
            registry.client,
            registry.settings,
            places=places or WatchedPlaces(registry.settings),
            clock=lambda: self.now_s,
        )

    def look(self) -> list[tuple[str, str]]:
        """One round; place and sight of each result."""
        return [(each.place, each.sight.value) for each in self.resync.once()]

    def sights(self) -> list[str]:
        """One round; the sights alone."""
        return [sight for _, sight in self.look()]

    def hear(self, repo: str, sha: str, *, delivery_id: str = "delivery-1") -> DeliveryVerdict:
        """What the gateway does with the Hub's webhook."""
        reading = self.hooks["hub"].read(hooks.hub(hooks.hub_push(repo, sha=sha)).request, quiet_s=0.0)
        return self.deliveries.hear("hub", delivery_id, reading.events).verdict

    def accept(self) -> int:
        """Take what is pending to the inbox: number of events."""
        return self.pending.release(self.registry.inbox)

    def end(self, outcome: Outcome | None = None, *codes: Code) -> int:
        """Accept what is pending and let it end, published by default: number of events."""
        count = self.accept()
        for lease in self.registry.advance(Stage.PUBLISH if outcome is None else Stage.ALLOCATE).values():
            if outcome is None:
                self.registry.publish(lease)
            else:
                self.registry.ledger.finish(lease, outcome, tuple(code.finding() for code in codes))
        return count

    def pass_time(self, seconds: float) -> None:
        """Make everything that ended have ended earlier."""
        for key in self.registry.client.scan_iter(self.registry.keys.registration("*")):
            self.registry.client.hincrby(key, "finished_at", -int(seconds * 1_000_000))


@dataclass
class Shelf:
    """Places of a Hub that are whatever a test puts there, as refs of repositories; an error is raised."""

    repos: dict[str, dict[str, str] | Exception]
    asked: list[str] = field(default_factory=list)

    def below(self, hook: WatchingHook, place: str) -> Found:
        """All repositories."""
        return Found(tuple(f"hf://{repo}" for repo in self.repos))

    def look(self, hook: WatchingHook, place: str, *, quiet_s: float) -> Found:
        """One of them."""
        repo = place.removeprefix("hf://")
        self.asked.append(repo)
        told = self.repos[repo]
        if isinstance(told, Exception):
            raise told
        return Found(heads=tuple(heads_of_repo(hook, repo, told, quiet_s=quiet_s)))  # type: ignore[arg-type]


def hub_hook(*watch: str, **fields: Any) -> dict[str, Any]:
    """A hook of the Hub that watches."""
    return {"hub": RULES["hub"] | {"watch": list(watch or ("hf://acme/*",))} | fields}


def shelved(registry: Registry, **repos: Any) -> tuple[Round, Shelf]:
    """A round over a shelf of acme's repositories, each at a commit unless it is an error or refs."""
    shelf = Shelf(
        {f"acme/{name}": {"refs/heads/main": told} if isinstance(told, str) else told for name, told in repos.items()}
    )
    return Round(registry, hub_hook(), places=shelf), shelf


@pytest.fixture
def with_stores(registry: Registry, hub_server: HubServer, s3_server: S3Server, tmp_path: Path) -> Registry:
    """The registry with a Hub and an S3 server, and credentials for both."""
    named = {"reader": hub_server.credential(), "default-s3": s3_server.credential()}
    return registry.with_settings(hub_endpoint=hub_server.endpoint, credentials_file=write_credentials(tmp_path, named))


# What is done with what is seen


def test_what_no_webhook_told_is_registered_once(registry: Registry) -> None:
    """A lost push is asked for by the next round, which the history shows; nothing is queued while nothing changes."""
    rounds, shelf = shelved(registry, bot=A)
    assert rounds.look() == [("hf://acme/bot@main", "queued")]
    assert rounds.sights() == ["current"]  # it is pending
    assert rounds.accept() == 1
    assert rounds.sights() == ["current"]  # it is on its way
    assert rounds.end() == 0
    assert rounds.sights() == ["current"]
    assert (rounds.pending.waiting(), registry.inbox.waiting()) == (0, 0)
    [delivery] = rounds.deliveries.history("hub")
    assert delivery.id.startswith("resync-")
    assert delivery.id.endswith("-hf://acme/bot@main")
    assert len(delivery.registrations) == 1
    shelf.repos["acme/bot"] = {"refs/heads/main": B}
    assert (rounds.sights(), rounds.end(), rounds.sights()) == (["queued"], 1, ["current"])


def test_what_a_webhook_told_is_known_and_the_other_way_round(registry: Registry) -> None:
    """They share origin and content, in either order, and while it is pending."""
    rounds, _ = shelved(registry, bot=A, other=B)
    assert rounds.hear("acme/bot", A) is DeliveryVerdict.QUEUED
    assert rounds.look() == [("hf://acme/bot@main", "current"), ("hf://acme/other@main", "queued")]
    assert rounds.end() == 2
    assert rounds.sights() == ["current", "current"]
    assert rounds.hear("acme/bot", A, delivery_id="2") is DeliveryVerdict.DUPLICATE
    assert rounds.hear("acme/other", B, delivery_id="3") is DeliveryVerdict.DUPLICATE


def test_a_webhook_and_a_resync_within_the_quiet_moment_are_one_registration(registry: Registry) -> None:
    """A push after the round and before the registration: one event, of the latest content."""
    shelf = Shelf({"acme/bot": {"refs/heads/main": A}})
    rounds = Round(registry, hub_hook(), places=shelf, quiet_s=60.0)
    assert rounds.sights() == ["queued"]
    assert rounds.hear("acme/bot", B) is DeliveryVerdict.QUEUED
    assert (rounds.end(), rounds.pending.waiting()) == (1, 0)
    assert rounds.hear("acme/bot", B, delivery_id="2") is DeliveryVerdict.DUPLICATE


def test_two_processes_at_once_ask_once(registry: Registry) -> None:
    """Any number may run: what both see as new is one delivery."""
    shelf = Shelf({"acme/bot": {"refs/heads/main": A}})
    rounds = [Round(registry, hub_hook(), places=shelf) for _ in range(2)]
    head = shelf.look(rounds[0].hooks["hub"], "hf://acme/bot", quiet_s=0.0).heads[0]
    recalled = rounds[0].deliveries.recall(head.event)  # both have looked before either asks
    first, second = (each.resync._settle("hub", head, recalled) for each in rounds)
    assert (first.sight, second.sight) == (Sight.QUEUED, Sight.CURRENT)
    rounds[0].end()
    assert rounds[1].resync._settle("hub", head, recalled).sight is Sight.CURRENT
    assert rounds[0].accept() == 0


def test_a_ref_that_goes_back_is_registered_again(registry: Registry) -> None:
    """A, then B, then A again: the third is new although its content was served before."""
    rounds, shelf = shelved(registry, bot=A)
    for sha in (A, B, A, B, A):
        shelf.repos["acme/bot"] = {"refs/heads/main": sha}
        assert (rounds.sights(), rounds.end()) == (["queued"], 1)


def test_rejected_content_is_left_until_it_changes(registry: Registry) -> None:
    """The same bytes would be rejected again; new ones are asked for, and a person may have the old ones read again."""
    rounds, shelf = shelved(registry, bot=A)
    rounds.look()
    rounds.end(Outcome.REJECTED, file_codes.WEIGHTS_TRUNCATED)
    for _ in range(3):
        [seen] = rounds.resync.once()
        assert (seen.sight, "was rejected: WEIGHTS_TRUNCATED" in seen.reason) == (Sight.LEFT, True)
        rounds.pass_time(100 * 86_400)
    assert rounds.accept() == 0
    shelf.repos["acme/bot"] = {"refs/heads/main": B}
    assert (rounds.sights(), rounds.end()) == (["queued"], 1)


def test_content_that_was_rejected_for_what_may_pass_is_asked_for_after_growing_pauses(registry: Registry) -> None:
    """The quota has room again one day, or the gate opens, and no webhook says so; the pauses double up to a day."""
    rounds, shelf = shelved(registry.with_settings(resync_interval_s=1000.0), bot=A)
    assert rounds.sights() == ["queued"]
    for pause_s in (1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 86_400, 86_400):
        rounds.end(Outcome.REJECTED, namespace_codes.QUOTA_VERSIONS_PER_DAY)
        rounds.pass_time(pause_s - 60)
        [seen] = rounds.resync.once()
        assert (seen.sight, "QUOTA_VERSIONS_PER_DAY. It is asked for again in" in seen.reason) == (Sight.LEFT, True)
        rounds.pass_time(60)
        assert rounds.sights() == ["queued"]
    assert (rounds.end(), rounds.sights()) == (1, ["current"])
    shelf.repos["acme/bot"] = {"refs/heads/main": B}
    assert rounds.sights() == ["queued"]
    rounds.end(Outcome.REJECTED, source_codes.HUB_GATED)
    rounds.pass_time(1000)
    assert rounds.sights() == ["queued"]  # new content begins with the shortest pause
    rounds.end()


def test_no_pause_outlasts_what_is_kept_of_the_rejection(registry: Registry) -> None:
    """Else a rejection that is forgotten before its pause is over would be taken for content that is served."""
    rounds, _ = shelved(registry.with_settings(resync_interval_s=1000.0, retention_s=4000), bot=A)
    assert rounds.sights() == ["queued"]
    for pause_s in (1000, 2000, 2000, 2000):
        rounds.end(Outcome.REJECTED, namespace_codes.QUOTA_VERSIONS_PER_DAY)
        rounds.pass_time(pause_s)
        assert rounds.sights() == ["queued"]
    rounds.end()


def test_an_event_that_was_refused_is_left(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the inbox does not take is not asked for each round."""
    rounds, _ = shelved(registry, bot=A)
    rounds.look()
    [origin] = rounds.pending._due()
    registry.client.hset(registry.keys.origin(origin), "event", '{"name": "Not Legal"}')
    rounds.accept()
    assert rounds.sights() == ["left"]


def test_dead_lettered_content_is_tried_a_few_times(registry: Registry) -> None:
    """The world was wrong, not the adapter: it is asked for again, but not for ever; new content counts anew."""
    rounds, shelf = shelved(registry, bot=A)
    assert rounds.sights() == ["queued"]
    for _ in range(MOST_REPEATS):
        rounds.end(Outcome.DEAD_LETTERED)
        assert rounds.sights() == ["queued"]
    rounds.end(Outcome.DEAD_LETTERED)
    for _ in range(2):
        [seen] = rounds.resync.once()
        assert (seen.sight, seen.reason.partition(":")[0]) == (Sight.LEFT, "WATCH_GIVEN_UP")
    shelf.repos["acme/bot"] = {"refs/heads/main": B}
    assert (rounds.sights(), rounds.end(), rounds.sights()) == (["queued"], 1, ["current"])


def test_what_is_seen_is_remembered_for_as_long_as_it_is_seen(registry: Registry) -> None:
    """What became of a content does not expire between rounds, or each retention would register everything anew."""
    rounds, _ = shelved(registry, bot=A)
    rounds.look()
    rounds.end()
    [key] = list(registry.client.scan_iter(f"{registry.settings.key_prefix}:hooks:origin:*"))
    registry.client.expire(key, 5)
    assert rounds.sights() == ["current"]
    assert registry.client.ttl(key) > registry.settings.retention_s - 60


def test_refs_of_one_adapter_of_which_nobody_knows_the_newest(registry: Registry) -> None:
    """Two new tags are left with the reason in the history; one new tag beside known ones is asked for."""
    rounds, shelf = shelved(registry, bot={"refs/tags/v1": A})
    assert (rounds.sights(), rounds.end()) == (["queued"], 1)
    shelf.repos["acme/bot"] = {"refs/tags/v1": A, "refs/tags/v2": B}
    assert (sorted(rounds.sights()), rounds.end()) == (["current", "queued"], 1)
    shelf.repos["acme/bot"] = {"refs/tags/v3": A, "refs/tags/v4": B}
    for times in (1, 2):
        assert rounds.sights() == ["left"]
        delivery = rounds.deliveries.history("hub")[0]
        assert (delivery.verdict, delivery.times) == (DeliveryVerdict.IGNORED, times)
        assert delivery.reason.startswith("WATCH_UNCLEAR")
    assert rounds.accept() == 0


def test_a_tag_that_failed_is_not_asked_for_once_a_later_one_was(registry: Registry) -> None:
    """Else the adapter would go back to it; the later one, if it is the one that failed, is asked for again."""
    rounds, shelf = shelved(registry.with_settings(resync_interval_s=1000.0), bot={"refs/tags/v1": A})
    rounds.look()
    rounds.end(Outcome.REJECTED, namespace_codes.QUOTA_VERSIONS_PER_DAY)
    rounds.pass_time(2000)
    shelf.repos["acme/bot"] = {"refs/tags/v1": A, "refs/tags/v2": B}
    assert rounds.look() == [("hf://acme/bot@v1", "left"), ("hf://acme/bot@v2", "queued")]
    for step in (lambda: 0, rounds.accept, rounds.end):  # it is pending, queued, decided
        step()
        assert rounds.sights() == ["left", "current"]
    shelf.repos["acme/bot"] = {"refs/tags/v2": B, "refs/tags/v3": "c" * 40}
    assert (rounds.sights(), rounds.end(Outcome.DEAD_LETTERED)) == (["current", "queued"], 1)
    assert (rounds.sights(), rounds.end()) == (["current", "queued"], 1)


def test_a_full_queue_and_an_absent_server_end_the_round(registry: Registry) -> None:
    """They are this registry's trouble and no place's: the caller hears of them, and nothing is noted."""
    rounds, _ = shelved(registry.with_settings(max_queued_events=1), bot=A, other=B)
    with pytest.raises(QueueFull):
        rounds.resync.once()
    rounds.end()
    assert rounds.sights() == ["current", "queued"]
    rounds.end()
    away = Registry(connect("redis://127.0.0.1:1", name="tests"), registry.settings)
    rounds = Round(away, hub_hook(), places=Shelf({"acme/bot": {"refs/heads/main": B}}))
    with pytest.raises(RedisUnavailable):
        rounds.resync.once()


def test_repositories_whose_names_become_one_are_not_one_adapter(registry: Registry) -> None:
    """The first one seen has the name; the other is left, with the reason, in every round."""
    rounds, _ = shelved(registry, **{"a-b": A, "a.b": B})
    assert rounds.sights() == ["queued", "left"]
    assert rounds.end() == 1
    [known, left] = rounds.resync.once()
    assert (known.sight, left.sight, left.reason.partition(":")[0]) == (Sight.CURRENT, Sight.LEFT, "HOOK_NAME_TAKEN")
    assert rounds.accept() == 0


# Stores that do not answer


def test_a_limited_rate_pauses_the_hook_and_it_goes_on_where_it_was(registry: Registry) -> None:
    """Retry-After is respected, nothing else of that hook is asked for, and the next round begins there."""
    rounds, shelf = shelved(registry, a=A, b=RateLimited("slow down", retry_after_s=100.0), c=A)
    assert rounds.sights() == ["queued", "unreachable"]
    assert shelf.asked == ["acme/a", "acme/b"]
    shelf.repos["acme/b"] = {"refs/heads/main": B}
    rounds.now_s = 99.0
    assert rounds.sights() == ["unreachable"]
    assert shelf.asked == ["acme/a", "acme/b"]
    rounds.now_s = 101.0
    assert rounds.sights() == ["queued", "queued", "current"]
    assert shelf.asked[2:] == ["acme/b", "acme/c", "acme/a"]
    rounds.end()


def test_one_broken_place_does_not_keep_the_others(registry: Registry) -> None:
    """An error passes by; three in a row mean that the store is away."""
    broken = Transient("the Hub answers 500")
    rounds, shelf = shelved(registry, a=broken, b=A, c=broken, d=broken, e=broken, f=A)
    assert rounds.sights() == ["unreachable", "queued", "unreachable", "unreachable", "unreachable"]
    assert rounds.deliveries.history("hub")[0].id.endswith("acme/b@main")
    shelf.repos |= {f"acme/{name}": {"refs/heads/main": B} for name in "acde"}
    assert rounds.sights() == ["queued", "queued", "queued", "current", "queued", "queued"]
    rounds.end()


def test_the_process_lives_through_whatever_is_away(registry: Registry) -> None:
    """A round that fails is a line in the log; the next one is made all the same."""
    _, shelf = shelved(registry, bot=A)
    told: list[list[Seen]] = []
    queue_full = registry.with_settings(max_queued_events=1)
    Round(queue_full, hub_hook(), places=Shelf({"acme/first": {"refs/heads/main": A}})).look()
    failing = Round(queue_full, hub_hook(), places=shelf)

    def is_over() -> bool:
        if len(shelf.asked) == 2:
            failing.end()
        return bool(told)

    run(failing.resync, every_s=0.01, report=told.append, is_over=is_over)
    assert len(shelf.asked) > 2
    assert [each.sight for each in told[0]] == [Sight.QUEUED]
    failing.end()


def test_a_round_ends_early_when_the_process_is_to_end(registry: Registry) -> None:
    """A long round does not keep a process from its end; what was seen until then is queued."""
    rounds, shelf = shelved(registry, a=A, b=B, c=A)
    rounds.resync.once(is_over=lambda: len(shelf.asked) == 2)
    assert shelf.asked == ["acme/a", "acme/b"]
    assert rounds.end() == 2


# Real stores


def test_an_owners_repositories_are_found(with_stores: Registry, hub_server: HubServer) -> None:
    """All that the pattern and a rule fit, with the credential that the hook names; later repositories, too."""
    owner = unique("owner")
    shas = {name: hub_server.commit_directory(f"{owner}/{name}-lora", ADAPTER) for name in ("one", "two")}
    hub_server.add_repo(f"{owner}/private-lora", private=True)
    hub_server.commit_directory(f"{owner}/private-lora", ADAPTER)
    hub_server.commit_directory(f"{owner}/dense", ADAPTER)
    rounds = Round(with_stores, hub_hook(f"hf://{owner}/*-lora", credential="reader"))
    assert rounds.look() == [(f"hf://{owner}/{name}-lora@main", "queued") for name in ("one", "private", "two")]
    rounds.end()
    hub_server.commit_directory(f"{owner}/three-lora", ADAPTER)
    assert [place for place, sight in rounds.look() if sight == "queued"] == [f"hf://{owner}/three-lora@main"]
    rounds.end()
    assert rounds.hear(f"{owner}/one-lora", shas["one"]) is DeliveryVerdict.DUPLICATE
    without = Round(with_stores, hub_hook(f"hf://{owner}/*-lora"))
    assert len(without.look()) == 3


def test_a_round_costs_one_request_for_each_repository(with_stores: Registry, hub_server: HubServer) -> None:
    """The refs of a repository come in one answer, and no file is asked for."""
    repo = f"acme/{unique()}"
    hub_server.commit_directory(repo, ADAPTER)
    rounds = Round(with_stores, hub_hook(f"hf://{repo}"))
    before = len(hub_server.requests)
    rounds.look()
    assert [each.path for each in hub_server.requests[before:]] == [f"/api/models/{repo}/refs"]
    rounds.end()


@pytest.mark.parametrize(
    ("kind", "code"), [("missing", "HUB_REPO_HIDDEN"), ("private", "HUB_REPO_HIDDEN"), ("disabled", "HUB_FORBIDDEN")]
)
def test_a_repository_that_cannot_be_had_is_a_reason_in_the_history(
    with_stores: Registry, hub_server: HubServer, kind: str, code: str
) -> None:
    """Gone, private or forbidden: one entry that counts up, no exception; the other repositories are looked at."""
    good, bad = f"acme/{unique('a-good')}", f"acme/{unique('z-bad')}"
    hub_server.commit_directory(good, ADAPTER)
    if kind != "missing":
        hub_server.add_repo(bad, **{kind: True})
    rounds = Round(with_stores, hub_hook(f"hf://{good}", f"hf://{bad}"))
    assert rounds.look() == [(f"hf://{good}@main", "queued"), (f"hf://{bad}", "missing")]
    rounds.look()
    delivery = rounds.deliveries.history("hub")[0]
    assert (delivery.verdict, delivery.times, delivery.reason.partition(":")[0]) == (DeliveryVerdict.IGNORED, 2, code)
    rounds.end()


def test_an_owner_without_repositories_is_a_reason_too(with_stores: Registry) -> None:
    """A mistyped name or a credential that sees nothing would else go unnoticed."""
    rounds = Round(with_stores, hub_hook(f"hf://{unique('nobody')}/*"))
    [seen] = rounds.resync.once()
    assert (seen.sight, seen.reason.partition(":")[0]) == (Sight.LEFT, "WATCH_EMPTY")


def test_a_credential_that_is_not_there_is_a_reason_too(with_stores: Registry) -> None:
    """Credentials go by name, and a name that the file lacks is said."""
    [seen] = Round(with_stores, hub_hook("hf://acme/bot", credential="nobodys")).resync.once()
    assert (seen.sight, seen.reason.partition(":")[0]) == (Sight.MISSING, "CREDENTIAL_UNKNOWN")


def test_the_hubs_rate_limit_is_respected(with_stores: Registry, hub_server: HubServer) -> None:
    """One answer 429 with Retry-After: no further request before that, then everything is looked at."""
    repos = [f"acme/{unique(name)}" for name in "ab"]
    for repo in repos:
        hub_server.commit_directory(repo, ADAPTER)
    rounds = Round(with_stores, hub_hook(*(f"hf://{repo}" for repo in repos)))
    hub_server.limit_rate(1, retry_after_s=30)
    assert rounds.sights() == ["unreachable"]
    before = len(hub_server.requests)
    rounds.now_s = 29.0
    assert rounds.sights() == ["unreachable"]
    assert len(hub_server.requests) == before
    rounds.now_s = 31.0
    assert rounds.sights() == ["queued", "queued"]
    rounds.end()


def test_a_listing_that_is_limited_does_not_sleep(with_stores: Registry, hub_server: HubServer) -> None:
    """The Hub asks to wait for minutes: other hooks, and the signal to end, do not wait with it."""
    owner = unique("owner")
    hub_server.commit_directory(f"{owner}/bot", ADAPTER)
    rounds = Round(with_stores, hub_hook(f"hf://{owner}/*"))
    hub_server.limit_rate(1, retry_after_s=600)
    assert rounds.sights() == ["unreachable"]
    rounds.now_s = 601.0
    assert rounds.sights() == ["queued"]
    rounds.end()


@pytest.mark.parametrize("bucket", [VERSIONED, UNVERSIONED])
def test_a_bucket_is_looked_through(with_stores: Registry, s3_server: S3Server, bucket: str) -> None:
    """Every directory with a marker below the prefix; rewriting it is new content; its notification is known."""
    prefix, name = f"watched-{unique()}", unique("bot")
    for each in (name, f"{name}-2"):
        s3_server.put_directory(ADAPTER, f"{bucket}/{prefix}/deep/{each}")
    place, marker = f"s3://{bucket}/{prefix}", f"{bucket}/{prefix}/deep/{name}/_ADAPTER_READY.json"
    rounds = Round(with_stores, {"s3": RULES["s3"] | {"watch": [place]}})
    assert rounds.look() == []
    s3_server.put(marker, b"one")
    assert rounds.look() == [(f"{place}/deep/{name}", "queued")]
    rounds.end()
    assert rounds.sights() == ["current"]
    etag = s3_server.file_system().info(marker)["ETag"].strip('"')
    told = hooks.minio(f"{prefix}/deep/{name}", bucket_name=bucket, eTag=etag, sequencer="1A")
    reading = rounds.hooks["s3"].read(hooks.bucket(told).request, quiet_s=0.0)
    assert rounds.deliveries.hear("s3", "told", reading.events).verdict is DeliveryVerdict.DUPLICATE
    s3_server.put(marker, b"two")
    assert (rounds.sights(), rounds.end(), rounds.sights()) == (["queued"], 1, ["current"])


def test_a_bucket_that_cannot_be_had_is_a_reason(with_stores: Registry) -> None:
    """A bucket that does not exist is told, and raises nothing."""
    [seen] = Round(with_stores, {"s3": RULES["s3"] | {"watch": ["s3://no-such-bucket-here"]}}).resync.once()
    assert (seen.sight, seen.reason.partition(":")[0]) == (Sight.MISSING, "BUCKET_MISSING")


def test_more_than_is_looked_at_is_said(
    with_stores: Registry, s3_server: S3Server, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listings are bounded; what lies beyond is not looked at, and the history says so."""
    monkeypatch.setattr("lora_workers.watched_places.MOST_OBJECTS", 3)
    monkeypatch.setattr("lora_workers.watched_places.MOST_REPOS", 1)
    prefix, owner = f"large-{unique()}", unique("owner")
    for name in ("a", "b"):
        s3_server.put_directory(ADAPTER, f"{VERSIONED}/{prefix}/{name}")
        s3_server.put(f"{VERSIONED}/{prefix}/{name}/_ADAPTER_READY.json", b"{}")
        hub_server.commit_directory(f"{owner}/{name}", ADAPTER)
    watched = hub_hook(f"hf://{owner}/*") | {"s3": RULES["s3"] | {"watch": [f"s3://{VERSIONED}/{prefix}"]}}
    rounds = Round(with_stores, watched)
    seen = rounds.resync.once()
    assert [each.sight for each in seen if each.reason.startswith("WATCH_TOO_LARGE")] == [Sight.LEFT] * 2
    queued = [each.place for each in seen if each.sight is Sight.QUEUED]
    assert queued == [f"hf://{owner}/a@main", f"s3://{VERSIONED}/{prefix}/a"]
    rounds.end()


# The command


def invoke(registry: Registry, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    """Run the command; exit code and standard output."""
    for name, value in installation.environment_of(registry.settings).items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["resync", *arguments])
    return result.exit_code, result.stdout


def test_the_command_says_what_it_saw(
    with_stores: Registry, hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 and a table, or JSON, when everything was looked at; 4 when a place is out of reach; 2 without a watch."""
    repo = f"acme/{unique()}"
    hub_server.commit_directory(repo, ADAPTER)
    hooks_file = write_hooks(tmp_path / "hooks.json", hub_hook(f"hf://{repo}"))
    registry = with_stores.with_settings(hooks_file=hooks_file)
    code, said = invoke(registry, monkeypatch, "--once", "--json")
    told = json.loads(said)
    assert (code, told["counts"]["queued"], told["seen"][0]["place"]) == (0, 1, f"hf://{repo}@main")
    PendingEvents(registry.client, registry.settings).release(Inbox(registry.client, registry.settings))
    code, said = invoke(registry, monkeypatch, "--once")
    assert (code, "1 current" in said) == (0, True)
    away = registry.with_settings(hub_endpoint="http://127.0.0.1:1")
    assert invoke(away, monkeypatch, "--once")[0] == 4
    code, said = invoke(registry.with_settings(hooks_file=write_hooks(tmp_path / "none.json")), monkeypatch, "--json")
    assert (code, json.loads(said)["error"]["code"]) == (2, "CONFIGURATION")
