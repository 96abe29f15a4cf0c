"""Working on what is due: each registration by itself, under leases that are kept, with its wake-ups passed on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tests.helpers.waiting import wait_until

from lora_registry import codes
from lora_registry.errors import Deferred, LeaseLost, RedisUnavailable, Rejected, Transient
from lora_registry.findings import Finding
from lora_registry.leases import LeaseKeeper
from lora_registry.ledger import Claim, Lease
from lora_registry.names import AdapterName
from lora_registry.registrations import Outcome, Registration
from lora_registry.stages import BATCH, ORDER, Stage, after
from lora_registry.work import Perform, work

NOTHING: Mapping[str, str | int] = {}


@dataclass
class MemoryLedger:
    """A ledger in memory: due work by stage, leases with epochs, and what became of each registration.

    Attributes:
        lease_s: length of a lease; nothing runs out here.
        slots: worker slots of each stage, which bound its wake-ups.
        away: names of operations for which the server is out of reach.
    """

    lease_s: float = 60.0
    slots: int = 1
    away: set[str] = field(default_factory=set)
    due: dict[Stage, list[str]] = field(default_factory=lambda: {stage: [] for stage in Stage})
    held: dict[str, Lease] = field(default_factory=dict)
    results: dict[str, Mapping[str, str | int]] = field(default_factory=dict)
    ended: dict[str, tuple[Outcome, tuple[Finding, ...]]] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)
    deferred: dict[str, Exception] = field(default_factory=dict)
    renewals: list[Lease] = field(default_factory=list)
    woken: list[bool] = field(default_factory=list)
    epoch: int = 0
    refused: int = 0

    def add(self, stage: Stage, *ids: str) -> None:
        """Make registrations due."""
        self.due[stage].extend(ids)

    def claim(self, stage: Stage, *, owner: str, limit: int | None = None, woken: bool = True) -> Claim:
        """Lease the next batch."""
        self._answer("claim")
        self.woken.append(woken)
        count = limit or BATCH[stage]
        taken, self.due[stage] = self.due[stage][:count], self.due[stage][count:]
        leases = tuple(self._lease(each, stage, owner) for each in taken)
        missing = min(self.slots - 1, self._batches(stage)) if woken else 0
        return Claim(leases, wake_ups=max(0, missing), more_due=bool(self.due[stage]))

    def complete(self, lease: Lease, fields: Mapping[str, str | int]) -> int:
        """Hand on to the next stage; every batch that begins there wants a wake-up."""
        self._answer("complete", lease)
        self.results[self._release(lease)] = fields
        following = after(lease.stage)
        if following is None:
            return 0
        before = self._batches(following)
        self.due[following].append(lease.registration.id)
        return self._batches(following) - before

    def finish(self, lease: Lease, outcome: Outcome, findings: tuple[Finding, ...] = ()) -> None:
        """End it."""
        self._answer("finish", lease)
        self.ended[self._release(lease)] = (outcome, findings)

    def fail(self, lease: Lease, error: Exception) -> bool:
        """Remember the failure; its backoff outlasts the test."""
        self._answer("fail", lease)
        self.failures[self._release(lease)] = error
        return False

    def defer(self, lease: Lease, error: Deferred) -> bool:
        """Remember what it waits for; the pause outlasts the test."""
        self._answer("defer", lease)
        self.deferred[self._release(lease)] = error
        return False

    def renew(self, lease: Lease) -> None:
        """Renew it."""
        self._answer("renew", lease)
        self.renewals.append(lease)

    def sweep(self, stage: Stage) -> int:
        """Wake-ups for what is due."""
        self._answer("sweep")
        return min(self.slots, self._batches(stage))

    def lose(self, registration_id: str) -> None:
        """Another worker takes it over."""
        self.held[registration_id] = replace(self.held[registration_id], epoch=0, owner="thief")

    def _lease(self, registration_id: str, stage: Stage, owner: str) -> Lease:
        self.epoch += 1
        registration = Registration(registration_id, AdapterName("default", "support-bot"), "tiny-llama")
        self.held[registration_id] = Lease(registration, stage, self.epoch, owner)
        return self.held[registration_id]

    def _batches(self, stage: Stage) -> int:
        return -(-len(self.due[stage]) // BATCH[stage])

    def _answer(self, operation: str, lease: Lease | None = None) -> None:
        if operation in self.away:
            self.refused += 1
            raise RedisUnavailable
        if lease and self.held.get(lease.registration.id) != lease:
            raise LeaseLost

    def _release(self, lease: Lease) -> str:
        return self.held.pop(lease.registration.id).registration.id


class Wakes:
    """Collects wake-ups in the order in which they were sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Stage, int]] = []

    def __call__(self, stage: Stage, count: int) -> None:
        """Send."""
        self.sent.append((stage, count))

    def of(self, stage: Stage) -> int:
        """How many were sent to a stage."""
        return sum(count for sent_to, count in self.sent if sent_to is stage)


def run(
    ledger: Any,
    perform: Perform = lambda _: NOTHING,
    *,
    stage: Stage = Stage.ALLOCATE,
    wake: Wakes | None = None,
    budget_s: float = 60.0,
) -> int:
    """Work until nothing is due."""
    with closing(LeaseKeeper(ledger)) as keeper:
        return work(
            stage, perform, ledger=ledger, keeper=keeper, wake=wake or Wakes(), owner="worker", budget_s=budget_s
        )


def raising(faults: Mapping[str, BaseException]) -> Perform:
    """A stage that fails on some registrations."""

    def perform(lease: Lease) -> Mapping[str, str | int]:
        if lease.registration.id in faults:
            raise faults[lease.registration.id]
        return {"of": lease.registration.id}

    return perform


FINDING = codes.BASE_UNKNOWN.finding("tiny-llama")


def test_one_bad_registration_in_a_batch_hurts_no_other() -> None:
    """Whatever four of them do, the other six are handed on, each with its own result."""
    ledger, ids = MemoryLedger(), [f"reg_{number}" for number in range(10)]
    ledger.add(Stage.ALLOCATE, *ids)
    faults = {
        "reg_1": Rejected("no", findings=(FINDING,)),
        "reg_3": Transient("later"),
        "reg_5": LeaseLost(),
        "reg_7": ZeroDivisionError("a bug"),
    }
    assert run(ledger, raising(faults)) == 10
    assert ledger.results == {each: {"of": each} for each in ids if each not in faults}
    assert ledger.due[Stage.RESOLVE] == [each for each in ids if each not in faults]


def test_rejected_ends_with_its_findings() -> None:
    """The publisher learns why; nothing is retried."""
    ledger = MemoryLedger()
    ledger.add(Stage.ALLOCATE, "reg_1")
    run(ledger, raising({"reg_1": Rejected("no", findings=(FINDING,))}))
    assert ledger.ended == {"reg_1": (Outcome.REJECTED, (FINDING,))}
    assert ledger.failures == {}


def test_what_is_not_there_yet_is_deferred_and_is_no_failure() -> None:
    """It goes back to wait, without an attempt."""
    ledger, error = MemoryLedger(), Deferred("no weights yet", findings=(FINDING,), deadline_s=60)
    ledger.add(Stage.ALLOCATE, "reg_1")
    run(ledger, raising({"reg_1": error}))
    assert (ledger.deferred, ledger.failures, ledger.ended) == ({"reg_1": error}, {}, {})


@pytest.mark.parametrize("error", [Transient("later"), RedisUnavailable(), ZeroDivisionError("a bug"), RuntimeError()])
def test_what_may_pass_and_what_nobody_foresaw_is_given_back(error: Exception) -> None:
    """Failures of the world and bugs alike are recorded with the registration, which comes again."""
    ledger = MemoryLedger()
    ledger.add(Stage.ALLOCATE, "reg_1")
    run(ledger, raising({"reg_1": error}))
    assert ledger.failures == {"reg_1": error}
    assert ledger.ended == {}


def test_whoever_lost_the_lease_records_nothing() -> None:
    """Another worker owns it: neither a result nor a failure is written, wherever the loss is noticed."""
    ledger = MemoryLedger()
    ledger.add(Stage.ALLOCATE, "reg_1", "reg_2", "reg_3")

    def perform(lease: Lease) -> Mapping[str, str | int]:
        ledger.lose(lease.registration.id)
        if lease.registration.id == "reg_2":
            raise Rejected("no")
        if lease.registration.id == "reg_3":
            raise Transient("later")
        return NOTHING

    assert run(ledger, perform) == 3
    assert (ledger.results, ledger.ended, ledger.failures) == ({}, {}, {})
    assert {lease.owner for lease in ledger.held.values()} == {"thief"}


def test_a_stage_that_ended_the_registration_itself_completes_nothing() -> None:
    """None says so: the publish script has written the outcome."""
    ledger = MemoryLedger()
    ledger.add(Stage.PUBLISH, "reg_1")
    assert run(ledger, lambda _: None, stage=Stage.PUBLISH) == 1
    assert ledger.results == {}


def test_result_that_cannot_be_written_stays_leased() -> None:
    """With the server away nothing is lost: the lease runs out, and the rest of the batch is tried all the same."""
    ledger = MemoryLedger(away={"complete", "fail", "finish"})
    ledger.add(Stage.ALLOCATE, "reg_1", "reg_2", "reg_3")
    assert run(ledger, raising({"reg_2": Rejected("no")})) == 3
    assert set(ledger.held) == {"reg_1", "reg_2", "reg_3"}


@pytest.mark.parametrize("fault", [Rejected("no"), Transient("later"), ZeroDivisionError("a bug")])
def test_outcome_that_cannot_even_be_recorded_hurts_no_other(fault: Exception) -> None:
    """A bug in the recording of one leaves it to its lease; the rest of the batch is worked on."""

    class FaultyLedger(MemoryLedger):
        def finish(self, lease: Lease, outcome: Outcome, findings: tuple[Finding, ...] = ()) -> None:
            raise UnicodeError("findings that are no text")

        def fail(self, lease: Lease, error: Exception) -> bool:
            raise UnicodeError("an error that is no text")

    ledger = FaultyLedger()
    ledger.add(Stage.ALLOCATE, "reg_1", "reg_2", "reg_3")
    assert run(ledger, raising({"reg_2": fault})) == 3
    assert set(ledger.results) == {"reg_1", "reg_3"}
    assert set(ledger.held) == {"reg_2"}


def test_server_that_is_away_at_the_claim_ends_the_work() -> None:
    """There is nothing to do for now; what was done before it went away is still announced to the next stage."""
    ledger, wake = MemoryLedger(), Wakes()
    ledger.add(Stage.RESOLVE, *(f"reg_{number}" for number in range(2 * BATCH[Stage.RESOLVE])))

    def perform(_: Lease) -> Mapping[str, str | int]:
        ledger.away = {"claim"}
        return NOTHING

    with pytest.raises(RedisUnavailable):
        run(ledger, perform, stage=Stage.RESOLVE, wake=wake)
    assert wake.of(Stage.VALIDATE) == BATCH[Stage.RESOLVE]


def test_an_interrupt_is_not_a_failure() -> None:
    """A worker that is told to end leaves the registration to its lease."""
    ledger = MemoryLedger()
    ledger.add(Stage.ALLOCATE, "reg_1")
    with pytest.raises(KeyboardInterrupt):
        run(ledger, raising({"reg_1": KeyboardInterrupt()}))
    assert set(ledger.held) == {"reg_1"}
    assert ledger.failures == {}


def test_works_until_nothing_is_due() -> None:
    """One wake-up leads to all the batches, and counts as answered once."""
    ledger = MemoryLedger()
    ledger.add(Stage.RESOLVE, *(f"reg_{number}" for number in range(2 * BATCH[Stage.RESOLVE] + 1)))
    assert run(ledger, stage=Stage.RESOLVE) == 2 * BATCH[Stage.RESOLVE] + 1
    assert ledger.woken == [True, False, False, False]


def test_wake_up_that_finds_nothing_does_nothing() -> None:
    """A doubled message is answered and over."""
    ledger, wake = MemoryLedger(), Wakes()
    assert run(ledger, wake=wake) == 0
    assert wake.sent == []


@pytest.mark.parametrize("stage", ORDER)
def test_wake_ups_go_to_the_next_stage(stage: Stage) -> None:
    """As many as completing asked for, to the stage that follows and, after the last, to none."""
    ledger, wake = MemoryLedger(), Wakes()
    ledger.add(stage, *(f"reg_{number}" for number in range(20)))
    run(ledger, stage=stage, wake=wake)
    following = after(stage)
    assert {sent_to for sent_to, _ in wake.sent} == ({following} if following else set())
    if following:
        assert wake.of(following) == -(-20 // BATCH[following])


def test_wake_ups_that_a_claim_asks_for_go_to_the_same_stage() -> None:
    """More due work than one batch, and more slots than one: colleagues are woken, before the work begins."""
    ledger, wake = MemoryLedger(slots=3), Wakes()
    ledger.add(Stage.VALIDATE, *(f"reg_{number}" for number in range(5)))
    sent_at_work: list[int] = []

    def perform(_: Lease) -> Mapping[str, str | int]:
        sent_at_work.append(wake.of(Stage.VALIDATE))
        return NOTHING

    run(ledger, perform, stage=Stage.VALIDATE, wake=wake)
    assert sent_at_work[0] == 2


def test_next_stage_is_woken_while_a_slow_neighbour_is_worked_on() -> None:
    """A registration that is done does not wait for one that is worked on after it."""
    ledger, wake = MemoryLedger(), Wakes()
    ledger.add(Stage.ALLOCATE, "reg_quick", "reg_slow")

    def perform(lease: Lease) -> Mapping[str, str | int]:
        if lease.registration.id == "reg_slow":
            wait_until(lambda: wake.of(Stage.RESOLVE), what="the wake-up for the quick one")
        return NOTHING

    assert run(ledger, perform, wake=wake) == 2
    assert set(ledger.results) == {"reg_quick", "reg_slow"}


def test_no_wake_up_is_still_held_when_the_work_ends() -> None:
    """Whatever was held back to go out together has gone out."""
    ledger, wake = MemoryLedger(), Wakes()
    ledger.add(Stage.RESOLVE, *(f"reg_{number}" for number in range(BATCH[Stage.RESOLVE])))
    last = f"reg_{BATCH[Stage.RESOLVE] - 1}"
    run(ledger, raising({last: Transient()}), stage=Stage.RESOLVE, wake=wake)
    assert wake.of(Stage.VALIDATE) == BATCH[Stage.RESOLVE] - 1


def test_spent_budget_leaves_a_wake_up_for_the_rest() -> None:
    """The process goes back to Celery after a batch, and another wake-up leads to what is still due."""
    ledger, wake = MemoryLedger(slots=2), Wakes()
    ledger.add(Stage.RESOLVE, *(f"reg_{number}" for number in range(3 * BATCH[Stage.RESOLVE])))
    before_the_work = 1  # the claim wakes the other slot
    assert run(ledger, stage=Stage.RESOLVE, wake=wake, budget_s=0) == BATCH[Stage.RESOLVE]
    assert len(ledger.due[Stage.RESOLVE]) == 2 * BATCH[Stage.RESOLVE]
    assert wake.of(Stage.RESOLVE) == before_the_work + 2


def test_spent_budget_with_nothing_left_sends_nothing() -> None:
    """No wake-up is sent that would find nothing."""
    ledger, wake = MemoryLedger(), Wakes()
    ledger.add(Stage.PUBLISH, "reg_1")
    run(ledger, lambda _: None, stage=Stage.PUBLISH, wake=wake, budget_s=0)
    assert wake.sent == []


# Keeping leases


def test_leases_are_renewed_while_a_stage_takes_long() -> None:
    """The whole batch is kept, also what is not worked on yet, for several times the length of a lease."""
    ledger = MemoryLedger(lease_s=0.03)
    ledger.add(Stage.ALLOCATE, "reg_slow", "reg_waits")

    def perform(lease: Lease) -> Mapping[str, str | int]:
        if lease.registration.id == "reg_slow":
            wait_until(lambda: renewed(ledger).count("reg_waits") >= 4, what="renewals")
        return NOTHING

    run(ledger, perform)
    assert renewed(ledger).count("reg_slow") >= 3
    assert set(ledger.results) == {"reg_slow", "reg_waits"}


@pytest.fixture
def keeping() -> Iterator[Callable[[MemoryLedger], LeaseKeeper]]:
    """Makes lease keepers, and ends them."""
    made: list[LeaseKeeper] = []

    def make(ledger: Any) -> LeaseKeeper:
        made.append(LeaseKeeper(ledger))
        return made[-1]

    yield make
    for keeper in made:
        keeper.close()


def renewed(ledger: MemoryLedger) -> list[str]:
    """Ids whose leases were renewed, in order."""
    return [lease.registration.id for lease in list(ledger.renewals)]


def claim(ledger: MemoryLedger, *ids: str, stage: Stage = Stage.ALLOCATE) -> tuple[Lease, ...]:
    """Make registrations due and claim them."""
    ledger.add(stage, *ids)
    return ledger.claim(stage, owner="worker").leases


def wait_for_renewals(ledger: MemoryLedger, registration_id: str, count: int = 3) -> None:
    """Wait for so many more renewals."""
    before = renewed(ledger).count(registration_id)
    wait_until(lambda: renewed(ledger).count(registration_id) >= before + count, what=f"renewals of {registration_id}")


Keeping = Callable[[MemoryLedger], LeaseKeeper]


def test_lease_that_is_over_is_no_longer_renewed(keeping: Keeping) -> None:
    """After its body has run a lease is left alone, while others are kept."""
    ledger = MemoryLedger(lease_s=0.03)
    keeper = keeping(ledger)
    with keeper.keep(claim(ledger, "reg_long")):
        with keeper.keep(claim(ledger, "reg_short")):
            wait_for_renewals(ledger, "reg_short")
        wait_for_renewals(ledger, "reg_long", 1)  # a round that had begun is over
        wait_for_renewals(ledger, "reg_long", 1)
        over = renewed(ledger).count("reg_short")
        wait_for_renewals(ledger, "reg_long")
        assert renewed(ledger).count("reg_short") == over


def test_lost_lease_is_not_renewed_and_the_others_are(keeping: Keeping) -> None:
    """One of a batch that another worker took over does not cost the rest their leases."""
    ledger = MemoryLedger(lease_s=0.03)
    with keeping(ledger).keep(claim(ledger, "reg_lost", "reg_kept")):
        wait_for_renewals(ledger, "reg_lost", 1)
        ledger.lose("reg_lost")
        wait_for_renewals(ledger, "reg_kept", 1)
        lost = renewed(ledger).count("reg_lost")
        wait_for_renewals(ledger, "reg_kept")
        assert renewed(ledger).count("reg_lost") == lost


def test_renewals_go_on_after_an_outage(keeping: Keeping) -> None:
    """A server that was away for two rounds is asked again in the next."""
    ledger = MemoryLedger(lease_s=0.03)
    with keeping(ledger).keep(claim(ledger, "reg_1")):
        wait_for_renewals(ledger, "reg_1", 1)
        ledger.away = {"renew"}
        wait_until(lambda: ledger.refused >= 2, what="renewals that did not reach the server")
        ledger.away = set()
        wait_for_renewals(ledger, "reg_1")


def test_one_thread_keeps_all_leases(keeping: Keeping) -> None:
    """Starting a thread for each claim would cost more than many a stage's work."""
    threads: set[int] = set()

    class NotingLedger(MemoryLedger):
        def renew(self, lease: Lease) -> None:
            threads.add(threading.get_ident())
            super().renew(lease)

    ledger = NotingLedger(lease_s=0.03)
    keeper = keeping(ledger)
    for number in range(3):
        with keeper.keep(claim(ledger, f"reg_{number}")):
            wait_for_renewals(ledger, f"reg_{number}", 1)
    assert len(threads - {threading.get_ident()}) == len(threads) == 1


def test_lease_of_the_next_stage_is_kept_though_the_one_before_is_over(keeping: Keeping) -> None:
    """A worker of several stages may claim a registration again while its old lease is being renewed: that the old
    one is lost says nothing about the new one.
    """
    renewing, go_on = threading.Event(), threading.Event()

    class SlowLedger(MemoryLedger):
        def renew(self, lease: Lease) -> None:
            if lease.stage is Stage.ALLOCATE:
                renewing.set()
                go_on.wait(10)
            super().renew(lease)

    ledger = SlowLedger(lease_s=0.03)
    keeper = keeping(ledger)
    (old,) = claim(ledger, "reg_1")
    with keeper.keep((old,)):
        assert renewing.wait(10)
        ledger.complete(old, NOTHING)
    (new,) = ledger.claim(Stage.RESOLVE, owner="worker").leases
    with keeper.keep((new,)):
        go_on.set()
        wait_until(lambda: ledger.renewals.count(new) >= 3, what="renewals of the new lease", timeout_s=5)
