"""Waiting for something to become true, instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def wait_until(
    condition: Callable[[], Result],
    *,
    what: str,
    timeout_s: float = 30.0,
    every_s: float = 0.02,
    meanwhile: Callable[[], object] | None = None,
) -> Result:
    """Call `condition` until it returns something true, and return that.

    Args:
        condition: what to wait for.
        what: how a failure names it.
        timeout_s: longest wait.
        every_s: pause between two looks.
        meanwhile: called at each look, to restart processes for example.

    Raises:
        AssertionError: it did not become true in time.
    """
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"still waiting after {timeout_s:g} s: {what}")
        if meanwhile:
            meanwhile()
        time.sleep(every_s)
    return result
