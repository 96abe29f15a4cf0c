"""A place that is slow, or never answers, holds up what is registered from it and nothing else."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from lora_registry.registrations import Outcome
from lora_registry.stages import Stage
from tests.helpers.stack import Stack


@pytest.fixture
def silent_place() -> Iterator[str]:
    """A source whose server accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/adapter"


def test_place_that_never_answers_holds_up_no_other(own_stack: Callable[..., Stack], silent_place: str) -> None:
    """All are due at once, the silent one first: the others are published while its first try still waits."""
    stack = own_stack(allowed_schemes=("file", "http"), allowed_networks=("127.0.0.0/8",))
    stack.dispatchers()
    stack.worker(Stage.ALLOCATE, Stage.VALIDATE, Stage.PUBLISH)
    silent = stack.submit("silent", source=silent_place)  # type: ignore[arg-type] # a URL
    others = [stack.submit(f"adapter-{number}") for number in range(7)]
    for each in (silent, *others):
        stack.wait_for_stage(each, Stage.RESOLVE)
    stack.worker(Stage.RESOLVE, concurrency=2)
    ended = stack.wait_for(others)
    assert {each.outcome for each in ended.values()} == {Outcome.PUBLISHED}
    waiting = stack.client.status(silent)
    assert (waiting.outcome, waiting.stage, waiting.attempts) == (None, Stage.RESOLVE, 0)
    assert stack.times_worked_on(silent, Stage.RESOLVE) == 1
