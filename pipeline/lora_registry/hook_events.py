"""What hooks ask for: events that wait a quiet moment before the dispatcher takes them to the inbox.

An event says where an adapter is, never which bytes: the resolve stage looks up what is there now. So the events about
one origin in a burst are one registration, and their order does not matter: whichever is accepted last, its resolve
comes after the last change.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Final

import redis

from lora_registry import scripts
from lora_registry.connection import command
from lora_registry.errors import QueueFull, Rejected, ServerNotAdmitted
from lora_registry.events import RegistrationRequested, parse_event
from lora_registry.inbox import Inbox
from lora_registry.keys import Keys
from lora_registry.settings import Settings

LONGEST_WAIT: Final = 10
"""A burst that does not end is taken after so many quiet periods."""
HOOK_KEY: Final = "hook:"
"""Begins the idempotency keys of these events."""
_BATCH: Final = 100
_MOST_BATCHES: Final = 20
"""So that a flood of hook events does not keep the dispatcher from its other work."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HookEvent:
    """One event that a hook asks for.

    Attributes:
        event: what to register.
        content: what the sender says is there now, such as a commit; the same content of one origin in a row is asked
            for once.
        order: hexadecimal number that grows with each change of the object, where the sender gives one.
        quiet_s: how long nothing more must come about the same origin.
        named_after: what the adapter's name was made of: the kind of thing, a blank, and which (`repository acme/a.b`);
            no other thing of that kind may have the name. Empty: whatever is registered may have it.
    """

    event: RegistrationRequested
    content: str
    order: str = ""
    quiet_s: float = 0.0
    named_after: str = ""

    @property
    def origin(self) -> str:
        """Where adapters come from: the name of the pair (adapter, source)."""
        return hashlib.sha256(f"{self.event.adapter.qualified}\n{self.event.source}".encode()).hexdigest()[:32]


class PendingEvents:
    """The events that wait; the dispatcher takes them to the inbox."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._settings = settings
        self._keys = Keys(settings.key_prefix)

    def release(self, inbox: Inbox) -> int:
        """Take events whose quiet moment is over to the inbox.

        One that is not taken off the list after it was accepted, because this process died or Redis went away, is
        accepted again under the same idempotency key.

        Returns:
            Number of events taken.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        taken = 0
        try:
            for _ in range(_MOST_BATCHES):
                due = self._due()
                for origin in due:
                    taken += self._release(origin, inbox)
                if len(due) < _BATCH:
                    break
        except (QueueFull, ServerNotAdmitted) as error:
            logger.info("hook events wait on: %s", error)
        return taken

    def waiting(self) -> int:
        """Number of events that wait.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        return int(command(self._redis, "ZCARD", self._keys.pending_origins))

    def _due(self) -> list[str]:
        seconds, micros = command(self._redis, "TIME")
        now_us = int(seconds) * 1_000_000 + int(micros)
        key = self._keys.pending_origins
        return list(command(self._redis, "ZRANGEBYSCORE", key, "-inf", now_us, "LIMIT", 0, _BATCH))

    def _release(self, origin: str, inbox: Inbox) -> int:
        held = command(self._redis, "HGETALL", self._keys.origin(origin))
        if "event" not in held:  # another dispatcher was faster
            return 0
        run, content = int(held.get("runs", 0)) + 1, held["content"]
        registration_id = refusal = ""
        try:
            event = parse_event(held["event"])
            digest = hashlib.sha256(f"{content}\n{event.payload_digest()}".encode()).hexdigest()[:32]
            accepted = inbox.accept(event, idempotency_key=f"{HOOK_KEY}{origin}:{run}:{digest}")
            registration_id = accepted.registration_id
        except Rejected as error:
            refusal = f"{error.code}: {error.message}"[:500]
            logger.warning("a hook's event was refused: %s", refusal)
        keys = [self._keys.pending_origins, self._keys.origin(origin), self._keys.waiting(origin)]
        values = [run, content, registration_id, refusal, self._settings.retention_s]
        return int(scripts.call(self._redis, "settle", keys=keys, args=[self._keys.prefix, origin, *values]))
