"""What happens to Celery's messages does not decide what happens to registrations."""

from __future__ import annotations

from pathlib import Path

from lora_registry.registrations import Outcome
from lora_registry.stages import ORDER, Stage
from tests.helpers.stack import Stack, check_promises


def test_wake_up_deleted_from_the_broker_in_every_stage(stack: Stack) -> None:
    """Each stage's only message is deleted before anybody sees it: the sweep sends another, and all are published."""
    broker = stack.registry.client
    stack.dispatchers()
    ids = [stack.submit(f"adapter-{number}") for number in range(5)]
    for stage in ORDER:
        stack.wait_until(lambda stage=stage: broker.delete(stack.queue(stage)), what=f"a wake-up of {stage}")  # type: ignore[misc]
        stack.worker(stage)
        stack.wait_until(
            lambda stage=stage: all(stack.client.status(each).stage != stage for each in ids),  # type: ignore[misc]
            what=f"all through {stage}",
        )
    ended = stack.wait_for(ids)
    assert [ended[each].outcome for each in ids] == [Outcome.PUBLISHED] * 5
    check_promises(stack, ended)


def test_every_message_delivered_twice(stack: Stack) -> None:
    """With every wake-up sent twice, to two workers: the same outcomes, and nothing is announced twice."""
    stack.dispatchers(1, "--double")
    for _ in range(2):
        stack.worker(arguments=["--double"])
    stack.wait_for_slots()
    follower = stack.follower()
    ids = [stack.submit(f"adapter-{number % 4}") for number in range(24)]
    ended = stack.wait_for(ids)
    assert [ended[each].outcome for each in ids] == [Outcome.PUBLISHED] * 24
    assert [ended[each].version for each in ids] == [1 + number // 4 for number in range(24)]
    assert all(stack.times_worked_on(each, stage) == 1 for each in ids for stage in Stage)
    check_promises(stack, ended, follower=follower)


def test_two_validate_workers_are_at_work_at_once(stack: Stack) -> None:
    """After one burst, two validations wait for each other inside their stage, and both come through."""
    stack.dispatchers()
    for stage in (Stage.ALLOCATE, Stage.RESOLVE, Stage.PUBLISH, Stage.VALIDATE, Stage.VALIDATE):
        stack.worker(stage)
    stack.wait_for_slots()
    ids = [stack.submit(f"adapter-{number}", fault="meet:validate:2") for number in range(2)]
    ended = stack.wait_for(ids)
    assert [ended[each].outcome for each in ids] == [Outcome.PUBLISHED] * 2


def test_500_in_one_namespace_do_not_delay_5_in_another(stack: Stack) -> None:
    """The 5 that were queued behind 500 of another namespace have all ended while most of the 500 still wait."""
    source = stack.adapter()
    stack.dispatchers()
    stack.wait_until(lambda: stack.registry.client.hget(stack.registry.keys.server, "run_id"), what="admission")
    flood = [stack.submit(f"adapter-{number}", source=source, namespace="flood") for number in range(500)]
    few = [stack.submit(f"adapter-{number}", source=source, namespace="small") for number in range(5)]
    stack.wait_until(lambda: stack.registry.inbox.waiting() == 0, what="all dispatched")
    for stage in ORDER:
        stack.worker(stage)
    ended = stack.wait_for(few)
    assert {each.outcome for each in ended.values()} == {Outcome.PUBLISHED}
    waiting = [each for each in flood if stack.client.status(each).outcome is None]
    assert len(waiting) > 250


def test_slow_registration_keeps_its_lease_and_delays_no_other(stack: Stack) -> None:
    """One that takes several leases' time in validate is worked on once, and others pass it."""
    stack.dispatchers()
    stack.worker(concurrency=2)
    slow = stack.submit("slow", fault="hold:validate")
    stack.wait_until(lambda: stack.times_worked_on(slow, Stage.VALIDATE), what="the slow one in validate")
    lease = f"{stack.registry.keys.ledger}:leases:validate"
    begun = stack.registry.client.zscore(lease, slow)
    assert begun is not None
    stack.wait_for([stack.submit(f"adapter-{number}") for number in range(5)])
    stack.wait_until(
        lambda: (stack.registry.client.zscore(lease, slow) or 0) > begun + 2e6 * stack.settings.lease_s,
        what="renewals for twice the lease",
    )
    assert stack.client.status(slow).outcome is None
    stack.release()
    assert stack.wait_for([slow])[slow].outcome is Outcome.PUBLISHED
    assert stack.times_worked_on(slow, Stage.VALIDATE) == 1


def test_file_changed_between_resolve_and_validate_is_rejected(stack: Stack) -> None:
    """Bytes that were swapped after the source was pinned are not published under its pin."""
    stack.dispatchers()
    stack.worker()
    each = stack.submit("support-bot", fault="change:validate")
    ended = stack.wait_for([each])[each]
    assert ended.outcome is Outcome.REJECTED
    assert [finding.code for finding in ended.findings] == ["SOURCE_CHANGED"]
    assert not list((Path(stack.settings.artifact_store) / "sha256").iterdir())
