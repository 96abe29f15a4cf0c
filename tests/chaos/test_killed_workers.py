"""Workers and dispatchers that die at the worst moment: every registration still ends once."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from lora_registry.registrations import Outcome
from lora_registry.stages import Stage
from tests.helpers.stack import Stack, check_promises


@pytest.mark.parametrize("stage", list(Stage))
@pytest.mark.parametrize("moment", ["kill-before", "kill-after", "kill-child"])
def test_worker_killed_in_a_stage(running_stack: Stack, stage: Stage, moment: str) -> None:
    """SIGKILL before or after a stage's commit, of the worker or of its pool child: published once, unharmed others."""
    name = f"{moment}-{stage}"
    victim = running_stack.submit(name, fault=f"{moment}:{stage}")
    others = [running_stack.submit(f"{name}-{number}") for number in range(2)]
    ended = running_stack.wait_for([victim, *others])
    assert [ended[each].outcome for each in (victim, *others)] == [Outcome.PUBLISHED] * 3
    assert ended[victim].version == 1
    assert (running_stack.notes / f"{victim}.{moment}").exists(), "nothing was killed"
    assert running_stack.times_worked_on(victim, stage) == (1 if moment == "kill-after" else 2)
    check_promises(running_stack, ended)


def test_process_that_cannot_work_any_more_is_replaced(stack: Stack) -> None:
    """A GPU's error that stays with the process: the failure is recorded, the process ends, the next one does the work.

    What waits behind is done by the next one, too, and the worker itself goes on.
    """
    stack.dispatchers()
    stack.worker(*(stage for stage in Stage if stage is not Stage.VALIDATE))
    unfit, behind = stack.submit("unfit", fault="unfit:validate"), stack.submit("behind")
    worker = stack.worker(Stage.VALIDATE)
    ended = stack.wait_for([unfit, behind])
    assert [ended[each].outcome for each in (unfit, behind)] == [Outcome.PUBLISHED] * 2
    assert stack.times_worked_on(unfit, Stage.VALIDATE) == 2
    (failure,) = stack.registry.client.lrange(stack.registry.keys.history(unfit), 0, -1)
    assert "PROCESS_UNFIT" in failure
    assert "CUDA" in failure
    assert not Path(f"/proc/{(stack.notes / 'unfit-process').read_text()}").exists()
    assert worker.starts == 1


@pytest.mark.parametrize("moment", ["before", "after"])
def test_dispatcher_killed_at_an_event(stack: Stack, moment: str) -> None:
    """SIGKILL of a dispatcher that holds a batch of events: another takes them over, in the order of acceptance."""
    (first,) = stack.dispatchers(1)
    stack.wait_until(lambda: stack.registry.client.hget(stack.registry.keys.server, "run_id"), what="admission")
    first.wanted = False
    first.kill()
    ids = [stack.submit(f"adapter-{number % 3}") for number in range(9)]
    stack.dispatchers(2, "--die", f"{moment}:4")
    stack.worker()
    follower = stack.follower()
    ended = stack.wait_for(ids)
    assert (stack.notes / "dispatcher-died").exists()
    assert [ended[each].outcome for each in ids] == [Outcome.PUBLISHED] * 9
    assert [ended[each].version for each in ids] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    check_promises(stack, ended, follower=follower)


@pytest.mark.parametrize("stage", [Stage.RESOLVE, Stage.VALIDATE])
def test_poison_ends_in_the_dead_letters_and_hurts_no_other(stack: Stack, stage: Stage) -> None:
    """A registration that kills every worker that touches it: bounded attempts; the 50 others are published."""
    stack.dispatchers()
    others = [stack.submit(f"adapter-{number}") for number in range(25)]
    poison = stack.submit("poison", fault=f"poison:{stage}")
    others += [stack.submit(f"adapter-{number}") for number in range(25, 50)]
    for each in (*Stage, Stage.VALIDATE):
        stack.worker(each)
    follower = stack.follower()
    ended = stack.wait_for([poison, *others])
    assert ended[poison].outcome is Outcome.DEAD_LETTERED
    assert [ended[each].outcome for each in others] == [Outcome.PUBLISHED] * 50
    letter = stack.registry.ledger.dead_letter(poison)
    assert [entry["code"] for entry in letter.history] == ["WORKER_LOST"] * stack.settings.max_attempts
    # It was claimed alone each time, but for the first if that was with a batch.
    assert stack.times_worked_on(poison, stage) <= stack.settings.max_attempts + 1
    assert stack.registry.catalog.base_of(ended[poison].adapter) is None
    check_promises(stack, ended, follower=follower)


def test_redriven_dead_letter_is_published(stack: Stack) -> None:
    """Once what killed it is mended, a dead letter that is retried goes through."""
    stack.dispatchers()
    stack.worker()
    dead = stack.submit("support-bot", fault="poison:resolve")
    assert stack.wait_for([dead])[dead].outcome is Outcome.DEAD_LETTERED
    stack.registry.client.hset(stack.registry.keys.registration(dead), "labels", "{}")
    stack.registry.ledger.redrive(dead)
    assert stack.wait_for([dead])[dead].outcome is Outcome.PUBLISHED


def test_processes_killed_at_random_while_everything_works(stack: Stack) -> None:
    """SIGKILL of a random worker or dispatcher, 20 times under load: every event ends once, and subscribers agree."""
    dice = random.Random(20)
    stack.settings = stack.settings.model_copy(update={"max_attempts": 20})  # none is poison, however often it is hit
    stack.dispatchers(2)
    for stage in Stage:
        stack.worker(stage)
    victims = list(stack.processes)
    follower = stack.follower()
    ids = [stack.submit(f"adapter-{number % 12}") for number in range(200)]
    for kill in range(20):
        stack.wait_until(lambda kill=kill: ended_of(stack, ids) >= kill * 8, what=f"{kill * 8} outcomes")  # type: ignore[misc]
        dice.choice(victims).kill()
    ended = stack.wait_for(ids)
    assert {each.outcome for each in ended.values()} == {Outcome.PUBLISHED}
    for number in range(12):
        events = [ended[each] for each in ids[number::12]]
        assert [each.version for each in events] == list(range(1, len(events) + 1))
        assert stack.registry.version(f"adapter-{number}").registration_id == events[-1].id
    check_promises(stack, ended, follower=follower)


def ended_of(stack: Stack, ids: list[str]) -> int:
    """How many have an outcome."""
    return sum(stack.client.status(each).outcome is not None for each in ids)


def test_worker_told_to_stop_gives_back_what_it_cannot_finish(stack: Stack) -> None:
    """SIGTERM while a stage works: the process ends, and its registration is published by another worker."""
    stack.dispatchers()
    worker = stack.worker()
    held = stack.submit("support-bot", fault="hold:validate")
    stack.wait_until(lambda: stack.times_worked_on(held, Stage.VALIDATE), what="the held one in validate")
    worker.signal(signal.SIGTERM)
    stack.wait_until(lambda: worker.exits, what="the worker's end and restart")
    stack.release()
    assert stack.wait_for([held])[held].outcome is Outcome.PUBLISHED
