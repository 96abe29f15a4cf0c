"""A place that is slow, or never answers, holds up what is registered from it and nothing else."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from lora_registry.registrations import Outcome
from lora_registry.stages import Stage
from tests.helpers.stack import Stack


@pytest.fixture
def silent_place() -> Iterator[str]:
    """A source whose server accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/adapter"


@pytest.fixture
def dripping_place() -> Iterator[str]:
    """A source whose server answers with one more byte of an endless header every 50 ms."""
    is_over = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Drip: ")
            while not is_over.wait(0.05):
                connection.sendall(b"x")

    def serve(server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=drip, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/adapter"
        is_over.set()
        server.shutdown(socket.SHUT_RDWR)


def test_place_that_drips_is_left_and_tried_again(own_stack: Callable[..., Stack], dripping_place: str) -> None:
    """No read of it ever takes long, yet the only process is free again in time; the history has the code."""
    stack = own_stack(
        allowed_schemes=("file", "http"),
        allowed_networks=("127.0.0.0/8",),
        resolve_time_limit_s=0.5,
        max_attempts=2,
        backoff_first_s=0.1,
    )
    stack.dispatchers()
    stack.worker()
    slow = stack.submit("slow", source=dripping_place)  # type: ignore[arg-type] # a URL
    stack.wait_for_stage(slow, Stage.RESOLVE)
    other = stack.submit("other")
    ended = stack.wait_for([slow, other])
    assert (ended[slow].outcome, ended[other].outcome) == (Outcome.DEAD_LETTERED, Outcome.PUBLISHED)
    failures = stack.registry.client.lrange(stack.registry.keys.history(slow), 0, -1)
    assert [json.loads(each)["code"] for each in failures] == ["SOURCE_TOO_SLOW"] * 2


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
