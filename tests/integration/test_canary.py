"""The canary stage in real worker processes, against (a stand-in for) vLLM: what it finds out, and what it survives."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_registry.findings import Severity
from lora_registry.registrations import Outcome, Registration
from lora_registry.stages import ALWAYS, ORDER, Stage
from lora_registry.stages.canary import CANDIDATE_PREFIX
from tests.helpers.adapters_on_disk import fill
from tests.helpers.keys import leaked_keys
from tests.helpers.registry import BASE
from tests.helpers.servers import remove_keys
from tests.helpers.stack import Stack, make_settings
from tests.helpers.vllm_server import VllmServer, vllm_server


@pytest.fixture
def engine() -> Iterator[VllmServer]:
    """A running stand-in."""
    with vllm_server() as server:
        yield server


Start = Callable[..., Stack]


@pytest.fixture
def start(server_url: str, engine: VllmServer, tmp_path: Path) -> Iterator[Start]:
    """Starts a stack whose base model has the canary engine."""
    prefix, stacks = f"{{test-{secrets.token_hex(6)}}}", []

    def start(*, more_workers: int = 0, **changes: object) -> Stack:
        engines = {BASE: f"vllm@{engine.url}"}
        fields = {"lease_s": 3.0, "stall_timeout_s": 30.0, "canary_engines": engines} | changes
        stack = Stack(make_settings(server_url, tmp_path, key_prefix=prefix, **fields), tmp_path)
        stacks.append(stack)
        stack.dispatchers()
        stack.worker(*ORDER)
        for _ in range(more_workers):
            stack.worker(Stage.CANARY)
        stack.wait_for_slots()
        return stack

    yield start
    for stack in stacks:
        stack.close()
    leaked = leaked_keys(stacks[0].registry.client, prefix)
    remove_keys(stacks[0].registry.client, prefix)
    assert not leaked, f"keys without an end: {leaked}"


def outcome_of(stack: Stack, registration_id: str) -> Registration:
    """How it ended."""
    return stack.wait_for([registration_id])[registration_id]


def error_of(registration: Registration) -> tuple[Outcome | None, str, str]:
    """Outcome, and the code and what was found of its one error."""
    (finding,) = (each for each in registration.findings if each.severity is Severity.ERROR)
    return registration.outcome, finding.code, finding.actual


def test_each_candidate_gets_its_verdict_and_leaves_nothing_behind(start: Start, engine: VllmServer) -> None:
    """Good: published. NaN, no effect, too large for the engine: rejected, in its words. One at a time, none stays."""
    stack = start(more_workers=1)
    good, silent, broken = stack.adapter(), stack.adapter(), stack.adapter()
    fill(silent, 0.0, ending="lora_B.weight")
    fill(broken, float("nan"), ending="lora_B.weight")
    names = {"good": good, "silent": silent, "broken": broken, "also-good": stack.adapter()}
    ids = {name: stack.submit(name, source=source) for name, source in names.items()}
    ended = stack.wait_for(ids.values())
    assert ended[ids["good"]].outcome is ended[ids["also-good"]].outcome is Outcome.PUBLISHED
    assert "canary" in ended[ids["good"]].timings_ms
    assert error_of(ended[ids["silent"]])[:2] == (Outcome.REJECTED, "CANARY_NO_EFFECT")
    assert error_of(ended[ids["broken"]])[:2] == (Outcome.REJECTED, "CANARY_NOT_FINITE")

    engine.max_lora_rank = 4
    refused = outcome_of(stack, stack.submit("too-large"))
    assert error_of(refused)[:2] == (Outcome.REJECTED, "CANARY_NOT_LOADED")
    assert "LoRA rank 8 is greater than max_lora_rank 4" in error_of(refused)[2]

    assert engine.loaded == {}
    assert engine.most_loaded == 1
    asked = set(engine.asked("/v1/load_lora_adapter"))
    assert len(asked) == 5
    assert all(name.startswith(f"{CANDIDATE_PREFIX}reg_") for name in asked)


def test_what_is_loaded_and_not_applied_is_rejected(start: Start, engine: VllmServer) -> None:
    """The engine says 200 and answers as the base model: nothing is published, and the finding says so."""
    engine.applies = False
    stack = start()
    assert error_of(outcome_of(stack, stack.submit("ignored-bot")))[:2] == (Outcome.REJECTED, "CANARY_NO_EFFECT")
    assert engine.loaded == {}


def test_engine_that_is_down_is_waited_for_and_blames_nobody(start: Start, engine: VllmServer) -> None:
    """Away, then answering 503: tried again each time, and published once it is up; never rejected."""
    engine.is_up = False
    stack = start(max_attempts=100)
    waiting = stack.submit("patient-bot")
    stack.wait_until(lambda: stack.client.status(waiting).attempts >= 2, what="two tries on an engine that is away")
    engine.healthy, engine.is_up = False, True
    tried = stack.client.status(waiting).attempts
    stack.wait_until(lambda: stack.client.status(waiting).attempts > tried, what="a try on one that is unwell")
    assert stack.client.status(waiting).stage == Stage.CANARY
    engine.healthy = True
    assert outcome_of(stack, waiting).outcome is Outcome.PUBLISHED


def test_engine_that_stays_down_ends_in_the_dead_letters(start: Start, engine: VllmServer) -> None:
    """The history says which engine and why; driven again after the repair, it is published."""
    engine.is_up = False
    stack = start(max_attempts=2)
    dead = stack.submit("late-bot")
    assert outcome_of(stack, dead).outcome is Outcome.DEAD_LETTERED
    (letter,) = stack.registry.ledger.dead_letters()
    assert (letter.stage, letter.history[-1]["code"]) == (Stage.CANARY, "CANARY_ENGINE_UNFIT")
    assert engine.url in letter.history[-1]["error"]
    engine.is_up = True
    stack.registry.ledger.redrive(dead)
    assert outcome_of(stack, dead).outcome is Outcome.PUBLISHED


def test_candidate_of_a_killed_worker_is_unloaded_and_tried_again(start: Start, engine: VllmServer) -> None:
    """SIGKILL while it is loaded: another attempt unloads what was left, under its own new name, and publishes."""
    stack = start()
    engine.let_answer.clear()
    registration_id = stack.submit("interrupted-bot")
    stack.wait_until(lambda: any(model != "base" for model in engine.asked("/v1/completions")), what="the question")
    (left,) = engine.loaded
    stack.processes[-1].kill()
    engine.let_answer.set()
    assert outcome_of(stack, registration_id).outcome is Outcome.PUBLISHED
    assert engine.loaded == {}
    loads = engine.asked("/v1/load_lora_adapter")
    assert loads[0] == left
    assert loads[1] != left
    assert engine.calls.index(("/v1/unload_lora_adapter", left)) < engine.calls.index(
        ("/v1/load_lora_adapter", loads[1])
    )
    assert engine.most_loaded == 1


def test_candidates_are_copied_for_an_engine_that_does_not_see_the_store(
    start: Start, engine: VllmServer, tmp_path: Path
) -> None:
    """With a directory of its own the engine loads from there, and afterwards nothing is kept there."""
    shared = tmp_path / "shared"
    stack = start(canary_directory=shared)
    engine.let_answer.clear()
    registration_id = stack.submit("copied-bot")
    stack.wait_until(lambda: engine.loaded, what="the candidate")
    (path,) = engine.loaded.values()
    assert Path(path).is_relative_to(shared)
    engine.let_answer.set()
    assert outcome_of(stack, registration_id).outcome is Outcome.PUBLISHED
    stack.wait_until(lambda: not Path(path).exists(), what="an empty directory")


def test_engine_that_does_not_see_the_files_is_no_verdict(start: Start, engine: VllmServer, tmp_path: Path) -> None:
    """A 404 for files that are there is a wrong mount: a dead letter that says so, and not a rejection."""
    stack = start(max_attempts=2)
    hidden = Path(stack.settings.artifact_store) / "sha256"

    engine_answer = engine.answer
    engine.answer = lambda path, body: engine_answer(  # type: ignore[method-assign]
        path, {**body, "lora_path": "/not/mounted"} if "lora_path" in body else body
    )
    assert outcome_of(stack, stack.submit("unseen-bot")).outcome is Outcome.DEAD_LETTERED
    (letter,) = stack.registry.ledger.dead_letters()
    assert "NODE_ENGINE_BLIND" in letter.history[-1]["error"]
    assert any(hidden.iterdir())


def test_without_an_engine_there_is_no_such_stage(server_url: str, tmp_path: Path) -> None:
    """No worker of the stage, no wake-up for it, and registrations pass it over."""
    prefix = f"{{test-{secrets.token_hex(6)}}}"
    stack = Stack(make_settings(server_url, tmp_path, key_prefix=prefix), tmp_path)
    try:
        stack.dispatchers()
        stack.worker(*ALWAYS)
        registration = outcome_of(stack, stack.submit("plain-bot"))
        assert registration.outcome is Outcome.PUBLISHED
        assert set(registration.timings_ms) >= set(ALWAYS) - {Stage.PUBLISH}
        assert Stage.CANARY not in registration.timings_ms
        assert stack.registry.client.exists(stack.queue(Stage.CANARY)) == 0
        assert stack.registry.client.exists(f"{stack.registry.keys.ledger}:wake:{Stage.CANARY}") == 0
    finally:
        stack.close()
    remove_keys(stack.registry.client, prefix)


def test_registration_whose_engine_was_taken_away_goes_on(start: Start, engine: VllmServer) -> None:
    """The setting goes while one waits in the stage: a dispatcher with the new settings hands it on."""
    engine.is_up = False
    stack = start(max_attempts=100)
    stuck = stack.submit("stuck-bot")
    stack.wait_until(lambda: stack.client.status(stuck).attempts >= 1, what="a try")
    for each in stack.processes:
        each.wanted = False
        each.kill()
    stack.settings = stack.settings.model_copy(update={"canary_engines": {}})
    stack.start("dispatcher")
    stack.worker(*ALWAYS)
    assert outcome_of(stack, stuck).outcome is Outcome.PUBLISHED
