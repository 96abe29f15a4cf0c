"""A limit on how long a piece of work may take, whatever it waits for.

Every library has a timeout for each read, and none for all of them: a server that sends a byte now and then meets those
for ever. An alarm of the operating system ends the wait, wherever in a library it is.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_AGAIN_S: Final = 1.0
"""The alarm rings again after so long, in case a library takes the error for its own and goes on."""


@contextmanager
def time_limit(seconds: float, error: Exception) -> Iterator[None]:
    """Raise `error` in what is done within, once `seconds` have passed; in the main thread of a process only.

    Raises:
        ValueError: this is another thread.
    """
    is_over = False

    def ring(_number: int, _frame: FrameType | None) -> None:
        if not is_over:
            raise error

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)
        try:
            yield
        finally:  # nested: should the alarm ring just here, the outer one stops it all the same
            is_over = True
    finally:
        is_over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
