"""Accepting events and taking them into the ledger, on a real server."""

from __future__ import annotations

import pytest

from lora_registry import scripts
from lora_registry.errors import IdempotencyConflict, QueueFull, ServerNotAdmitted
from lora_registry.inbox import admit
from lora_registry.names import AdapterName
from lora_registry.registrations import Outcome
from lora_registry.settings import Settings
from lora_registry.stages import Stage
from lora_workers.dispatcher import Dispatcher
from tests.helpers.registry import Registry, make_event
from tests.helpers.waiting import wait_until


def test_same_event_under_same_key_gives_the_registration_that_is_there(registry: Registry) -> None:
    """A publisher that repeats its request gets its first registration, and the queue holds one event."""
    first = registry.inbox.accept(make_event(), idempotency_key="run-17")
    again = registry.inbox.accept(make_event(), idempotency_key="run-17")
    assert first.created
    assert not again.created
    assert again.registration_id == first.registration_id
    assert registry.inbox.waiting() == 1


def test_other_event_under_same_key_is_a_conflict(registry: Registry) -> None:
    """A key that was used for another request is refused, and nothing is queued."""
    registry.submit(content="one", key="run-17")
    with pytest.raises(IdempotencyConflict):
        registry.submit(content="two", key="run-17")
    assert registry.inbox.waiting() == 1


def test_idempotency_keys_are_scoped_by_namespace(registry: Registry) -> None:
    """Two tenants may use the same key for different requests."""
    one = registry.submit(namespace="team-a", key="run-1")
    other = registry.submit(namespace="team-b", key="run-1")
    assert one != other


def test_key_still_answers_after_the_outcome(registry: Registry) -> None:
    """A repeat that comes after publication still gets the first registration."""
    first = registry.register(key="run-17")
    assert registry.submit(key="run-17") == first.id
    assert registry.inbox.waiting() == 0


def test_accept_whose_reply_was_lost_runs_twice_to_the_same_end(registry: Registry) -> None:
    """The accept script called again with the same arguments, as redis-py does, accepts once."""
    keys = registry.keys
    event = make_event()
    identity = "reg_" + "a" * 24
    idempotency = keys.idempotency("default", identity)
    keys_ = [keys.accepted(identity), idempotency, keys.numbers(event.adapter), keys.events]
    args = [
        identity,
        event.model_dump_json(),
        event.payload_digest(),
        idempotency.rpartition(":")[2],
        100,
        keys.server,
    ]
    answers = [scripts.call(registry.client, "accept", keys=keys_, args=args) for _ in range(2)]
    assert answers == [["accepted", identity], ["existing", identity]]
    assert registry.inbox.waiting() == 1
    assert registry.submit() != identity
    registry.dispatch()
    assert registry.ledger.get(identity).order == 1


def test_full_queue_refuses_clearly_and_takes_no_number(registry: Registry) -> None:
    """Beyond the limit `accept` raises QueueFull; the next accepted event gets the next number."""
    small = registry.with_settings(max_queued_events=2)
    small.submit(content="one")
    small.submit(content="two")
    with pytest.raises(QueueFull):
        small.submit(content="three")
    small.dispatch()
    assert registry.ledger.get(small.enqueue(content="three")).order == 3


def test_repeat_is_answered_even_when_the_queue_is_full(registry: Registry) -> None:
    """A full queue does not keep a publisher from learning that its event was accepted."""
    small = registry.with_settings(max_queued_events=1)
    first = small.submit(key="run-1")
    assert small.submit(key="run-1") == first


def test_numbers_count_for_each_adapter_in_order_of_acceptance(registry: Registry) -> None:
    """The n-th accepted event of an adapter has number n, whatever other adapters do."""
    ids = [registry.submit(name) for name in ("a", "b", "a", "a", "b")]
    registry.dispatch()
    assert [registry.ledger.get(each).order for each in ids] == [1, 1, 2, 3, 2]


def test_status_works_from_acceptance_on(registry: Registry) -> None:
    """Between accept and dispatch the registration can already be asked for."""
    waiting = registry.ledger.get(registry.submit("a"))
    assert (waiting.state, waiting.outcome, waiting.order) == ("received", None, 1)
    assert waiting.adapter == AdapterName("default", "a")


def test_two_dispatchers_share_the_queue_and_lose_nothing(registry: Registry) -> None:
    """Each event is read by one dispatcher, and all of them arrive in the ledger with their numbers."""
    ids = [registry.submit(content=str(number)) for number in range(50)]
    registry.inbox.read("one", block_s=0.001)  # the first read makes the group
    batches = [registry.inbox.read(name, count=10, block_s=0.001) for name in ("one", "two", "one", "two", "two")]
    read = [entry for batch in batches for entry in batch]
    assert len({entry[0] for entry in read}) == len(read) == 50
    for entry in reversed(read):
        registry.inbox.dispatch(entry)
    assert [registry.ledger.get(each).order for each in ids] == list(range(1, 51))
    assert registry.inbox.waiting() == 0


def test_event_of_a_dead_dispatcher_is_taken_over(registry: Registry) -> None:
    """What one dispatcher read and never dispatched, another takes over; it is dispatched once."""
    registration = registry.submit()
    registry.inbox.read("dead", block_s=0.001)
    (entry,) = registry.inbox.read("dead", block_s=0.001)
    assert registry.inbox.read("alive", block_s=0.001) == []
    (taken,) = registry.inbox.take_over("alive", idle_s=0)
    assert taken == entry
    registry.inbox.dispatch(taken)
    assert registry.ledger.get(registration).stage == Stage.ALLOCATE
    assert registry.inbox.take_over("alive", idle_s=0) == []


def test_event_dispatched_twice_is_one_registration(registry: Registry) -> None:
    """Two dispatchers that both hold an event make one registration of it, also after it has moved on."""
    registration = registry.submit()
    registry.inbox.read("one", block_s=0.001)
    (entry,) = registry.inbox.read("one", block_s=0.001)
    registry.inbox.dispatch(entry)
    leases = registry.advance(Stage.RESOLVE)
    registry.inbox.dispatch(entry)
    assert registry.ledger.get(registration).stage == Stage.RESOLVE
    assert list(leases) == [registration]
    assert registry.claim(Stage.ALLOCATE) == ()


def test_unreadable_event_is_rejected_with_a_finding(registry: Registry) -> None:
    """What a publisher wrote into the inbox by itself, and is no event, ends as rejected and says why."""
    registration = registry.submit()
    registry.client.hset(registry.keys.accepted(registration), "event", '{"name": "../evil"}')
    registry.dispatch()
    ended = registry.ledger.get(registration)
    assert ended.outcome is Outcome.REJECTED
    assert [finding.code for finding in ended.findings] == ["EVENT_MALFORMED"]
    registry.client.unlink(*registry.client.scan_iter(f"{registry.settings.key_prefix}:inbox:idempotency:*"))


def test_foreign_stream_entry_is_dropped(registry: Registry) -> None:
    """An entry that `accept` did not write stops nobody."""
    registry.client.xadd(registry.keys.events, {"id": "reg_../../evil"})
    registration = registry.enqueue()
    assert registry.inbox.waiting() == 0
    assert registry.ledger.get(registration).stage == Stage.ALLOCATE


def test_unadmitted_server_accepts_nothing(registry: Registry) -> None:
    """A server that no dispatcher has admitted gives out no number."""
    registry.forget_server()
    with pytest.raises(ServerNotAdmitted):
        registry.submit()
    registry.admit()
    registry.submit()


def test_a_dispatcher_admits_no_server_that_lost_everything(registry: Registry, settings: Settings) -> None:
    """Ids and names would be given a second time: that takes an operator's word, and floors."""
    dispatcher = Dispatcher(settings.model_copy(update={"sweep_interval_s": 0.001}))
    registry.register("a")
    dispatcher.step()
    registry.client.flushdb()
    for _ in range(2):
        with pytest.raises(ServerNotAdmitted, match="was not before") as refused:
            dispatcher.step()
        assert "lora-registry admit --id-floor" in refused.value.remedy
        with pytest.raises(ServerNotAdmitted):
            registry.submit()
    admit(registry.client, settings, id_floor=500, by_operator=True)
    registry.submit("b")
    wait_until(dispatcher.step, what="the event on the new server")


def test_dispatchers_that_are_gone_are_forgotten(registry: Registry) -> None:
    """The group does not keep every dispatcher that ever ran; one with events still pending is kept."""
    registry.submit()
    registry.inbox.read("gone", block_s=0.001)  # makes the group
    registry.inbox.read("holds", block_s=0.001)
    registry.inbox.read("gone", block_s=0.001)
    assert registry.inbox.forget_consumers(idle_s=-1) == 1
    (entry,) = registry.inbox.take_over("alive", idle_s=0)
    registry.inbox.dispatch(entry)
    assert registry.inbox.waiting() == 0
