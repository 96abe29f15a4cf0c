"""Wake-ups: few for many registrations, sent again when lost, harmless when doubled."""

from __future__ import annotations

import time

import pytest

from lora_registry.registrations import Outcome
from lora_registry.stages import ALWAYS, BATCH, Stage
from tests.helpers.registry import Registry
from tests.helpers.waiting import wait_until


def test_a_burst_of_1000_events_sends_few_wake_ups(registry: Registry) -> None:
    """With one worker slot for each stage, 1,000 registrations pass all stages on a handful of messages."""
    for number in range(1000):
        registry.submit(f"adapter-{number % 10}", content=str(number))
    sent = dict.fromkeys(Stage, 0)
    sent[Stage.ALLOCATE] += registry.dispatch()
    for stage, following in zip(ALWAYS, [*ALWAYS[1:], None], strict=True):
        done, woken = 0, True
        while (claim := registry.ledger.claim(stage, owner="worker", woken=woken)).leases:
            woken = False
            sent[stage] += claim.wake_ups
            for lease in claim.leases:
                if following is None:
                    registry.publish(lease)
                else:
                    fields = {"digest": f"sha256:{done:064x}", "rank": 8, "size_bytes": 1, "base_revision": "r"}
                    if stage is Stage.ALLOCATE:
                        registry.ledger.allocate(lease)
                    sent[following] += registry.ledger.complete(lease, fields if stage is Stage.VALIDATE else {})
                done += 1
        assert done == 1000
    assert sum(sent.values()) < 50


def test_wake_ups_wanted_are_one_for_each_slot_or_batch_whichever_is_less(registry: Registry) -> None:
    """Coalescing never serialises a stage: two slots with two batches of work get two messages, and one batch one."""
    registry.ledger.announce_slots(Stage.ALLOCATE, ["a", "b", "c"], for_s=60)
    for number in range(BATCH[Stage.ALLOCATE] * 2):
        registry.submit(f"adapter-{number}")
    assert registry.dispatch() == 2


def test_claim_says_how_many_more_are_wanted(registry: Registry) -> None:
    """A claim retires the wake-up that led to it; with work and slots left it asks for what is missing."""
    for number in range(BATCH[Stage.ALLOCATE] * 3):
        registry.submit(f"adapter-{number}")
    assert registry.dispatch() == 1
    registry.ledger.announce_slots(Stage.ALLOCATE, ["a", "b"], for_s=60)
    assert registry.ledger.claim(Stage.ALLOCATE, owner="a").wake_ups == 2


def test_slots_that_fall_silent_are_forgotten(registry: Registry) -> None:
    """A worker that has gone is not counted on."""
    registry.ledger.announce_slots(Stage.ALLOCATE, ["a", "b"], for_s=0.02)
    wait_until(lambda: registry.ledger.pulse(Stage.ALLOCATE).slots == 0, what="slots forgotten")
    for number in range(BATCH[Stage.ALLOCATE] * 2):
        registry.submit(f"adapter-{number}")
    assert registry.dispatch() == 1


def test_lost_wake_up_is_sent_again_by_the_sweep(registry: Registry) -> None:
    """While one is on its way none is sent; after the patience the sweep presumes it lost."""
    registry = registry.with_settings(wake_timeout_s=0.05)
    registry.submit()
    assert registry.dispatch() == 1
    assert registry.with_settings(wake_timeout_s=60.0).ledger.sweep(Stage.ALLOCATE) == 0
    wait_until(lambda: registry.ledger.sweep(Stage.ALLOCATE) == 1, what="resent wake-up", every_s=0.005)
    assert registry.ledger.sweep(Stage.ALLOCATE) == 0


def test_nothing_is_sent_for_a_stage_without_due_work(registry: Registry) -> None:
    """An idle registry sends no messages, however often it is swept."""
    registry = registry.with_settings(wake_timeout_s=0.001)
    assert [registry.ledger.sweep(stage) for stage in ALWAYS for _ in range(3)] == [0] * 12


def test_overdue_lease_wakes_the_stage(registry: Registry) -> None:
    """When a worker died with its lease, the sweep sends a wake-up once the lease has run out."""
    registry = registry.with_settings(lease_s=0.05, wake_timeout_s=0.01)
    registry.enqueue()
    registry.claim(Stage.ALLOCATE, owner="dead")
    wait_until(lambda: registry.ledger.sweep(Stage.ALLOCATE), what="wake-up for the overdue lease", every_s=0.005)


@pytest.mark.parametrize("end", ["finished", "handed on", "failed", "renewed"])
def test_a_namespace_without_due_work_does_not_hide_that_another_has_some(registry: Registry, end: str) -> None:
    """With one slot and batches of one, work is seen although another namespace's lease would have run out by now."""
    registry = registry.with_settings(lease_s=0.05, backoff_first_s=60.0, backoff_max_s=60.0)
    registry.submit("idle", namespace="idle")
    (lease,) = registry.advance(Stage.VALIDATE).values()
    if end == "finished":
        registry.ledger.finish(lease, Outcome.REJECTED)
    elif end == "handed on":
        registry.complete(lease)
    elif end == "failed":
        registry.ledger.fail(lease, RuntimeError())
    else:
        registry.with_settings(lease_s=60.0).ledger.renew(lease)
    over = time.monotonic() + 0.06
    wait_until(lambda: time.monotonic() > over, what="the end of the first lease")

    registry.submit("busy", namespace="busy")
    registry.dispatch()
    for stage in (Stage.ALLOCATE, Stage.RESOLVE):
        (lease,) = registry.claim(stage)
        if stage is Stage.ALLOCATE:
            registry.ledger.allocate(lease)
        woken = registry.ledger.complete(lease, {})
    assert woken == 1


def test_doubled_wake_up_finds_nothing(registry: Registry) -> None:
    """A second claim for the same message brings nothing and asks for nothing."""
    registry.enqueue()
    assert len(registry.ledger.claim(Stage.ALLOCATE, owner="one").leases) == 1
    second = registry.ledger.claim(Stage.ALLOCATE, owner="two")
    assert (second.leases, second.wake_ups) == ((), 0)


def test_redriven_dead_letter_is_woken_by_the_sweep(registry: Registry) -> None:
    """Redriving sends no message itself: the next sweep does."""
    registry = registry.with_settings(max_attempts=1)
    each = registry.enqueue()
    (lease,) = registry.claim(Stage.ALLOCATE)
    registry.ledger.fail(lease, RuntimeError())
    registry.ledger.redrive(each)
    assert registry.ledger.sweep(Stage.ALLOCATE) == 1


def test_pulse_shows_work_that_nobody_claims(registry: Registry) -> None:
    """Due, leased, and for how long: what the supervisor judges a stage by."""
    registry.enqueue("a")
    registry.enqueue("b")
    registry.claim(Stage.ALLOCATE, limit=1)
    pulse = registry.ledger.pulse(Stage.ALLOCATE)
    assert (pulse.due, pulse.leased) == (1, 1)
    assert pulse.since_claim_s is not None
    assert pulse.oldest_due_s > 0
    assert registry.ledger.pulse(Stage.PUBLISH).since_claim_s is None
