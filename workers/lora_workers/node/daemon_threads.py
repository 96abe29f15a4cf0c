"""A few threads for what may hang: they begin when none is free, and nothing waits for them at the end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress


class DaemonThreads:
    """Threads that do one piece of work after the other.

    Args:
        name: what they are called.
        most: so many at once.
    """

    def __init__(self, name: str, *, most: int) -> None:
        self._name = name
        self._most = most
        self._count = 0
        self._waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def begin(self, work: Callable[[], None], *, unfinished: int) -> None:
        """Do `work`, which raises nothing, when a thread is free.

        Args:
            work: what is to be done.
            unfinished: pieces of work that were begun and not heard of since, this one included.
        """
        self._waiting.put(work)
        if self._count < min(self._most, unfinished):
            self._count += 1
            # As daemons: what hangs must not hang the end of the process.
            threading.Thread(target=self._work, daemon=True, name=f"{self._name}-{self._count}").start()

    def close(self) -> None:
        """Begin no more; what is under way ends or not, nobody waits for it."""
        with suppress(queue.Empty):  # a thread may take the last one meanwhile
            while True:
                self._waiting.get_nowait()
        for _ in range(self._count):
            self._waiting.put(None)

    def _work(self) -> None:
        while work := self._waiting.get():
            work()
