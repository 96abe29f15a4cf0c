"""When a node tries again what failed: soon where that can help, rarely where it cannot, at once when asked anew."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Final

from lora_workers.node.failures import NodeFailure
from lora_workers.node.options import NodeOptions

_MOST_DOUBLINGS: Final = 30


class Retries:
    """Failures of served names in a row, and how long each rests.

    Args:
        options: the pauses.
    """

    def __init__(self, options: NodeOptions) -> None:
        self._options = options
        self._counts: dict[str, int] = {}
        self._resting: dict[str, float] = {}
        self._deaths: dict[str, int] = {}

    @property
    def resting(self) -> Mapping[str, float]:
        """Served name → when it may be tried again, in seconds of the monotonic clock."""
        return self._resting

    def failed(self, name: str, failure: NodeFailure) -> int:
        """Note a failure, and let the name rest; returns how many there were in a row."""
        options = self._options
        count = self._counts[name] = self._counts.get(name, 0) + 1
        doubled_s = options.retry_first_s * 2.0 ** min(count - 1, _MOST_DOUBLINGS)
        pause_s = min(options.retry_max_s, doubled_s) if failure.may_pass else options.retry_refused_s
        self._resting[name] = time.monotonic() + pause_s
        return count

    def forget(self, name: str) -> None:
        """It went well, or is asked for anew."""
        for noted in (self._counts, self._resting, self._deaths):
            noted.pop(name, None)

    def has_failed(self, name: str) -> bool:
        """Whether the last try of it failed."""
        return name in self._counts

    def died(self, names: Iterable[str]) -> None:
        """The engine went away while it was called for these: one of them may be what it died of."""
        for name in names:
            self._deaths[name] = self._deaths.get(name, 0) + 1

    def try_all(self) -> None:
        """What stopped them may be over: none rests any longer, but for what the engine may have died of.

        That waits for a while, each time longer, while the others come up; and one after the other, so that the culprit
        is alone in the end.
        """
        now, options = time.monotonic(), self._options
        suspects = sorted(self._deaths, key=lambda name: (self._deaths[name], name))
        self._resting = {
            name: now
            + min(options.retry_refused_s, options.retry_max_s * 2.0 ** min(self._deaths[name] - 1, _MOST_DOUBLINGS))
            + place * options.retry_max_s
            for place, name in enumerate(suspects)
        }
