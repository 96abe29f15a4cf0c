"""What the senders of webhooks delivered, and what became of it: the history of each hook, bounded and expiring."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import redis

from lora_registry import scripts
from lora_registry.all_codes import may_pass
from lora_registry.code import Code
from lora_registry.connection import command
from lora_registry.errors import NotFound, QueueFull
from lora_registry.findings import Severity
from lora_registry.hook_codes import HOOK_NAME_TAKEN
from lora_registry.hook_events import LONGEST_WAIT, HookEvent
from lora_registry.keys import Keys
from lora_registry.registrations import load_findings
from lora_registry.settings import Settings

_US_PER_S: Final = 1_000_000
_ID_LENGTH: Final = 200
_BODY_LENGTH: Final = 65_536
"""Characters of a body that are kept; a longer one is not kept at all, since half of it could not be read again."""


class DeliveryVerdict(StrEnum):
    """What a hook made of a delivery."""

    QUEUED = "queued"
    IGNORED = "ignored"
    DUPLICATE = "duplicate"
    REFUSED = "refused"


@dataclass(frozen=True)
class Heard:
    """The answer to a delivery.

    Attributes:
        delivery_id: the sender's id of it, or one that it was given here.
        verdict: what was made of it.
        reason: why, or why not all that it asks for is queued.
    """

    delivery_id: str
    verdict: DeliveryVerdict
    reason: str = ""


@dataclass(frozen=True)
class Delivery:
    """One delivery in the history.

    Attributes:
        id: the sender's id of it, or one that it was given here; empty for a refused one.
        at_s: when it came last, in seconds since 1970 by the server's clock.
        verdict, reason: what was made of it, and why.
        times: how often it came.
        registrations: ids of the registrations that it led to, alone or with others of one burst.
        body: what was sent, without secrets; empty if it is too old or too long to be kept, or was refused.
    """

    id: str
    at_s: float
    verdict: DeliveryVerdict
    reason: str = ""
    times: int = 1
    registrations: tuple[str, ...] = ()
    body: str = field(default="", repr=False)

    def as_json(self) -> dict[str, Any]:
        """What `hooks show --json` prints: plain JSON types only."""
        return {
            "id": self.id,
            "at_s": self.at_s,
            "verdict": self.verdict.value,
            "reason": self.reason,
            "times": self.times,
            "registrations": list(self.registrations),
        }


class Known(StrEnum):
    """What became of a content that is seen at an origin."""

    NEW = "new"
    CURRENT = "current"
    REFUSED = "refused"
    HINDERED = "hindered"
    DEAD_LETTERED = "dead-lettered"


_KNOWN: Final = {
    "new": Known.NEW,
    "refused": Known.REFUSED,
    "rejected": Known.REFUSED,
    "dead-lettered": Known.DEAD_LETTERED,
}
"""By what the script answers; every other answer means that the content is served."""


@dataclass(frozen=True)
class Recalled:
    """What is known of a content.

    Attributes:
        known: what became of it; `CURRENT` is published, unchanged, or on its way; `HINDERED` was rejected for what may
            pass, `REFUSED` for what it is.
        registration_id: the last registration from its origin, of this content or another; empty if there is none.
        order: which of its adapter's registrations brought the content: a later one has a larger number. 0: that is
            forgotten; infinite: it is yet to be registered.
        codes: of a rejected one: what it was rejected for.
        ended_s: of a rejected one: how many seconds ago that was.
    """

    known: Known
    registration_id: str = ""
    order: float = 0.0
    codes: tuple[str, ...] = ()
    ended_s: float = 0.0


class HookDeliveries:
    """Typed access to the deliveries of all hooks."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._settings = settings
        self._keys = Keys(settings.key_prefix)

    def hear(
        self,
        hook: str,
        delivery_id: str,
        events: Sequence[HookEvent],
        *,
        reason: str = "",
        body: str = "",
        again: bool = False,
    ) -> Heard:
        """Record an authentic delivery and make pending what it asks for: one script.

        A delivery whose registrations went well or are on their way is dropped when it comes again; one of whose
        registrations failed asks again.

        Args:
            hook: name of the hook.
            delivery_id: the sender's id; empty if it sent none.
            events: what it asks for; the last one about an origin counts.
            reason: why it asks for nothing.
            body: what was sent, without secrets.
            again: ask in any case.

        Raises:
            QueueFull: too much is pending; nothing was recorded.
            RedisUnavailable: the server is out of reach.
        """
        call = self.hearing(hook, delivery_id, events, reason=reason, body=body, again=again)
        return scripts.run(self._redis, call)

    def hearing(
        self,
        hook: str,
        delivery_id: str,
        events: Sequence[HookEvent],
        *,
        reason: str = "",
        body: str = "",
        again: bool = False,
    ) -> scripts.Call[Heard]:
        """The call that `hear` makes; for who makes several together."""
        delivery_id = _shortened(delivery_id) or f"none-{secrets.token_hex(8)}"
        keys, settings = self._keys, self._settings
        reference = _reference(hook, delivery_id)
        origins = {each.origin: each for each in events}
        return scripts.Call(
            "hear",
            keys=[
                keys.delivery(reference),
                keys.deliveries(hook),
                keys.pending_origins,
                keys.named_after,
                *(key for origin in origins for key in (keys.origin(origin), keys.waiting(origin))),
            ],
            args=[
                keys.prefix,
                reference,
                settings.retention_s,
                settings.max_queued_events,
                settings.hook_history,
                int(again),
                reason[:500],
                delivery_id,
                body if len(body) <= _BODY_LENGTH else "",
                f"{HOOK_NAME_TAKEN.code}: {HOOK_NAME_TAKEN.cause}",
                *(part for origin, each in origins.items() for part in _arguments(origin, each)),
            ],
            read=lambda answer: _heard(answer, delivery_id),
        )

    def recall(self, event: HookEvent) -> Recalled:
        """What became of a content that was just seen at its origin, whoever asked for it; it is remembered for longer.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        keys, settings = [self._keys.origin(event.origin)], self._settings
        args: list[str | int] = [settings.key_prefix, event.content, settings.retention_s]
        state, registration_id, order, *rejection = scripts.call(self._redis, "recall", keys=keys, args=args)
        known = _KNOWN.get(state, Known.CURRENT)
        if not rejection:
            return Recalled(known, registration_id, float(order))
        findings = load_findings(rejection[0])
        known = Known.HINDERED if may_pass(findings) else known
        codes = tuple(dict.fromkeys(each.code for each in findings if each.severity is Severity.ERROR))
        return Recalled(known, registration_id, float(order), codes, int(rejection[1]) / _US_PER_S)

    def note_refusal(self, hook: str, code: Code, reason: str) -> None:
        """Note that a delivery was refused, and nothing else of it.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        scripts.run(self._redis, self.refusal(hook, code, reason))

    def refusal(self, hook: str, code: Code, reason: str) -> scripts.Call[None]:
        """The call that `note_refusal` makes; for who makes several together."""
        settings = self._settings
        return scripts.Call(
            "note_refusal",
            keys=[self._keys.refusals(hook)],
            args=[code.code, reason[:500], settings.hook_history, settings.retention_s],
            read=lambda _answer: None,
        )

    def history(self, hook: str) -> list[Delivery]:
        """The authentic deliveries that are kept, newest first.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        references = command(self._redis, "LRANGE", self._keys.deliveries(hook), 0, -1)
        stored = (command(self._redis, "HGETALL", self._keys.delivery(each)) for each in references)
        return [_parse(fields) for fields in stored if fields]

    def refusals(self, hook: str) -> list[Delivery]:
        """The refused deliveries that are kept, newest first; each has a reason and nothing else.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        stored = [json.loads(each) for each in command(self._redis, "LRANGE", self._keys.refusals(hook), 0, -1)]
        return [
            Delivery("", each["at"] / _US_PER_S, DeliveryVerdict.REFUSED, f"{each['code']}: {each['reason']}")
            for each in stored
        ]

    def delivery(self, hook: str, delivery_id: str) -> Delivery:
        """One delivery.

        Raises:
            NotFound: there is none of that id (any more).
            RedisUnavailable: the server is out of reach.
        """
        fields = command(self._redis, "HGETALL", self._keys.delivery(_reference(hook, delivery_id)))
        if not fields:
            raise NotFound(
                f"hook {hook!r} has no delivery {delivery_id[:200]!r}",
                remedy=f"List them with `lora-registry hooks show {hook}`.",
            )
        return _parse(fields)


def _heard(answer: str, delivery_id: str) -> Heard:
    """Raises QueueFull if the script says so."""
    verdict, _, reason = answer.partition(" ")
    if verdict == "full":
        raise QueueFull
    return Heard(delivery_id, DeliveryVerdict(verdict), reason)


def _shortened(delivery_id: str) -> str:
    """The id, or of a long one its beginning and a digest of all of it: what differs stays different."""
    if len(delivery_id) <= _ID_LENGTH:
        return delivery_id
    digest = hashlib.sha256(delivery_id.encode()).hexdigest()[:32]
    return f"{delivery_id[: _ID_LENGTH - len(digest) - 1]}~{digest}"


def _reference(hook: str, delivery_id: str) -> str:
    """How the key of a delivery ends: ids are the sender's, of any form."""
    return f"{hook}:{hashlib.sha256(delivery_id.encode()).hexdigest()[:32]}"


def _arguments(origin: str, event: HookEvent) -> tuple[str | int, ...]:
    quiet_us = int(event.quiet_s * _US_PER_S)
    kind, _, thing = event.named_after.partition(" ")
    field = f"{kind} {event.event.adapter.qualified}" if kind else ""
    times = (quiet_us, quiet_us * LONGEST_WAIT)
    return (origin, event.event.model_dump_json(), event.content, event.order, *times, field, thing)


def _parse(fields: dict[str, str]) -> Delivery:
    return Delivery(
        id=fields["id"],
        at_s=int(fields["at"]) / _US_PER_S,
        verdict=DeliveryVerdict(fields["verdict"]),
        reason=fields.get("refusal") or fields["reason"],
        times=int(fields["times"]),
        registrations=tuple(value for name, value in sorted(fields.items()) if name.startswith("registration:")),
        body=fields.get("body", ""),
    )
