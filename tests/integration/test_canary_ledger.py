"""The optional stage in the ledger: who passes it, who has an engine, and what becomes of it when the setting goes."""

from __future__ import annotations

import pytest

from lora_registry.errors import EngineBusy, LeaseLost, Transient
from lora_registry.ledger import Lease
from lora_registry.settings import Settings
from lora_registry.stages import Stage
from lora_workers.dispatcher import Dispatcher
from tests.helpers.registry import BASE, Registry
from tests.helpers.waiting import wait_until

ENGINES = {BASE: "vllm@http://canary:8000"}


@pytest.fixture
def tried(registry: Registry) -> Registry:
    """A registry whose dispatcher knows a canary engine for the base model."""
    return registry.with_settings(canary_engines=ENGINES)


def in_canary(registry: Registry, *names: str) -> list[Lease]:
    """Bring new registrations to the stage and claim them."""
    ids = [registry.submit(name, content=name) for name in names]
    leases = registry.advance(Stage.CANARY)
    return [leases[each] for each in ids]


def test_only_registrations_of_a_base_with_an_engine_pass_the_stage(tried: Registry) -> None:
    """The others go from validate to publish, in the same pipeline."""
    one, other = tried.submit("one"), tried.submit("other", base_model="other-base", content="other")
    assert set(tried.advance(Stage.CANARY)) == {one}
    assert set(tried.advance(Stage.PUBLISH)) == {other}


def test_who_passes_is_said_when_the_event_is_dispatched(registry: Registry, tried: Registry) -> None:
    """A validate worker with other settings hands on as the dispatcher said, both ways."""
    with_it, without = tried.enqueue("with-it", content="a"), registry.enqueue("without", content="b")
    assert set(registry.advance(Stage.CANARY)) == {with_it}
    assert set(tried.advance(Stage.PUBLISH)) == {without}


def test_tried_registration_is_published_and_tells_how_long_it_took(tried: Registry) -> None:
    """Handing on from the stage leaves its state, wakes publish, and its time is kept."""
    (lease,) = in_canary(tried, "bot")
    assert lease.following is Stage.PUBLISH
    assert tried.ledger.complete(lease, {}) == 1
    (publishing,) = tried.claim(Stage.PUBLISH)
    assert publishing.registration.state == "tried"
    assert "canary" in publishing.registration.timings_ms
    assert tried.publish(publishing).served_name == "bot.v1"


def test_an_engine_is_one_registrations_at_a_time(tried: Registry) -> None:
    """The second gets its turn as soon as the first is handed on; another engine is free; asking again is allowed."""
    first, second = in_canary(tried, "first", "second")
    tried.ledger.hold_engine(first, "a")
    tried.ledger.hold_engine(first, "a")
    with pytest.raises(EngineBusy):
        tried.ledger.hold_engine(second, "a")
    tried.ledger.complete(first, {})
    (again,) = tried.claim_when_due(Stage.CANARY)
    tried.ledger.hold_engine(again, "a")
    tried.ledger.hold_engine(again, "b")


def test_waiting_for_an_engine_costs_no_attempt_and_gives_the_worker_back(tried: Registry) -> None:
    """However often it finds the engine busy, it is due again, unclaimed and with all its tries."""
    first, second = in_canary(tried, "first", "second")
    tried.ledger.hold_engine(first, "a")
    for _ in range(2):
        with pytest.raises(EngineBusy):
            tried.ledger.hold_engine(second, "a")
        assert tried.ledger.pulse(Stage.CANARY).leased == 1
        (second,) = tried.claim_when_due(Stage.CANARY)
    assert second.registration.attempts == 0


@pytest.mark.parametrize("ended", ["fails", "dies"])
def test_engine_of_an_attempt_that_ended_is_free(tried: Registry, ended: str) -> None:
    """A failure ends the lease, and a dead worker's runs out: nobody has to let go of the engine."""
    short = tried.with_settings(lease_s=0.2)
    tried.submit("first", content="first")
    (first,) = short.advance(Stage.CANARY).values()
    short.ledger.hold_engine(first, "a")
    (second,) = in_canary(tried, "second")
    if ended == "fails":
        tried.ledger.fail(first, Transient())
    else:
        wait_until(
            lambda: short.ledger.pulse(Stage.CANARY).leased == 1, what="the end of the first lease", every_s=0.01
        )
    tried.ledger.hold_engine(second, "a")


def test_later_attempt_takes_the_engine_from_the_earlier(tried: Registry) -> None:
    """The worker that lost its lease has lost the engine; it touches it no more."""
    short = tried.with_settings(lease_s=0.05)
    tried.submit("bot")
    (lost,) = short.advance(Stage.CANARY).values()
    short.ledger.hold_engine(lost, "a")
    (again,) = tried.claim_when_due(Stage.CANARY)
    tried.ledger.hold_engine(again, "a")
    with pytest.raises(LeaseLost) as raised:
        tried.ledger.hold_engine(lost, "a")
    assert not isinstance(raised.value, EngineBusy)


def test_what_waits_in_a_stage_that_was_switched_off_is_handed_on(tried: Registry) -> None:
    """Whole, with its attempts forgotten and one wake-up for publish; what is leased is left to its worker."""
    failed, leased = in_canary(tried, "failed", "leased")
    quick = tried.with_settings(backoff_first_s=0.01)
    quick.ledger.fail(failed, Transient())
    wait_until(lambda: tried.ledger.pulse(Stage.CANARY).due == 1, what="the end of the pause", every_s=0.005)
    assert tried.ledger.pass_over(Stage.CANARY, stays=()) == 1
    (moved,) = tried.claim(Stage.PUBLISH)
    assert (moved.registration.id, moved.registration.attempts) == (failed.registration.id, 0)
    assert tried.publish(moved).outcome == "published"
    tried.ledger.complete(leased, {})
    (other,) = tried.claim(Stage.PUBLISH)
    assert other.registration.id == leased.registration.id


def test_what_is_due_for_an_engine_that_is_still_there_stays(tried: Registry) -> None:
    """Another base model's engine was taken away, not this one's."""
    tried.submit("bot")
    (lease,) = tried.advance(Stage.CANARY).values()
    tried.with_settings(backoff_first_s=0.01).ledger.fail(lease, Transient())
    wait_until(lambda: tried.ledger.pulse(Stage.CANARY).due == 1, what="the end of the pause", every_s=0.005)
    assert tried.ledger.pass_over(Stage.CANARY, stays=ENGINES) == 0
    assert tried.ledger.pulse(Stage.CANARY).due == 1
    assert tried.ledger.pass_over(Stage.CANARY, stays=["other-base"]) == 1
    assert tried.ledger.pulse(Stage.CANARY).due == 0


def test_dead_letter_of_the_stage_can_be_driven_again_without_it(tried: Registry) -> None:
    """The stage was switched off meanwhile: the next sweep hands the letter on."""
    (lease,) = in_canary(tried, "bot")
    assert tried.with_settings(max_attempts=1).ledger.fail(lease, Transient())
    tried.ledger.redrive(lease.registration.id)
    assert tried.ledger.pass_over(Stage.CANARY, stays=()) == 1
    (moved,) = tried.claim(Stage.PUBLISH)
    assert tried.publish(moved).outcome == "published"


def test_overtaken_registration_is_not_published_by_being_handed_on(tried: Registry) -> None:
    """A newer event with `supersede` wins over one that waits in the stage."""
    (old,) = in_canary(tried, "bot")
    new = tried.submit("bot", content="new", supersede=True)
    tried.advance(Stage.CANARY)
    tried.with_settings(backoff_first_s=0.01).ledger.fail(old, Transient())
    wait_until(lambda: tried.ledger.pulse(Stage.CANARY).due, what="the end of the pause", every_s=0.005)
    tried.ledger.pass_over(Stage.CANARY, stays=())
    assert old.registration.id not in {lease.registration.id for lease in tried.claim(Stage.PUBLISH)}
    assert tried.ledger.get(old.registration.id).outcome == "superseded"
    assert tried.ledger.get(new).outcome is None


def test_dispatchers_hand_on_by_themselves(tried: Registry, settings: Settings) -> None:
    """One that knows no canary engine moves what waits in the stage, and wakes publish, at its first sweep."""
    (lease,) = in_canary(tried, "bot")
    tried.with_settings(max_attempts=1).ledger.fail(lease, Transient())
    tried.ledger.redrive(lease.registration.id)
    sent: list[Stage] = []
    dispatcher = Dispatcher(settings)
    dispatcher._wake = lambda stage, count: sent.extend([stage] * count)  # type: ignore[method-assign]
    dispatcher.step()
    assert sent == [Stage.PUBLISH]
    assert tried.ledger.pulse(Stage.PUBLISH).due == 1
