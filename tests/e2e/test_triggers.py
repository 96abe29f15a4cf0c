"""Real deliveries in, published versions out: dispatcher, worker and gateway as processes, a Hub and an S3 server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_registry.hook_deliveries import HookDeliveries
from lora_registry.names import AdapterName
from lora_registry.ready_marker import mark_ready
from lora_registry.registrations import Outcome, Registration
from lora_registry.settings import Settings
from lora_registry.stages import Stage
from lora_workers import processes
from tests.helpers import hooks
from tests.helpers.adapters_on_disk import WEIGHTS
from tests.helpers.hook_gateway import HookGateway
from tests.helpers.hooks import Sent, write_hooks
from tests.helpers.hub_server import HubServer
from tests.helpers.registry import BASE
from tests.helpers.s3_server import UNVERSIONED, VERSIONED, S3Server
from tests.helpers.servers import start_server
from tests.helpers.sources import unique, write_credentials
from tests.helpers.stack import Stack, environment_of, make_settings
from tests.helpers.waiting import wait_until

MARKER = "_ADAPTER_READY.json"
QUIET_S = 0.3


class World:
    """Everything there is: senders, their stores, and the pipeline."""

    def __init__(self, stack: Stack, gateway: HookGateway, hub: HubServer, s3: S3Server) -> None:
        self.stack = stack
        self.gateway = gateway
        self.hub = hub
        self.s3 = s3
        self.deliveries = HookDeliveries(stack.registry.client, stack.settings)
        self._variants = 0

    def files(self) -> Path:
        """A directory with an adapter of new bytes."""
        return self.stack.adapter()

    def push(self, repo: str) -> str:
        """A commit of a new adapter; its id."""
        return self.hub.commit_directory(repo, self.files())

    def ended(self, hook: str, delivery_id: str, *, count: int = 1) -> list[Registration]:
        """The registrations of a delivery, once they have ended."""
        ids = self.stack.wait_until(
            lambda: len(found := self.deliveries.delivery(hook, delivery_id).registrations) >= count and found,
            what=f"the registrations of {delivery_id}",
        )
        assert len(ids) == count
        return list(self.stack.wait_for(ids).values())

    def deliver(self, sent: Sent) -> Registration:
        """Deliver what leads to one registration; that, once it has ended."""
        answer = self.gateway.post(sent)
        assert answer.status_code == 202, answer.text
        [registration] = self.ended(sent.hook, answer.json()["delivery_id"])
        return registration

    def resync(self, *watch: str) -> dict[str, str]:
        """One round of a process that watches these places with the same rules; place → what was made of it."""
        hook = "s3" if watch[0].startswith("s3:") else "hub"
        rules = {hook: hooks.RULES[hook] | {"watch": list(watch)}}
        hooks_file = write_hooks(self.stack.directory / "watched.json", rules)
        settings = self.stack.settings.model_copy(update={"hooks_file": hooks_file})
        command = [sys.executable, "-m", "lora_workers", "resync", "--once", "--json"]
        environment = os.environ | environment_of(settings)
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        return {each["place"]: each["sight"] for each in json.loads(said)["seen"]}

    def resynced(self, hook: str, place: str) -> Registration:
        """The registration that a round led to, once it has ended."""
        [delivery] = [each for each in self.deliveries.history(hook) if each.id.endswith(f"-{place}")]
        [registration] = self.ended(hook, delivery.id)
        return registration

    def versions(self, name: str) -> list[int]:
        """Published versions of an adapter."""
        return [each.version for each in self.stack.registry.catalog.versions(AdapterName("default", name))]


def settings_of(url: str, directory: Path, **changes: Any) -> Settings:
    """Settings of a registry with a hook of each kind."""
    fields = {"hooks_file": write_hooks(directory / "hooks.json"), "hook_quiet_s": QUIET_S}
    return make_settings(url, directory, **(fields | changes))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, hub_server: HubServer, s3_server: S3Server) -> Iterator[World]:
    """The processes, shared by the tests of this module; each keeps to adapters of its own."""
    directory = tmp_path_factory.mktemp("triggers")
    server = start_server(directory / "valkey")
    credentials = write_credentials(directory, {"default-s3": s3_server.credential()})
    settings = settings_of(
        server.url,
        directory,
        hub_endpoint=hub_server.endpoint,
        credentials_file=credentials,
        incomplete_deadlines_s={"*": 60.0},
        stall_timeout_s=60.0,
        lease_s=10.0,
    )
    stack = Stack(settings, directory)
    gateway = HookGateway(settings, directory / "gateway.log")
    try:
        stack.dispatchers()
        stack.worker()
        stack.wait_for_slots()
        yield World(stack, gateway, hub_server, s3_server)
    finally:
        stack.close()
        gateway.close()
        server.stop()


def test_a_push_to_the_hub_is_published(world: World) -> None:
    """The Hub's payload about a new commit leads to a version that its rule names, and the alias points at it."""
    name = unique("pushed")
    sha = world.push(f"acme/{name}")
    registration = world.deliver(hooks.hub(hooks.hub_push(f"acme/{name}", sha=sha), delivery_id=name))
    assert (registration.outcome, registration.adapter.name) == (Outcome.PUBLISHED, name)
    record = world.stack.registry.version(name)
    assert (record.source, record.requested_source) == (f"hf://acme/{name}@{sha}", f"hf://acme/{name}@main")
    assert record.registration_id == registration.id


def test_a_commit_of_the_readme_alone_makes_no_version(world: World) -> None:
    """The adapter's bytes are the same, so the registration ends as unchanged."""
    name = unique("readme")
    repo = f"acme/{name}"
    world.deliver(hooks.hub(hooks.hub_push(repo, sha=world.push(repo)), delivery_id=f"{name}-1"))
    sha = world.hub.commit(repo, {"README.md": b"# Better words"})
    registration = world.deliver(hooks.hub(hooks.hub_push(repo, sha=sha), delivery_id=f"{name}-2"))
    assert registration.outcome is Outcome.UNCHANGED
    assert world.versions(name) == [1]


def test_webhooks_out_of_order_end_at_the_last_push(world: World) -> None:
    """A is pushed, then B; B's webhook comes and is published, then A's comes late: the alias stays at B."""
    name = unique("order")
    repo = f"acme/{name}"
    a, b = world.push(repo), world.push(repo)
    late, soon = (
        hooks.hub(hooks.hub_push(repo, sha=sha), delivery_id=f"{name}-{which}") for sha, which in ((a, "a"), (b, "b"))
    )
    first = world.deliver(soon)
    second = world.deliver(late)
    assert (first.outcome, second.outcome) == (Outcome.PUBLISHED, Outcome.UNCHANGED)
    assert world.stack.registry.version(name).digest == first.digest
    assert world.versions(name) == [first.version]
    again = world.push(repo)
    third = world.deliver(hooks.hub(hooks.hub_push(repo, sha=again), delivery_id=f"{name}-c"))
    assert world.stack.registry.version(name).digest == third.digest != first.digest


def test_a_burst_of_pushes_is_one_version_of_the_last(world: World) -> None:
    """Five pushes and their webhooks, shuffled, within the quiet period: one registration, of the last push."""
    name = unique("burst")
    repo = f"acme/{name}"
    shas = [world.push(repo) for _ in range(5)]
    for place in (2, 4, 0, 3, 1):
        sent = hooks.hub(hooks.hub_push(repo, sha=shas[place]), delivery_id=f"{name}-{place}")
        assert world.gateway.verdict(sent) == "queued"
    ended = {world.ended("hub", f"{name}-{place}")[0].id for place in range(5)}
    assert len(ended) == 1
    last = world.stack.client.submit(name=f"{name}-last", base_model=BASE, source=f"hf://{repo}@{shas[-1]}")
    [expected] = world.stack.wait_for([last]).values()
    assert world.stack.registry.version(name).digest == expected.digest
    assert world.versions(name) == [1]


def test_one_commit_announced_by_everybody_is_one_version(world: World) -> None:
    """Two webhooks, a resync and the training job say the same commit: one version, which the others find unchanged."""
    name = unique("everybody")
    repo = f"acme/{name}"
    sha = world.push(repo)
    job = world.stack.client.submit(name=name, base_model=BASE, source=f"hf://{repo}@{sha}")
    sent = [hooks.hub(hooks.hub_push(repo, sha=sha), delivery_id=f"{name}-{which}") for which in "12"]
    first = world.deliver(sent[0])
    assert world.gateway.verdict(sent[1]) == "duplicate"
    assert world.resync(f"hf://{repo}") == {f"hf://{repo}@main": "current"}
    [second] = world.stack.wait_for([job]).values()
    assert {first.outcome, second.outcome} == {Outcome.PUBLISHED, Outcome.UNCHANGED}
    assert len(world.versions(name)) == 1
    assert first.lora_int_id == second.lora_int_id


def test_a_commit_that_a_resync_sees_first_is_one_version(world: World) -> None:
    """The webhooks come after the resync, the training job between them: still one version, and one event of both."""
    name = unique("resync-first")
    repo = f"acme/{name}"
    sha = world.push(repo)
    place = f"hf://{repo}@main"
    assert world.resync(f"hf://{repo}") == {place: "queued"}
    job = world.stack.client.submit(name=name, base_model=BASE, source=f"hf://{repo}@{sha}")
    seen = world.resynced("hub", place)
    [of_job] = world.stack.wait_for([job]).values()
    assert {seen.outcome, of_job.outcome} == {Outcome.PUBLISHED, Outcome.UNCHANGED}
    for which in "12":
        sent = hooks.hub(hooks.hub_push(repo, sha=sha), delivery_id=f"{name}-{which}")
        assert world.gateway.verdict(sent) == "duplicate"
    assert len(world.versions(name)) == 1
    assert seen.lora_int_id == of_job.lora_int_id


def test_a_lost_webhook_is_repaired_by_the_next_resync(world: World) -> None:
    """A push that nobody announced is published by a resync; the next one asks for nothing until another push."""
    name = unique("lost")
    repo = f"acme/{name}"
    place = f"hf://{repo}@main"
    world.deliver(hooks.hub(hooks.hub_push(repo, sha=world.push(repo)), delivery_id=name))
    assert world.resync(f"hf://{repo}") == {place: "current"}
    world.push(repo)
    assert world.resync(f"hf://{repo}") == {place: "queued"}
    registration = world.resynced("hub", place)
    assert registration.outcome is Outcome.PUBLISHED
    assert world.stack.registry.version(name).registration_id == registration.id
    assert world.resync(f"hf://{repo}") == {place: "current"}
    assert len(world.deliveries.delivery("hub", name).registrations) == 1
    assert len(world.versions(name)) == 2


def test_a_directory_of_a_watched_bucket_is_published(world: World) -> None:
    """No notification came: a resync finds the marker; the notification that comes after all is a duplicate."""
    name = unique("bucket-lost")
    prefix = f"watched/{name}"
    files = world.files()
    mark_ready(files)
    world.s3.put_directory(files, f"{VERSIONED}/{prefix}")
    place = f"s3://{VERSIONED}/{prefix}"
    assert world.resync(place) == {place: "queued"}
    assert world.resynced("s3", place).outcome is Outcome.PUBLISHED
    etag = world.s3.file_system().info(f"{VERSIONED}/{prefix}/{MARKER}")["ETag"].strip('"')
    told = hooks.minio(prefix, bucket_name=VERSIONED, eTag=etag)
    assert world.gateway.verdict(hooks.bucket(told)) == "duplicate"
    assert world.resync(place) == {place: "current"}
    assert world.versions(name) == [1]


def test_a_resync_process_goes_on_until_it_is_told_to_stop(world: World, tmp_path: Path) -> None:
    """It registers what comes, round after round, waits for a Hub that is away, and ends in order with SIGTERM."""
    name = unique("watched")
    repo = f"acme/{name}"
    hub = HubServer()
    hooks_file = write_hooks(tmp_path / "hooks.json", {"hub": hooks.RULES["hub"] | {"watch": [f"hf://{repo}"]}})
    changes = {"hooks_file": hooks_file, "hub_endpoint": hub.endpoint, "resync_interval_s": 0.2}
    environment = environment_of(world.stack.settings.model_copy(update=changes))
    with (tmp_path / "log").open("ab") as log:
        process = processes.start(
            [sys.executable, "-m", "lora_workers", "resync", "--json"], environment=environment, log=log
        )
    try:

        def rounds() -> list[dict[str, int]]:
            lines = (tmp_path / "log").read_text().splitlines()
            return [json.loads(line)["counts"] for line in lines if line.startswith("{")]

        hub.start()
        wait_until(lambda: any(each["missing"] for each in rounds()), what="a round without the repository")
        hub.limit_rate(1, retry_after_s=1)
        wait_until(lambda: any(each["unreachable"] for each in rounds()), what="a round that was limited")
        world.hub.commit_directory(repo, files := world.files())
        hub.commit_directory(repo, files)
        place = f"hf://{repo}@main"
        wait_until(
            lambda: any(each.id.endswith(f"-{place}") for each in world.deliveries.history("hub")), what="the delivery"
        )
        assert world.resynced("hub", place).outcome is Outcome.PUBLISHED
        process.terminate()
        assert process.wait(10) == 0
        assert sum(each["queued"] for each in rounds()) == 1
    finally:
        processes.kill_group(process)
        process.wait()
        hub.stop()


def test_a_delivery_that_failed_is_run_again_when_it_is_replayed(world: World) -> None:
    """The Hub's Replay carries the same id: dropped after success, registered anew after a failure."""
    name = unique("replay")
    repo = f"acme/{name}"
    sha = world.hub.commit(repo, {"adapter_config.json": b"{}", WEIGHTS: b"no weights"})
    sent = hooks.hub(hooks.hub_push(repo, sha=sha), delivery_id=name)
    assert world.deliver(sent).outcome is Outcome.REJECTED
    world.push(repo)
    assert world.gateway.verdict(sent) == "queued"
    world.stack.wait_until(lambda: world.ended("hub", name)[0].outcome is Outcome.PUBLISHED, what="the second run")
    assert world.gateway.verdict(sent) == "duplicate"


@pytest.mark.parametrize("wrapped", ["minio", "eventbridge", "sns-shaped", "ceph"])
def test_a_marker_in_a_bucket_is_published(world: World, wrapped: str) -> None:
    """The notification about the marker of a real upload leads to a version of that directory."""
    name = unique(wrapped)
    prefix = f"team/{name}"
    for bucket in (VERSIONED, UNVERSIONED):
        world.s3.put_directory(world.files(), f"{bucket}/{prefix}")
    told = hooks.minio(prefix, bucket_name=VERSIONED)
    body: dict[str, Any] = {
        "minio": told,
        "eventbridge": json.loads(hooks.payload("s3/aws/eventbridge.ObjectCreated.docs.json")),
        "sns-shaped": {"Message": json.dumps(told)},
        "ceph": {"Records": [told["Records"][0] | {"eventSource": "ceph:s3", "eventName": "ObjectCreated:Put"}]},
    }[wrapped]
    if wrapped == "eventbridge":
        body["id"] = name
        body["detail"] |= {"bucket": {"name": VERSIONED}, "object": {"key": f"{prefix}/{MARKER}", "sequencer": "1A"}}
    registration = world.deliver(hooks.bucket(body))
    assert (registration.outcome, registration.adapter.name) == (Outcome.PUBLISHED, name)
    assert world.stack.registry.version(name).source == f"s3://{VERSIONED}/{prefix}"


def test_an_upload_that_is_announced_too_early_is_waited_for(world: World) -> None:
    """The configuration comes before the weights, and its event asks already: one version, and no rejection."""
    name = unique("slow")
    files = world.files()
    directory = f"{hooks.CONFIG_FIRST}/{name}"
    world.s3.put(f"{UNVERSIONED}/{directory}/adapter_config.json", files / "adapter_config.json")
    answer = world.gateway.post(
        hooks.bucket(hooks.minio(directory, bucket_name=UNVERSIONED, file="adapter_config.json"))
    )
    delivery_id = answer.json()["delivery_id"]
    [registration_id] = world.stack.wait_until(
        lambda: world.deliveries.delivery("s3", delivery_id).registrations, what="the registration"
    )
    ledger = world.stack.registry.ledger
    world.stack.wait_until(lambda: ledger.get(registration_id).stage == "resolve", what="the wait for the weights")
    world.s3.put(f"{UNVERSIONED}/{directory}/{WEIGHTS}", files / WEIGHTS)
    [registration] = world.ended("s3", delivery_id)
    assert registration.outcome is Outcome.PUBLISHED
    assert world.versions(name) == [1]


def test_an_object_that_changes_meanwhile_is_refused_and_its_own_event_registers_it(world: World) -> None:
    """Changed between resolve and validate: rejected, nothing mixed is published; the event of the change counts."""
    name = unique("changing")
    prefix = f"team/{name}"
    world.s3.put_directory(world.files(), f"{UNVERSIONED}/{prefix}")
    told = {"name": name, "source": f"s3://{UNVERSIONED}/{prefix}", "base_model": BASE}
    told |= {"labels": {"fault": "hold:validate"}}
    first = world.gateway.post(hooks.cloud_event(told, event_id=name)).json()["delivery_id"]
    [held] = world.stack.wait_until(
        lambda: world.deliveries.delivery("cloudevents", first).registrations, what="the registration"
    )
    world.stack.wait_for_stage(held, Stage.VALIDATE)
    world.s3.put_directory(world.files(), f"{UNVERSIONED}/{prefix}")
    world.stack.release()
    [refused] = world.ended("cloudevents", first)
    assert refused.outcome is Outcome.REJECTED
    assert [each.code for each in refused.findings] == ["SOURCE_CHANGED"]
    registration = world.deliver(hooks.bucket(hooks.minio(prefix, bucket_name=UNVERSIONED)))
    assert registration.outcome is Outcome.PUBLISHED
    assert world.versions(name) == [registration.version]


def test_own_senders_are_published(world: World) -> None:
    """Weights & Biases through our template, CloudEvents and Standard Webhooks name a place and a base model."""
    now = time.time()
    for kind in ("wandb", "cloudevents", "structured", "standard"):
        name = unique(kind)
        told = {"name": name, "source": str(world.files()), "base_model": BASE, "version": f"acme/registry/{name}:v1"}
        sent = {
            "wandb": hooks.wandb(told),
            "cloudevents": hooks.cloud_event(told, event_id=name),
            "structured": hooks.cloud_event(told, event_id=name, structured=True),
            "standard": hooks.standard({"type": "adapter.saved", "data": told}, event_id=name, at_s=now),
        }[kind]
        registration = world.deliver(sent)
        assert (registration.outcome, registration.adapter.name) == (Outcome.PUBLISHED, name)


def test_a_gateway_that_is_killed_after_its_answer_loses_nothing(world: World) -> None:
    """kill -9 between the 202 and the end of the quiet period: the version is published all the same."""
    name = unique("killed")
    repo = f"acme/{name}"
    sent = hooks.hub(hooks.hub_push(repo, sha=world.push(repo)), delivery_id=name)
    assert world.gateway.verdict(sent) == "queued"
    world.gateway.kill()
    try:
        assert world.deliveries.delivery("hub", name).registrations == ()  # so it was still pending
        [registration] = world.ended("hub", name)
        assert registration.outcome is Outcome.PUBLISHED
    finally:
        world.gateway.start()
    assert world.gateway.verdict(sent) == "duplicate"


def test_redis_down_is_503_and_the_senders_retry_succeeds(tmp_path: Path) -> None:
    """While the server is away nothing is taken; when it is back, so is the hook, and the retry is queued."""
    server = start_server(tmp_path / "valkey")
    settings = settings_of(server.url, tmp_path)
    gateway = HookGateway(settings, tmp_path / "gateway.log")
    sent = hooks.hub(hooks.hub_push("acme/a", sha="1" * 40))
    try:
        server.kill()
        answer = gateway.post(sent)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) <= 5
        server.start()
        assert gateway.verdict(sent) == "queued"
        assert gateway.verdict(sent) == "duplicate"
    finally:
        gateway.close()
        server.stop()
