"""Scripts of many requests in shared round trips to a real server: none gets another's answer, or its fate."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from lora_registry.connection import connect_async
from lora_registry.errors import QueueFull, RedisUnavailable
from lora_registry.hook_codes import HOOK_FORGED
from lora_registry.hook_deliveries import DeliveryVerdict, Heard, HookDeliveries
from lora_registry.hook_events import HookEvent, PendingEvents
from lora_registry.inbox import Accepted
from lora_registry.scripts import Call
from lora_workers.gateway import round_trips
from lora_workers.gateway.round_trips import RoundTrips
from tests.helpers.registry import Registry, make_event


@pytest.fixture
def deliveries(registry: Registry) -> Iterator[HookDeliveries]:
    """Deliveries of an empty registry; what is pending at the end is accepted, so that no key is left."""
    yield HookDeliveries(registry.client, registry.settings)
    PendingEvents(registry.client, registry.settings).release(registry.inbox)


def hearing(deliveries: HookDeliveries, number: int, **changes: Any) -> Call[Heard]:
    """A delivery about an adapter of its own."""
    event = HookEvent(make_event(f"bot-{number}"), content="a" * 40)
    return deliveries.hearing("hub", f"delivery-{number}", [event], **changes)


def together(url: str, calls: list[Call[Any]]) -> list[Any]:
    """Run all at once; answers and errors in their order."""

    async def run(trips: RoundTrips) -> list[Any]:
        return await asyncio.gather(*(trips.run(each) for each in calls), return_exceptions=True)

    return with_round_trips(url, run)


def with_round_trips(url: str, work: Callable[[RoundTrips], Awaitable[list[Any]]]) -> list[Any]:
    """Work with round trips of an event loop of their own."""

    async def main() -> list[Any]:
        trips = RoundTrips(connect_async(url, retries=0))
        try:
            return await work(trips)
        finally:
            await trips.close()

    return asyncio.run(main())


def test_events_deliveries_and_refusals_go_together(registry: Registry, deliveries: HookDeliveries) -> None:
    """Two hundred of three kinds at once, on a server that knows no script: each has its own answer and its effect."""
    registry.client.script_flush()
    calls: list[Call[Any]] = []
    for number in range(100):
        calls.append(hearing(deliveries, number))
        calls.append(registry.inbox.acceptance(make_event(f"event-{number}")))
    calls.append(deliveries.refusal("hub", HOOK_FORGED, "forged"))
    answers = together(registry.settings.redis_url, calls)
    heard, accepted = answers[0:200:2], answers[1:200:2]
    assert heard == [Heard(f"delivery-{number}", DeliveryVerdict.QUEUED) for number in range(100)]
    assert all(isinstance(each, Accepted) and each.created for each in accepted)
    assert len({each.registration_id for each in accepted}) == 100
    assert answers[200] is None
    assert [each.reason for each in deliveries.refusals("hub")] == ["HOOK_FORGED: forged"]
    assert registry.inbox.waiting() == 100
    assert PendingEvents(registry.client, registry.settings).waiting() == 100


def test_a_call_that_fails_touches_no_other(registry: Registry, deliveries: HookDeliveries) -> None:
    """One that the server fails to run has its error; the rest is recorded, and nothing runs twice."""
    calls: list[Call[Any]] = [hearing(deliveries, number) for number in range(8)]
    registry.client.set(calls[3].keys[0], "no hash")
    answers = together(registry.settings.redis_url, calls)
    assert isinstance(answers.pop(3), redis.ResponseError)
    assert [each.verdict for each in answers] == [DeliveryVerdict.QUEUED] * 7
    assert PendingEvents(registry.client, registry.settings).waiting() == 7
    registry.client.delete(calls[3].keys[0])


def test_a_call_that_cannot_be_sent_touches_no_other(registry: Registry, deliveries: HookDeliveries) -> None:
    """One with a text that is none has its error; the rest is recorded."""
    calls: list[Call[Any]] = [hearing(deliveries, number) for number in range(8)]
    calls[5] = hearing(deliveries, 5, body="half of a pair: \ud800")
    answers = together(registry.settings.redis_url, calls)
    assert isinstance(answers.pop(5), UnicodeEncodeError)
    assert [each.verdict for each in answers] == [DeliveryVerdict.QUEUED] * 7
    assert PendingEvents(registry.client, registry.settings).waiting() == 7


def test_those_that_wait_are_bounded(
    registry: Registry, deliveries: HookDeliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound a request is refused at once, and nothing of it is recorded; the others are served."""
    monkeypatch.setattr(round_trips, "_MOST_WAITING", 5)
    answers = together(registry.settings.redis_url, [hearing(deliveries, number) for number in range(8)])
    assert [isinstance(each, QueueFull) for each in answers] == [False] * 5 + [True] * 3
    assert len(deliveries.history("hub")) == 5
    again = together(registry.settings.redis_url, [hearing(deliveries, 7)])
    assert again == [Heard("delivery-7", DeliveryVerdict.QUEUED)]


def test_a_server_that_is_away_is_told_to_everybody(deliveries: HookDeliveries, tmp_path: Path) -> None:
    """Each of them hears it, those that came while it was tried included."""
    answers = together(f"unix://{tmp_path}/nobody.sock", [hearing(deliveries, number) for number in range(100)])
    assert {type(each) for each in answers} == {RedisUnavailable}


def test_a_request_that_is_given_up_leaves_the_others_their_answers(
    registry: Registry, deliveries: HookDeliveries
) -> None:
    """What it asked for may be done all the same."""

    async def run(trips: RoundTrips) -> list[Any]:
        tasks = [asyncio.create_task(trips.run(hearing(deliveries, number))) for number in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = with_round_trips(registry.settings.redis_url, run)
    assert isinstance(answers.pop(1), asyncio.CancelledError)
    assert [each.verdict for each in answers] == [DeliveryVerdict.QUEUED] * 2
