"""Fetches in threads of their own."""

from __future__ import annotations

import queue
import threading

import pytest
from tests.helpers.waiting import wait_until
from tests.unit.test_engine_calls import Overtaken
from tests.unit.test_node_plan import make_record

from lora_registry.catalog_records import VersionRecord
from lora_workers.node.fetches import AT_ONCE, Fetches

SAME, OTHER = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"


def test_an_artifact_of_several_versions_that_takes_long_delays_no_other() -> None:
    """Each of the versions waits for it in a thread; there is one more for the next artifact."""
    end = threading.Event()
    fetched: list[str] = []

    def fetch(record: VersionRecord) -> None:
        if record.digest == SAME:
            assert end.wait(30)
        fetched.append(record.digest)

    fetches = Fetches(fetch, done=lambda: None)
    for number, digest in enumerate((SAME, SAME, OTHER), start=1):
        fetches.begin(make_record(number).model_copy(update={"digest": digest}))
    try:
        wait_until(lambda: fetched == [OTHER], what="the other artifact", timeout_s=5)
    finally:
        end.set()
    wait_until(lambda: len(fetched) == 3, what="the end")
    fetches.close()


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
