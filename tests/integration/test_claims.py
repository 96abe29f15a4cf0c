"""Claims, leases, attempts and dead letters: what the ledger's scripts promise, on a real server."""

from __future__ import annotations

import itertools
import json
import time

import pytest

from lora_registry import codes, file_codes
from lora_registry.all_codes import CODES
from lora_registry.errors import Deferred, LeaseLost, NotFound, RateLimited, RedisUnavailable, Rejected, Transient
from lora_registry.leases import LeaseKeeper
from lora_registry.ledger import Lease
from lora_registry.registrations import Outcome
from lora_registry.stages import BATCH, Stage
from lora_registry.work import work
from tests.helpers.registry import Registry
from tests.helpers.waiting import wait_until

SHORT = 0.05


def fill(registry: Registry, count: int, *, namespace: str = "default") -> list[str]:
    """Make `count` registrations due in the first stage."""
    ids = [registry.submit(f"adapter-{number}", namespace=namespace) for number in range(count)]
    registry.dispatch()
    return ids


def now_us(registry: Registry) -> int:
    """The server's clock."""
    seconds, microseconds = registry.client.time()
    return seconds * 1_000_000 + microseconds


def ids_of(leases: tuple[Lease, ...]) -> list[str]:
    """The registrations of leases."""
    return [lease.registration.id for lease in leases]


def test_a_claim_takes_a_batch_in_the_order_of_arrival(registry: Registry) -> None:
    """One claim brings as many registrations as the stage's batch, oldest first, and none twice."""
    ids = fill(registry, BATCH[Stage.ALLOCATE] + 7)
    first, second = registry.claim(Stage.ALLOCATE), registry.claim(Stage.ALLOCATE)
    assert ids_of(first) == ids[: BATCH[Stage.ALLOCATE]]
    assert ids_of(second) == ids[BATCH[Stage.ALLOCATE] :]
    assert registry.claim(Stage.ALLOCATE) == ()


def test_validate_claims_one_at_a_time(registry: Registry) -> None:
    """The stage that reads what others wrote takes one registration, so nothing shares its fate."""
    for name in ("a", "b"):
        registry.submit(name)
    for lease in registry.advance(Stage.RESOLVE).values():
        registry.complete(lease)
    assert [len(registry.claim(Stage.VALIDATE)) for _ in range(3)] == [1, 1, 0]


def test_flood_in_one_namespace_delays_no_other(registry: Registry) -> None:
    """Behind 500 registrations of one namespace, 5 of another are all in the first claims, in equal shares."""
    fill(registry, 500, namespace="flood")
    few = fill(registry, 5, namespace="small")
    first = ids_of(registry.claim(Stage.ALLOCATE))
    assert set(few) <= set(first)


def test_flood_delays_no_other_where_one_is_claimed_at_a_time(registry: Registry) -> None:
    """With single claims the namespaces take turns: the 5 are through after at most 10 claims."""
    fill(registry, 500, namespace="flood")
    few = fill(registry, 5, namespace="small")
    first = [registry.claim(Stage.ALLOCATE, limit=1)[0].registration.id for _ in range(10)]
    assert set(few) <= set(first)


def test_interrupted_batch_is_next_claimed_one_by_one_and_costs_no_attempt(registry: Registry) -> None:
    """After a worker died with a batch, each of its registrations is claimed alone, with all its attempts left."""
    registry = registry.with_settings(lease_s=SHORT)
    ids = fill(registry, 3)
    assert len(registry.claim(Stage.ALLOCATE, owner="dead")) == 3
    patient = registry.with_settings(lease_s=60.0)
    again = [patient.claim_when_due(Stage.ALLOCATE) for _ in ids]
    assert [len(leases) for leases in again] == [1, 1, 1]
    assert sorted(leases[0].registration.id for leases in again) == sorted(ids)
    assert [leases[0].registration.attempts for leases in again] == [0, 0, 0]


def test_interrupted_registration_does_not_take_a_fresh_one_into_its_next_claim(registry: Registry) -> None:
    """A suspect is alone in its claim even when others are due; the others are claimed as usual."""
    registry = registry.with_settings(lease_s=SHORT)
    suspects = set(fill(registry, 2))
    registry.claim(Stage.ALLOCATE, owner="dead")
    fresh = {registry.enqueue(f"fresh-{number}") for number in range(3)}
    patient = registry.with_settings(lease_s=60.0)
    claims: list[list[str]] = []

    def everything_claimed() -> bool:
        claims.append(ids_of(patient.claim(Stage.ALLOCATE)))
        return suspects | fresh == {each for claim in claims for each in claim}

    wait_until(everything_claimed, what="all five claimed")
    assert all(len(claim) == 1 for claim in claims if suspects & set(claim))


def test_worker_lost_alone_is_an_attempt(registry: Registry) -> None:
    """A lease that runs out on a single registration counts, and the history says so."""
    registry = registry.with_settings(lease_s=SHORT)
    fill(registry, 1)
    registry.claim(Stage.ALLOCATE, owner="dead")
    (lease,) = registry.claim_when_due(Stage.ALLOCATE)
    assert lease.registration.attempts == 1
    history = registry.keys.history(lease.registration.id)
    (entry,) = (json.loads(each) for each in registry.client.lrange(history, 0, -1))
    assert (entry["code"], entry["stage"]) == ("WORKER_LOST", "allocate")


def test_registration_that_loses_every_worker_is_dead_lettered_with_its_history(registry: Registry) -> None:
    """After the last attempt it ends as dead-lettered; the history names each lost worker."""
    registry = registry.with_settings(lease_s=SHORT, max_attempts=3)
    (poison,) = fill(registry, 1)

    def ended() -> bool:
        registry.claim(Stage.ALLOCATE, owner="dies")
        return registry.outcome(poison) is not None

    wait_until(ended, what="dead letter")
    letter = registry.ledger.dead_letter(poison)
    assert letter.registration.outcome is Outcome.DEAD_LETTERED
    assert letter.stage == Stage.ALLOCATE
    assert [entry["code"] for entry in letter.history] == ["WORKER_LOST"] * 3
    assert [entry["attempt"] for entry in letter.history] == [1, 2, 3]
    assert [each.registration.id for each in registry.ledger.dead_letters()] == [poison]
    assert registry.claim(Stage.ALLOCATE) == ()


def test_transient_failure_comes_again_after_a_backoff_that_doubles(registry: Registry) -> None:
    """Each failure waits twice as long as the one before, and the last dead-letters."""
    registry = registry.with_settings(max_attempts=3, backoff_first_s=0.01, backoff_max_s=0.05)
    (failing,) = fill(registry, 1)
    for attempt in (1, 2):
        (lease,) = registry.claim_when_due(Stage.ALLOCATE)
        assert registry.ledger.fail(lease, Transient("the disk is away")) is False
        assert registry.ledger.get(failing).attempts == attempt
    (lease,) = registry.claim_when_due(Stage.ALLOCATE)
    assert registry.ledger.fail(lease, Transient("the disk is away")) is True
    history = registry.ledger.dead_letter(failing).history
    assert [(entry["attempt"], entry["code"]) for entry in history] == [(each, "TRANSIENT") for each in (1, 2, 3)]
    assert "the disk is away" in history[0]["error"]


def test_failed_registration_is_not_due_before_its_backoff(registry: Registry) -> None:
    """During the backoff nobody can claim it."""
    registry = registry.with_settings(backoff_first_s=60.0)
    fill(registry, 1)
    (lease,) = registry.claim(Stage.ALLOCATE)
    registry.ledger.fail(lease, Transient())
    assert registry.claim(Stage.ALLOCATE) == ()


MISSING = file_codes.FILE_MISSING.finding("adapter_model.safetensors")


def test_deferred_registration_comes_again_and_costs_no_attempt(registry: Registry) -> None:
    """However often it is looked at before its deadline, no attempt is counted, and it can still be handed on."""
    registry = registry.with_settings(max_attempts=2, backoff_first_s=0.005, backoff_max_s=0.01)
    (waiting,) = fill(registry, 1)
    for _ in range(5):
        (lease,) = registry.claim_when_due(Stage.ALLOCATE)
        assert registry.ledger.defer(lease, Deferred("no weights", findings=(MISSING,), deadline_s=60)) is False
        assert registry.ledger.get(waiting).attempts == 0
    (lease,) = registry.claim_when_due(Stage.ALLOCATE)
    registry.complete(lease)
    assert registry.ledger.get(waiting).stage == Stage.RESOLVE


def test_deferral_ends_at_the_deadline_in_a_rejection_with_its_reason(registry: Registry) -> None:
    """The last look is at the deadline, however long the pauses have become; then it is rejected as what it is."""
    registry = registry.with_settings(backoff_first_s=300.0, backoff_max_s=300.0)
    (waiting,) = fill(registry, 1)
    late = Deferred("no weights", findings=(MISSING,), deadline_s=0.2)
    (lease,) = registry.claim(Stage.ALLOCATE)
    assert registry.ledger.defer(lease, late) is False
    (lease,) = registry.claim_when_due(Stage.ALLOCATE)
    assert registry.ledger.defer(lease, late) is True
    ended = registry.ledger.get(waiting)
    assert (ended.outcome, ended.findings) == (Outcome.REJECTED, (MISSING,))
    assert registry.claim(Stage.ALLOCATE) == ()
    assert registry.client.ttl(registry.keys.registration(waiting)) > 0


def test_redriven_registration_has_its_time_for_an_upload_anew(registry: Registry) -> None:
    """What died of something else is not rejected as incomplete at the first look after it is redriven."""
    one = registry.with_settings(max_attempts=1)
    (waiting,) = fill(one, 1)
    (lease,) = one.claim(Stage.ALLOCATE)
    one.client.hset(one.keys.registration(waiting), "dispatched_at", 1)
    one.ledger.fail(lease, Transient("out of reach"))
    one.ledger.redrive(waiting)
    (lease,) = one.claim_when_due(Stage.ALLOCATE)
    assert one.ledger.defer(lease, Deferred("no weights", findings=(MISSING,), deadline_s=60)) is False


def test_pauses_between_looks_double(registry: Registry) -> None:
    """An upload of hours is not asked for every second."""
    registry = registry.with_settings(backoff_first_s=0.02, backoff_max_s=60.0)
    fill(registry, 1)
    times = []
    for _ in range(4):
        (lease,) = registry.claim_when_due(Stage.ALLOCATE)
        times.append(time.monotonic())
        registry.ledger.defer(lease, Deferred("no weights", findings=(MISSING,), deadline_s=60))
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(pause >= least for pause, least in zip(pauses, (0.02, 0.04, 0.08), strict=True))


def test_rate_limit_is_waited_out_as_long_as_it_says(registry: Registry) -> None:
    """Retry-After is the least pause."""
    registry = registry.with_settings(backoff_first_s=0.001)
    fill(registry, 1)
    (lease,) = registry.claim(Stage.ALLOCATE)
    failed_at = time.monotonic()
    registry.ledger.fail(lease, RateLimited("slowly", retry_after_s=0.2))
    registry.claim_when_due(Stage.ALLOCATE)
    assert time.monotonic() - failed_at >= 0.2


def test_error_text_cannot_break_the_history(registry: Registry) -> None:
    """Whatever an error says, quotes and control characters included, the history stays readable."""
    (each,) = fill(registry, 1)
    (lease,) = registry.claim(Stage.ALLOCATE)
    registry.with_settings(max_attempts=1).ledger.fail(lease, ValueError('"}, % \\ \x00 ü %d'))
    (entry,) = registry.ledger.dead_letter(each).history
    assert entry["code"] == "UNEXPECTED"
    assert '"}, % \\ \x00 ü %d' in entry["error"]


def test_redriven_dead_letter_goes_on_where_it_died(registry: Registry) -> None:
    """`dead-letters retry` makes it due in its stage with all attempts, without an end, and it can be published."""
    one = registry.with_settings(max_attempts=1)
    each = one.submit()
    lease = one.advance(Stage.RESOLVE)[each]
    one.ledger.fail(lease, Transient())
    assert one.client.ttl(one.keys.registration(each)) > 0
    one.ledger.redrive(each)
    redriven = one.ledger.get(each)
    assert (redriven.outcome, redriven.stage, redriven.attempts) == (None, Stage.RESOLVE, 0)
    assert one.client.ttl(one.keys.registration(each)) == -1
    assert one.ledger.dead_letters() == []
    (lease,) = one.claim(Stage.RESOLVE)
    one.complete(lease)
    assert one.publish(one.advance(Stage.PUBLISH)[each]).outcome is Outcome.PUBLISHED


def test_only_dead_letters_can_be_redriven(registry: Registry) -> None:
    """A registration that runs, one that was published and one that never was are no dead letters."""
    done = registry.register()
    for each in (registry.enqueue("other"), done.id, "reg_nothing"):
        with pytest.raises(NotFound):
            registry.ledger.redrive(each)


def test_renewed_lease_is_not_claimed_by_others(registry: Registry) -> None:
    """As long as its owner renews, a registration stays with it beyond the first lease."""
    short = registry.with_settings(lease_s=SHORT)
    fill(short, 1)
    (lease,) = short.claim(Stage.ALLOCATE, owner="slow")
    ends_us = now_us(registry) + SHORT * 1_000_000
    registry.ledger.renew(lease)  # for 30 s
    due = f"{registry.keys.ledger}:due:allocate:default"
    wait_until(lambda: now_us(registry) > ends_us, what="the end of the first lease")
    assert registry.client.zscore(due, lease.registration.id) > now_us(registry) + 20_000_000
    assert short.claim(Stage.ALLOCATE, owner="other") == ()
    short.complete(lease)


@pytest.mark.parametrize("stale", ["epoch", "owner"])
def test_whoever_lost_the_lease_writes_nothing(registry: Registry, stale: str) -> None:
    """With an old epoch, or another owner, every write is LeaseLost and the registration stays as it was."""
    short = registry.with_settings(lease_s=SHORT)
    (each,) = fill(short, 1)
    (old,) = short.claim(Stage.ALLOCATE, owner="same" if stale == "epoch" else "first")
    registry.claim_when_due(Stage.ALLOCATE, owner="same" if stale == "epoch" else "second")
    before = registry.client.hgetall(registry.keys.registration(each))
    for write in (
        lambda: registry.ledger.allocate(old),
        lambda: registry.ledger.complete(old, {"stolen": "yes"}),
        lambda: registry.ledger.finish(old, Outcome.REJECTED),
        lambda: registry.ledger.fail(old, Transient()),
        lambda: registry.ledger.defer(old, Deferred(deadline_s=60)),
        lambda: registry.ledger.defer(old, Deferred(deadline_s=0)),
        lambda: registry.ledger.renew(old),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert registry.client.hgetall(registry.keys.registration(each)) == before


def test_completing_twice_is_lease_lost(registry: Registry) -> None:
    """The same owner cannot hand a registration on twice: the second time it is another stage's."""
    fill(registry, 1)
    (lease,) = registry.claim(Stage.ALLOCATE)
    registry.complete(lease)
    with pytest.raises(LeaseLost):
        registry.ledger.complete(lease, {})


def test_a_finished_registration_expires_with_everything_that_belongs_to_it(registry: Registry) -> None:
    """Outcome set, the registration, its history and its idempotency key all have an end; waiting ones have none."""
    registry = registry.with_settings(backoff_first_s=0.001)
    rejected, waiting = registry.enqueue("a", key="k-1"), registry.enqueue("b", key="k-2")
    for lease in registry.claim(Stage.ALLOCATE):
        if lease.registration.id == rejected:
            registry.ledger.fail(lease, Transient())
    (lease,) = registry.claim_when_due(Stage.ALLOCATE)
    registry.ledger.finish(lease, Outcome.REJECTED)
    keys = registry.keys
    for key in (keys.registration(rejected), keys.history(rejected), keys.idempotency("default", "k-1")):
        assert 0 < registry.client.ttl(key) <= registry.settings.retention_s
    for key in (keys.registration(waiting), keys.idempotency("default", "k-2")):
        assert registry.client.ttl(key) == -1


def test_dead_letters_are_kept_longer_and_trimmed_by_the_sweep(registry: Registry) -> None:
    """Their retention is their own; a sweep forgets the entries of those that are past it."""
    registry = registry.with_settings(max_attempts=1, retention_s=10, dead_letter_retention_s=1000)
    (each,) = fill(registry, 1)
    (lease,) = registry.claim(Stage.ALLOCATE)
    registry.ledger.fail(lease, Transient())
    assert registry.client.ttl(registry.keys.registration(each)) > 10
    registry.client.zadd(registry.keys.dead_letters, {"reg_long_gone": 1})
    registry.ledger.sweep(Stage.ALLOCATE)
    assert registry.client.zrange(registry.keys.dead_letters, 0, -1) == [each]


def test_at_most_32_findings_are_kept_errors_first(registry: Registry) -> None:
    """An adapter with hundreds of findings does not fill Redis, and its errors are among the kept ones."""
    (each,) = fill(registry, 1)
    (lease,) = registry.claim(Stage.ALLOCATE)
    warning = next(code for code in CODES.values() if code.severity == "warning")
    findings = (*[warning.finding(str(n)) for n in range(100)], codes.BASE_UNKNOWN.finding("the error"))
    registry.ledger.finish(lease, Outcome.REJECTED, findings)
    kept = registry.ledger.get(each).findings
    assert len(kept) == 32
    assert kept[0].subject == "the error"


def test_one_bad_registration_in_a_batch_hurts_no_other(registry: Registry) -> None:
    """Rejected, failed and crashed ones are recorded with themselves; all the others of the batch go on."""
    ids = fill(registry, 10)
    faults: dict[str, Exception] = {
        ids[2]: Rejected("no"),
        ids[5]: Transient("later"),
        ids[7]: RuntimeError("a bug"),
        ids[8]: LeaseLost(),
    }

    def perform(lease: Lease) -> dict[str, str | int]:
        if lease.registration.id in faults:
            raise faults[lease.registration.id]
        return {}

    sent: list[tuple[Stage, int]] = []
    done = work(
        Stage.ALLOCATE,
        perform,
        ledger=registry.ledger,
        keeper=LeaseKeeper(registry.ledger),
        wake=lambda stage, count: sent.append((stage, count)),
        owner="worker",
        budget_s=60,
    )
    assert done == 10
    stages = [registry.ledger.get(each).stage for each in ids]
    bad = {2: "", 5: "allocate", 7: "allocate", 8: "allocate"}
    assert stages == [bad.get(number, "resolve") for number in range(10)]
    assert registry.outcome(ids[2]) is Outcome.REJECTED
    assert (Stage.RESOLVE, 1) in sent


def test_long_work_keeps_its_lease(registry: Registry) -> None:
    """While a stage works for longer than a lease, nobody else can claim its registration."""
    registry = registry.with_settings(lease_s=0.3)
    fill(registry, 1)
    thieves: list[int] = []

    def perform(lease: Lease) -> dict[str, str | int]:
        ends_us = now_us(registry) + 900_000  # three leases
        while now_us(registry) < ends_us:
            thieves.append(len(registry.claim(Stage.ALLOCATE, owner="thief", woken=False)))
        return {}

    keeper = LeaseKeeper(registry.ledger)
    work(
        Stage.ALLOCATE, perform, ledger=registry.ledger, keeper=keeper, wake=lambda *_: None, owner="slow", budget_s=60
    )
    keeper.close()
    assert set(thieves) == {0}
    assert registry.ledger.pulse(Stage.RESOLVE).due == 1


def test_server_away_while_working_loses_nothing(registry: Registry) -> None:
    """A result that could not be written is due again when the lease runs out."""
    registry = registry.with_settings(lease_s=SHORT)
    (each,) = fill(registry, 1)

    class Away:
        def __getattr__(self, name: str) -> object:
            return getattr(registry.ledger, name)

        def complete(self, *_: object) -> int:
            raise RedisUnavailable

        fail = complete

    claims = 0

    def perform(_: Lease) -> dict[str, str | int]:
        nonlocal claims
        claims += 1
        return {}

    keeper = LeaseKeeper(registry.ledger)
    work(Stage.ALLOCATE, perform, ledger=Away(), keeper=keeper, wake=lambda *_: None, owner="w", budget_s=0)  # type: ignore[arg-type]
    keeper.close()
    assert claims == 1
    (lease,) = registry.with_settings(lease_s=60.0).claim_when_due(Stage.ALLOCATE)
    assert lease.registration.id == each


def test_history_is_bounded(registry: Registry) -> None:
    """However often a registration is redriven, at most 50 failures are kept."""
    registry = registry.with_settings(max_attempts=1)
    (each,) = fill(registry, 1)
    for _ in range(60):
        (lease,) = registry.claim(Stage.ALLOCATE)
        registry.ledger.fail(lease, Transient())
        registry.ledger.redrive(each)
    (lease,) = registry.claim(Stage.ALLOCATE)
    registry.ledger.fail(lease, Transient())
    entries = registry.client.lrange(registry.keys.history(each), 0, -1)
    assert len(entries) == 50
    assert json.loads(entries[-1])["attempt"] == 1


def test_two_suspects_are_never_leased_at_once(registry: Registry) -> None:
    """Two registrations whose worker died with both are tried one after the other, not together again.

    Otherwise one that kills the whole worker would cost the other one all its attempts, too.
    """
    short = registry.with_settings(lease_s=SHORT)
    ids = set(fill(short, 2))
    for _ in ids:
        assert len(short.claim(Stage.ALLOCATE, owner="worker", limit=1)) == 1
    # Both leases run out. Whichever is claimed first, the other one waits for its lease to end.
    (first,) = registry.claim_when_due(Stage.ALLOCATE, limit=1)
    assert ids_of((first,))[0] in ids
    assert first.registration.attempts == 1
    wait_until(lambda: short.ledger.pulse(Stage.ALLOCATE).due == 1, what="the second lease to run out")
    assert [registry.claim(Stage.ALLOCATE, limit=1) for _ in range(3)] == [(), (), ()]
    registry.complete(first)


def test_suspect_is_claimed_once_the_other_is_done(registry: Registry) -> None:
    """A suspect that waited for another one is claimed, and can be completed, when that one's lease is over."""
    short = registry.with_settings(lease_s=SHORT)
    ids = set(fill(short, 2))
    for _ in ids:
        short.claim(Stage.ALLOCATE, owner="worker", limit=1)
    done = set()
    for _ in ids:
        (lease,) = short.claim_when_due(Stage.ALLOCATE, limit=1)
        short.complete(lease)
        done.add(lease.registration.id)
    assert done == ids
