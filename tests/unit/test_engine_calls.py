"""Calls of the engine, in threads of their own or at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from tests.helpers.waiting import wait_until

from lora_registry import node_codes as codes
from lora_registry.nodes import NodeState
from lora_workers.node.engine_calls import AT_ONCE, EngineCalls
from lora_workers.node.failures import NodeFailure

FAILURE = NodeFailure(codes.NODE_PROBE_FAILED, may_pass=True)


def load(error: Exception | None = None, *, until: threading.Event | None = None) -> Iterator[NodeState]:
    """A call that says `loaded` and then waits, and fails or says `routable`."""
    yield NodeState.LOADED
    if until:
        assert until.wait(30)
    if error:
        raise error
    yield NodeState.ROUTABLE


def test_a_call_tells_how_far_it_is_and_its_name_is_under_way_until_it_ended() -> None:
    """What it said so far can be taken while it goes on; the end itself is nothing to tell."""
    told, end = threading.Event(), threading.Event()
    calls = EngineCalls(is_at_once=False, told=told.set)
    calls.begin("bot.v1", load(until=end), path="/cache/bot")
    assert told.wait(30)
    assert list(calls.take_told()) == [("bot.v1", NodeState.LOADED)]
    assert calls.under_way == {"bot.v1": "/cache/bot"}
    end.set()
    said: list[tuple[str, NodeState | NodeFailure]] = []
    wait_until(lambda: said.extend(calls.take_told()) or not calls.under_way, what="the end")
    assert said == [("bot.v1", NodeState.ROUTABLE)]
    calls.close()


def test_so_many_calls_run_at_once_and_the_others_wait() -> None:
    """One more than there are threads begins when one of them ends."""
    end = threading.Event()
    calls = EngineCalls(is_at_once=False, told=lambda: None)
    said: list[str] = []
    for number in range(AT_ONCE + 1):
        calls.begin(f"bot.v{number}", load(until=end))
    wait_until(lambda: said.extend(name for name, _ in calls.take_told()) or len(said) == AT_ONCE, what="the first")
    assert f"bot.v{AT_ONCE}" not in said
    end.set()
    wait_until(lambda: said.extend(name for name, _ in calls.take_told()) or not calls.under_way, what="the last")
    assert said.count(f"bot.v{AT_ONCE}") == 2
    calls.close()


def test_an_engine_that_is_never_waited_for_is_called_where_the_call_is_begun() -> None:
    """No thread is started; a failure is told like what came before."""
    calls = EngineCalls(is_at_once=True, told=lambda: None)
    threads = threading.active_count()
    calls.begin("bot.v1", load(FAILURE))
    assert threading.active_count() == threads
    assert list(calls.take_told()) == [("bot.v1", NodeState.LOADED), ("bot.v1", FAILURE)]
    assert calls.under_way == {}


def test_a_bug_in_a_call_is_raised_where_its_end_is_taken() -> None:
    """It does not end in a thread that nobody looks at."""
    calls = EngineCalls(is_at_once=True, told=lambda: None)
    calls.begin("bot.v1", load(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        list(calls.take_told())


def test_one_call_after_the_other_takes_one_thread() -> None:
    """A thread is started for a call that none is free for, and not for each of the first few."""
    calls = EngineCalls(is_at_once=False, told=lambda: None)
    before = set(threading.enumerate())
    for number in range(AT_ONCE):
        calls.begin(f"bot.v{number}", load())
        wait_until(lambda: list(calls.take_told()) and not calls.under_way, what="the end")
    assert len(set(threading.enumerate()) - before) == 1
    calls.close()


class Overtaken(queue.SimpleQueue[Any]):
    """A queue whose next item a thread takes right after somebody looked whether there is one."""

    def empty(self) -> bool:
        """See `SimpleQueue`."""
        was_empty = super().empty()
        with suppress(queue.Empty):
            self.get_nowait()
        return was_empty


def test_a_call_that_begins_while_all_end_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of an agent does not wait for what a thread has just taken."""
    monkeypatch.setattr(queue, "SimpleQueue", Overtaken)
    calls = EngineCalls(is_at_once=False, told=lambda: None)
    end = threading.Event()
    for number in range(AT_ONCE + 1):
        calls.begin(f"bot.v{number}", load(until=end))
    closing = threading.Thread(target=calls.close, daemon=True)
    closing.start()
    closing.join(10)
    end.set()
    assert not closing.is_alive()
