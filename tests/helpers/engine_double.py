"""An engine in memory behind the driver's interface, which fails, hangs and refuses on demand."""

from __future__ import annotations

import threading
from collections import Counter

from lora_registry import node_codes as codes
from lora_workers.node.drivers import EngineDescription
from lora_workers.node.failures import NodeFailure
from tests.helpers.waiting import wait_until


class EngineDouble:
    """Behaves as vLLM's driver does.

    Attributes:
        loaded: served name → path.
        calls: how often each of the driver's methods was called.
        fails: methods that fail, as when the engine is out of reach.
        refuses: served names that it never loads.
        running: served names that requests run on.
        hangs: served name → until when a load of it takes.
        asked: served names, as often as loads of them began.
    """

    is_at_once = False

    def __init__(self) -> None:
        self.loaded: dict[str, str] = {}
        self.calls: Counter[str] = Counter()
        self.fails: set[str] = set()
        self.refuses: set[str] = set()
        self.running: set[str] = set()
        self.hangs: dict[str, threading.Event] = {}
        self.asked: Counter[str] = Counter()

    def describe(self) -> EngineDescription:
        """See `Driver`."""
        self._call("describe")
        return EngineDescription("vllm", version="0.32.0")

    def listed(self) -> dict[str, str | None]:
        """See `Driver`."""
        self._call("listed")
        return dict(self.loaded)

    def busy(self) -> frozenset[str]:
        """See `Driver`."""
        self._call("busy")
        return frozenset(self.running)

    def load(self, served_name: str, path: str) -> None:
        """See `Driver`."""
        self._call("load")
        self.asked[served_name] += 1
        if served_name in self.hangs:
            assert self.hangs[served_name].wait(30)
        if served_name in self.refuses:
            raise NodeFailure(codes.NODE_ENGINE_REFUSED, "no memory", may_pass=False)
        self.loaded[served_name] = path

    def unload(self, served_name: str) -> None:
        """See `Driver`."""
        self._call("unload")
        self.loaded.pop(served_name, None)

    def probe(self, served_name: str) -> None:
        """See `Driver`."""
        self._call("probe")

    def close(self) -> None:
        """See `Driver`."""

    def _call(self, method: str) -> None:
        self.calls[method] += 1
        if method in self.fails:
            raise NodeFailure(codes.NODE_ENGINE_UNREACHABLE, f"{method}: ReadTimeout", may_pass=True)


def wait_for_looks(engine: EngineDouble, count: int) -> None:
    """Wait until the agent has looked so often again."""
    before = engine.calls["listed"]
    wait_until(lambda: engine.calls["listed"] >= before + count, what=f"{count} looks")
