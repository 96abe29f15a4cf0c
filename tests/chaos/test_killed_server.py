"""Redis killed, restarted and restored: nothing accepted is lost, and nothing that was announced comes again."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_registry.errors import RedisUnavailable, ServerNotAdmitted
from lora_registry.registrations import Outcome, Registration
from lora_registry.stages import ALWAYS, Stage
from lora_workers.embedded import EmbeddedValkey
from tests.helpers.registry import BASE
from tests.helpers.servers import start_server
from tests.helpers.stack import Stack, check_promises


def start(stack: Stack) -> None:
    """One dispatcher and one worker for each stage."""
    stack.dispatchers()
    for stage in ALWAYS:
        stack.worker(stage)


def published(ended: dict[str, Registration]) -> list[Registration]:
    """Those that were published."""
    return [each for each in ended.values() if each.outcome is Outcome.PUBLISHED]


def test_server_killed_and_restarted_under_load(own_server: EmbeddedValkey, own_stack: Callable[..., Stack]) -> None:
    """SIGKILL of the server, twice, while all stages work: each event ends once, and every subscriber agrees."""
    stack = own_stack()
    start(stack)
    follower = stack.follower()
    ids = [stack.submit(f"adapter-{number % 10}", idempotency_key=f"key-{number}") for number in range(80)]
    for done in (10, 40):
        stack.wait_until(
            lambda done=done: sum(stack.client.status(each).outcome is not None for each in ids) >= done,  # type: ignore[misc]
            what=f"{done} outcomes",
        )
        own_server.kill()
        own_server.start()
        again = submit_again(stack, "adapter-0", "key-0", source=str(stack.client.status(ids[0]).source))
        assert again == ids[0]
    ended = stack.wait_for(ids)
    assert len(published(ended)) == 80
    by_order = sorted(ended.values(), key=lambda each: (each.adapter, each.order))
    for one, other in itertools.pairwise(by_order):
        if one.adapter == other.adapter:
            assert one.version is not None
            assert other.version is not None
            assert one.version < other.version
    for number in range(10):
        events = [each for each in ended.values() if each.adapter.name == f"adapter-{number}"]
        newest = max(events, key=lambda each: each.order)
        assert stack.registry.version(f"adapter-{number}").registration_id == newest.id
    check_promises(stack, ended, follower=follower)


def submit_again(stack: Stack, name: str, key: str, *, source: str) -> str:
    """What a publisher does during an outage: the same call with the same key, until it is answered."""

    def attempt() -> str | None:
        try:
            return stack.submit(name, source=Path(source), idempotency_key=key)
        except (RedisUnavailable, ServerNotAdmitted):
            return None

    found = stack.wait_until(attempt, what="the publisher's answer")
    assert found
    return found


def test_broker_on_another_server_loses_everything(
    own_server: EmbeddedValkey, own_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    """The broker is killed and comes back empty, with messages in flight: registrations do not notice."""
    broker = start_server(tmp_path / "broker")
    try:
        stack = own_stack(broker_url=broker.url)
        start(stack)
        stack.wait_for_slots()
        follower = stack.follower()
        ids = [stack.submit(f"adapter-{number % 5}") for number in range(30)]
        stack.wait_until(
            lambda: sum(stack.client.status(each).outcome is not None for each in ids) >= 5, what="5 outcomes"
        )
        broker.kill()
        shutil.rmtree(tmp_path / "broker" / "appendonlydir")
        ids += [stack.submit(f"adapter-{number % 5}") for number in range(30)]
        broker.start()
        ended = stack.wait_for(ids)
        assert len(published(ended)) == 60
        check_promises(stack, ended, follower=follower)
    finally:
        broker.kill()


def announced(stack: Stack) -> list[dict[str, Any]]:
    """All announcements in the log."""
    return [json.loads(message) for message in stack.registry.log()]


def test_server_restored_from_an_older_file(own_server: EmbeddedValkey, own_stack: Callable[..., Stack]) -> None:
    """After a restore no id, number or (generation, sequence) that was announced before comes again.

    At the time of the backup one registration is in validate, and its adapter's next number is taken. After it that
    registration and others are published: nodes have seen what the restored server knows nothing of.
    """
    stack = own_stack()
    start(stack)
    follower = stack.follower()
    stack.wait_for([stack.submit(name) for name in ("support-bot", "other", "support-bot")])
    in_flight = stack.submit("support-bot", fault="hold:validate")
    stack.wait_until(lambda: stack.times_worked_on(in_flight, Stage.VALIDATE), what="the one in flight")
    directory = own_server._directory
    backup = directory.with_name("backup")
    shutil.copytree(directory / "appendonlydir", backup)

    stack.release()
    forgotten = [stack.submit(name) for name in ("support-bot", "other", "newcomer", "support-bot")]
    before_restore = stack.wait_for([in_flight, *forgotten])
    assert len(published(before_restore)) == 5
    before = announced(stack)
    stack.wait_until(lambda: follower.updates()[-1]["sequence"] == len(before), what="the follower has seen all")

    own_server.kill()
    shutil.rmtree(directory / "appendonlydir")
    shutil.copytree(backup, directory / "appendonlydir")
    own_server.start()
    old_generation = before[-1]["generation"]
    stack.wait_until(
        lambda: stack.registry.client.hget(stack.registry.keys.server, "generation") != old_generation,
        what="admission of the restored server",
    )
    ended = stack.wait_for([in_flight, *(stack.submit(name) for name in ("support-bot", "other", "newcomer"))])
    assert len(published(ended)) == 4

    after = [event for event in announced(stack) if event["generation"] != old_generation]
    assert len(after) >= 4
    versions_before = [event["data"] for event in before if event["type"].endswith("version.published.v1")]
    versions_after = [event["data"] for event in after if event["type"].endswith("version.published.v1")]
    for field in ("lora_int_id", "served_name"):
        assert not {each[field] for each in versions_before} & {each[field] for each in versions_after}
    assert not {event["id"] for event in before} & {event["id"] for event in after}
    stack.wait_until(
        lambda: any(update["reset"] and update["gone"] for update in follower.updates()), what="the follower's reset"
    )
    newest = max((each for each in ended.values() if each.adapter.name == "support-bot"), key=lambda each: each.order)
    assert stack.registry.version("support-bot").registration_id == newest.id
    check_promises(stack, ended, follower=follower)
    assert {record.base_model for record in stack.registry.catalog.select()} == {BASE}
