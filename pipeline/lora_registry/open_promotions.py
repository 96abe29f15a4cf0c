"""Promotions that have moved an alias, and that nobody has decided yet.

One is open from the script that moves the alias until it is decided, or until anybody moves the alias otherwise. Its
promoter says that it lives; once it has not for a while, whoever looks may decide in its place.
"""

from __future__ import annotations

from dataclasses import dataclass

import redis

from lora_registry import scripts
from lora_registry.keys import Keys
from lora_registry.names import AdapterName
from lora_registry.settings import Settings

_SHORTEST_LEASE_S = 3.0
"""A promoter that waits looks up every second."""


@dataclass(frozen=True)
class OpenPromotion:
    """One promotion whose alias has moved.

    Attributes:
        adapter: the adapter. alias: the alias.
        token: tells it from every other promotion.
        version: version that the alias points at. before: version that it pointed at; None: at none.
        failures_since_s: failures that nodes said since then count, in seconds since 1970-01-01.
        deadline_s: until when all nodes are to serve the version, in seconds since 1970-01-01.
        by: who promotes.
    """

    adapter: AdapterName
    alias: str
    token: str
    version: int
    before: int | None
    failures_since_s: float
    deadline_s: float
    by: str

    @classmethod
    def parse(cls, field: str, stored: str) -> OpenPromotion:
        """Parse what the server keeps, under `namespace.name@alias`; see `lua/_moves.lua`."""
        adapter, _, alias = field.partition("@")
        _, token, version, before, since_us, deadline_us, by = stored.split(" ", 6)
        return cls(
            AdapterName(*adapter.split(".")),
            alias,
            token,
            int(version),
            int(before) or None,
            int(since_us) / 1e6,
            int(deadline_us) / 1e6,
            by,
        )


class OpenPromotions:
    """Typed access to the open promotions; `Catalog.move_alias` opens them.

    Args:
        client: connection to the registry's server.
        settings: the registry's settings.
    """

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._keys = Keys(settings.key_prefix)
        self._patience_s = settings.wake_timeout_s
        self.lease_s = max(settings.lease_s, _SHORTEST_LEASE_S)

    def renew(self, adapter: AdapterName, alias: str, token: str) -> bool:
        """Say that the promoter lives; returns whether the promotion is still open.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        return self._hold(adapter, alias, token, self.lease_s)

    def end(self, adapter: AdapterName, alias: str, token: str) -> bool:
        """Decide that the alias stays; returns whether the promotion was still open.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        return self._hold(adapter, alias, token, 0)

    def wake_ups(self) -> int:
        """How many wake-ups to send for promotions whose promoter is gone: 0 or 1.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        keys = self._keys
        patience_us = int(self._patience_s * 1e6)
        return int(
            scripts.call(self._redis, "sweep_promotions", keys=[keys.promotions_woken], args=[keys.prefix, patience_us])
        )

    def lost(self) -> tuple[list[OpenPromotion], float]:
        """The promotions whose promoter is gone, and the server's time in seconds since 1970-01-01.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        keys = self._keys
        now_us, stored = scripts.call(self._redis, "lost_promotions", keys=[keys.promotions_woken], args=[keys.prefix])
        pairs = zip(stored[::2], stored[1::2], strict=True)
        return [OpenPromotion.parse(field, each) for field, each in pairs], int(now_us) / 1e6

    def _hold(self, adapter: AdapterName, alias: str, token: str, for_s: float) -> bool:
        keys = self._keys
        args: list[str | int] = [keys.prefix, f"{adapter.qualified}@{alias}", token, int(for_s * 1e6)]
        return bool(scripts.call(self._redis, "hold_promotion", keys=[keys.promotions], args=args))
