"""Marks on artifacts that nothing refers to, as garbage collection sets and follows them; see ADR 0007.

marked     at that time no version, node or registration in progress referred to it; a pin or a publication unmarks
removing   one collection has taken it off the marked ones and is removing it; nobody can pin or publish it
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import redis

from lora_registry import scripts
from lora_registry.connection import command
from lora_registry.errors import ServerNotAdmitted
from lora_registry.keys import Keys
from lora_registry.ledger import REMOVAL_S
from lora_registry.settings import Settings

_US_PER_S = 1_000_000
_BATCH = 1000


@dataclass(frozen=True)
class Marked:
    """What is marked, and the server's clock at which that was so.

    Attributes:
        now_us: the clock, in microseconds.
        since_us: digest → since when it has been marked, in microseconds.
    """

    now_us: int
    since_us: dict[str, int] = field(default_factory=dict)

    def older_than(self, grace_s: float) -> list[str]:
        """Digests that have been marked for `grace_s`."""
        return sorted(digest for digest, since in self.since_us.items() if since <= self.now_us - grace_s * _US_PER_S)


class Marks:
    """Typed access to the marks.

    Args:
        client: connection to the registry's server.
        settings: the registry's settings.
    """

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._keys = Keys(settings.key_prefix)

    def mark(self, unreferenced: Sequence[str], *, referenced: Collection[str] = ()) -> Marked:
        """Mark the one sort, unless a registration pins it, and unmark the other.

        Returns:
            Those of `unreferenced` that are marked now.

        Raises:
            ServerNotAdmitted: the server is new and no dispatcher has admitted it.
            RedisUnavailable: the server is out of reach.
        """
        keys, now_us = self._keys, 0
        since_us: dict[str, int] = {}
        others = sorted(referenced)
        for first in range(0, max(len(unreferenced), len(others), 1), _BATCH):
            batch, unmarked = unreferenced[first : first + _BATCH], others[first : first + _BATCH]
            reply = scripts.call(
                self._redis,
                "mark",
                keys=[keys.pins, keys.marked, keys.removing],
                args=[keys.prefix, int(REMOVAL_S * _US_PER_S), len(unmarked), *unmarked, *batch],
            )
            if not reply:
                raise ServerNotAdmitted
            now_us = reply[0]
            since_us |= {digest: since for digest, since in zip(batch, reply[1:], strict=True) if since}
        return Marked(now_us, since_us)

    def read(self) -> tuple[Marked, frozenset[str]]:
        """What is marked, and what is pinned; changes nothing.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        stored = command(self._redis, "ZRANGE", self._keys.marked, 0, -1, "WITHSCORES")
        pinned = command(self._redis, "HVALS", self._keys.pins)
        return Marked(self.now_us(), dict(_pairs(stored))), frozenset(pinned)

    def now_us(self) -> int:
        """The server's clock, in microseconds: references looked for from now on are later than marks up to now.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        seconds, microseconds = command(self._redis, "TIME")
        return int(seconds) * _US_PER_S + int(microseconds)

    def take(self, digest: str, *, checked_from_us: int, grace_s: float) -> bool:
        """Take a marked artifact, to remove it at once and within 60 s; `release` follows.

        Args:
            digest: the artifact; no reference to it was found.
            checked_from_us: server's clock when that search for references began.
            grace_s: how long it must have been marked.

        Returns:
            Whether it may be removed.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        keys = self._keys
        args: list[str | int] = [keys.prefix, digest, checked_from_us, int(grace_s * _US_PER_S)]
        return bool(scripts.call(self._redis, "take", keys=[keys.marked, keys.removing], args=args))

    def release(self, digest: str) -> bool:
        """Say that the artifact is removed; its bytes may be kept anew.

        Returns:
            Whether it was still ours: if not, the removal took longer than anybody waits for one.

        Raises:
            RedisUnavailable: the server is out of reach; the claim ends by itself.
        """
        return bool(command(self._redis, "ZREM", self._keys.removing, digest))


def _pairs(reply: list[object]) -> list[tuple[str, int]]:
    """Members and scores, in either protocol's form."""
    flat = [part for pair in reply for part in (pair if isinstance(pair, list | tuple) else [pair])]
    return [(str(member), int(float(str(score)))) for member, score in zip(flat[::2], flat[1::2], strict=True)]
