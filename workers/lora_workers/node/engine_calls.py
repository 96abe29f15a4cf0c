"""Calls of the engine in threads of their own: one that hangs delays no other adapter, and no name has two at once."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from lora_registry.nodes import NodeState
from lora_workers.node.daemon_threads import DaemonThreads
from lora_workers.node.failures import NodeFailure

AT_ONCE: Final = 4
"""If so many hang, the next one waits until one of them is given up."""


class EngineCalls:
    """Calls for served names, so many at once; the threads begin with the first.

    Args:
        is_at_once: whether the engine is never waited for: then each call is made where it is begun.
        told: called in a call's thread when it told something; not for a call that is made where it is begun.
    """

    def __init__(self, *, is_at_once: bool, told: Callable[[], None]) -> None:
        self._is_at_once = is_at_once
        self._tell = told if not is_at_once else lambda: None
        self._told: queue.SimpleQueue[tuple[str, NodeState | Exception | None]] = queue.SimpleQueue()
        self._threads = DaemonThreads("engine", most=AT_ONCE)
        self._under_way: dict[str, str | None] = {}

    @property
    def under_way(self) -> dict[str, str | None]:
        """Served names whose call was begun, and whose end `take_told` has not seen → the path that it is about."""
        return dict(self._under_way)

    def begin(self, name: str, call: Iterator[NodeState], *, path: str | None = None) -> None:
        """Make a call when a thread is free; what it yields or raises is what `take_told` tells."""
        self._under_way[name] = path
        if self._is_at_once:
            self._make(name, call)
        else:
            self._threads.begin(partial(self._make, name, call), unfinished=len(self._under_way))

    def take_told(self) -> Iterator[tuple[str, NodeState | NodeFailure]]:
        """What calls came to since the last time: how far each name is, or why it is no further."""
        while not self._told.empty():
            name, what = self._told.get()
            if what is None:
                del self._under_way[name]
            elif isinstance(what, NodeState | NodeFailure):
                yield name, what
            else:
                raise what

    def close(self) -> None:
        """Begin no more; what is under way ends or not, nobody waits for it."""
        self._threads.close()

    def _make(self, name: str, call: Iterator[NodeState]) -> None:
        try:
            for state in call:
                self._told.put((name, state))
                self._tell()
        except Exception as error:  # noqa: BLE001 - raised again in `take_told`, or told
            self._told.put((name, error))
        self._told.put((name, None))
        self._tell()
