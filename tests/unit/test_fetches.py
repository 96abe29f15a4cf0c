"""Fetches in threads of their own."""

from __future__ import annotations

import queue
import threading

import pytest
from tests.unit.test_engine_calls import Overtaken
from tests.unit.test_node_plan import make_record

from lora_workers.node.fetches import AT_ONCE, Fetches


def test_a_fetch_that_begins_while_all_end_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of an agent does not wait for what a thread has just taken."""
    monkeypatch.setattr(queue, "SimpleQueue", Overtaken)
    end = threading.Event()
    fetches = Fetches(lambda _: end.wait(30) and None, done=lambda: None)
    for number in range(1, AT_ONCE + 2):
        fetches.begin(make_record(number))
    closing = threading.Thread(target=fetches.close, daemon=True)
    closing.start()
    closing.join(10)
    end.set()
    assert not closing.is_alive()
