from __future__ import annotations

import signal
import threading
from contextlib import suppress

import pytest

from lora_registry.errors import SourceTooSlow
from lora_workers.time_limit import time_limit


def test_what_waits_for_ever_is_ended() -> None:
    """The error is raised where the work waits, and the alarm is off and gone afterwards."""
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(SourceTooSlow), time_limit(0.02, SourceTooSlow()):
        threading.Event().wait()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_a_library_that_swallows_the_error_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes every error for a reason to try again waits no longer for that."""
    monkeypatch.setattr("lora_workers.time_limit._AGAIN_S", 0.02)

    def try_twice() -> None:
        with suppress(Exception):
            threading.Event().wait()
        threading.Event().wait()

    with pytest.raises(SourceTooSlow), time_limit(0.02, SourceTooSlow()):
        try_twice()


def test_work_in_time_is_left_alone() -> None:
    """Nothing rings during or after it."""
    with time_limit(60, SourceTooSlow()):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
