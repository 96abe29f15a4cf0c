"""The inbox: where publishers put events, and where the dispatcher takes them into the ledger.

Publishers write here and nowhere else, so a publisher's credentials cannot touch work in progress or the catalog.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from typing import Final

import redis

from lora_registry import codes, scripts
from lora_registry.connection import LONGEST_BLOCK_S, command, redis_errors
from lora_registry.errors import IdempotencyConflict, QueueFull, Rejected, ServerNotAdmitted
from lora_registry.events import RegistrationRequested, parse_event
from lora_registry.keys import Keys
from lora_registry.registrations import dump_findings
from lora_registry.settings import Settings
from lora_registry.stages import BATCH, ORDER

GROUP: Final = "dispatchers"
_REGISTRATION_ID = re.compile(r"reg_[0-9a-f]{24}")
_IDEMPOTENCY_HASH = re.compile(r"[0-9a-f]{32}")
Entry = tuple[str, dict[str, str]]


@dataclass(frozen=True)
class Accepted:
    """What `accept` answers: the registration, and whether this call created it."""

    registration_id: str
    created: bool


class Inbox:
    """The event queue: a Redis stream with a consumer group, and one hash for each accepted event."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._settings = settings
        self._keys = Keys(settings.key_prefix)

    def accept(self, event: RegistrationRequested, *, idempotency_key: str | None = None) -> Accepted:
        """Accept `event`: it gets its registration id and its place in the order, and is queued.

        The same event under the same key again answers with the registration that is there.

        Raises:
            IdempotencyConflict: the key was used for another event.
            QueueFull: too many events wait for a dispatcher; nothing was accepted.
            ServerNotAdmitted: the server is new and no dispatcher has admitted it.
            RedisUnavailable: the server is out of reach; submit again with the same key.
        """
        return scripts.run(self._redis, self.acceptance(event, idempotency_key=idempotency_key))

    def acceptance(self, event: RegistrationRequested, *, idempotency_key: str | None = None) -> scripts.Call[Accepted]:
        """The call that `accept` makes, under a fresh registration id; for who makes several together."""
        registration_id, keys = f"reg_{secrets.token_hex(12)}", self._keys
        idempotency = keys.idempotency(event.namespace, idempotency_key or registration_id)
        return scripts.Call(
            "accept",
            keys=[keys.accepted(registration_id), idempotency, keys.numbers(event.adapter), keys.events],
            args=[
                registration_id,
                event.model_dump_json(),
                event.payload_digest(),
                idempotency.rpartition(":")[2],
                self._settings.max_queued_events,
                keys.server,
            ],
            read=lambda answer: _accepted(answer, registration_id, idempotency_key),
        )

    def is_known(self, namespace: str, idempotency_key: str) -> bool:
        """Whether an event was accepted under this key.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        return command(self._redis, "GET", self._keys.idempotency(namespace, idempotency_key)) is not None

    def read(self, consumer: str, *, count: int = 100, block_s: float = 1.0) -> list[Entry]:
        """New events for `consumer`; waits up to `block_s` for the first.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        with redis_errors():
            try:
                reply = self._redis.xreadgroup(
                    GROUP,
                    consumer,
                    {self._keys.events: ">"},
                    count=count,
                    block=max(1, int(min(block_s, LONGEST_BLOCK_S) * 1000)),  # 0 would block for ever
                )
            except redis.ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                self._create_group()
                return []
        return _entries(reply)

    def take_over(self, consumer: str, *, idle_s: float, count: int = 100) -> list[Entry]:
        """Events that another dispatcher read at least `idle_s` ago and never dispatched.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        with redis_errors():
            try:
                reply = self._redis.xautoclaim(
                    self._keys.events, GROUP, consumer, min_idle_time=int(idle_s * 1000), count=count
                )
            except redis.ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                return []
        return [(entry_id, fields) for entry_id, fields in reply[1] if fields is not None]

    def forget_consumers(self, *, idle_s: float = 86_400.0) -> int:
        """Remove dispatchers from the group that have long been gone and have nothing pending.

        Returns:
            Number of consumers removed.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        self._create_group()  # a new server has none
        with redis_errors():
            known = self._redis.xinfo_consumers(self._keys.events, GROUP)
            gone = [each["name"] for each in known if each["pending"] == 0 and each["idle"] > idle_s * 1000]
            for name in gone:
                self._redis.xgroup_delconsumer(self._keys.events, GROUP, name)
        return len(gone)

    def dispatch(self, entry: Entry) -> int:
        """Move one event into the ledger, due in the first stage, and take it off the stream: one script.

        Returns:
            Number of wake-ups to send to the first stage.

        Raises:
            RedisUnavailable: the server is out of reach; dispatch again.
        """
        entry_id, named = entry
        registration_id = named.get("id", "")
        if not _REGISTRATION_ID.fullmatch(registration_id):
            # Not written by `accept`; it names no event, so there is nobody to tell.
            command(self._redis, "XACK", self._keys.events, GROUP, entry_id)
            command(self._redis, "XDEL", self._keys.events, entry_id)
            return 0
        accepted = command(self._redis, "HGETALL", self._keys.accepted(registration_id))
        stage, fields = _ledger_fields(accepted)
        if fields["base_model"] in self._settings.canary_engines:
            fields["canary"] = 1
        return int(
            scripts.call(
                self._redis,
                "dispatch",
                keys=[
                    self._keys.events,
                    self._keys.accepted(registration_id),
                    self._keys.registration(registration_id),
                ],
                args=[
                    self._keys.prefix,
                    GROUP,
                    entry_id,
                    registration_id,
                    stage,
                    BATCH[ORDER[0]],
                    self._settings.retention_s,
                    fields["namespace"],
                    *(part for pair in fields.items() for part in pair),
                ],
            )
        )

    def waiting(self) -> int:
        """Number of accepted events that no dispatcher has taken into the ledger.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        return int(command(self._redis, "XLEN", self._keys.events))

    def _create_group(self) -> None:
        with redis_errors():
            try:
                self._redis.xgroup_create(self._keys.events, GROUP, id="0", mkstream=True)
            except redis.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise


def is_admitted(client: redis.Redis, settings: Settings) -> bool:
    """Whether the server behind `client` may issue ids, numbers and sequences.

    Raises:
        RedisUnavailable: the server is out of reach.
    """
    with redis_errors():
        run_id = client.info("server")["run_id"]
    return bool(command(client, "HGET", Keys(settings.key_prefix).server, "run_id") == run_id)


def admit(
    client: redis.Redis,
    settings: Settings,
    *,
    id_floor: int = 0,
    number_floor: int = 0,
    by_operator: bool = False,
    known: str = "",
) -> tuple[bool, str]:
    """Admit the server behind `client`, so that it may issue ids, numbers and sequences.

    An empty server is either a new one or one that lost everything. Subscribers that know more than it take it for the
    latter, and go on with what they know, until an operator says that it counts.

    Args:
        client: connection to the registry's server.
        settings: gaps and key prefix.
        id_floor: after a restore from a backup: the largest `lora_int_id` that any node has seen; 0 for none.
        number_floor: likewise the largest version number; 0 for none.
        by_operator: whether an operator says that the server counts as it is, although it may have lost everything.
        known: last generation that the caller saw on the registry's server; empty: none.

    Returns:
        Whether the server is a new one, and the generation it runs under.

    Raises:
        ServerNotAdmitted: it is empty, the caller knew one that was not, and no operator says that it counts.
        RedisUnavailable: the server is out of reach.
    """
    keys = Keys(settings.key_prefix)
    answer = scripts.call(
        client,
        "admit",
        keys=[keys.server, keys.next_id],
        args=[settings.id_gap, id_floor, settings.number_gap, number_floor, keys.prefix, int(by_operator), known],
    )
    if not answer[1]:
        raise ServerNotAdmitted(
            f"the Redis server is empty, and was not before (generation {known})",
            remedy="Restore it from a backup; or let it count as it is: `lora-registry admit --id-floor N "
            "--number-floor M`, with the largest id and version number that any node has seen.",
        )
    return bool(answer[0]), str(answer[1])


def _accepted(answer: list[str], registration_id: str, idempotency_key: str | None) -> Accepted:
    """What the script's answer says to whoever asked under `registration_id`.

    Raises:
        IdempotencyConflict, QueueFull, ServerNotAdmitted: see `Inbox.accept`.
    """
    if answer[0] == "not-admitted":
        raise ServerNotAdmitted
    if answer[0] == "full":
        raise QueueFull
    if answer[0] == "conflict":
        key = idempotency_key or registration_id
        raise IdempotencyConflict(f"idempotency key {key[:100]!r} was used for another request ({answer[1]})")
    # A reply that was lost makes redis-py ask again: "existing" with our own new id means that we created it.
    return Accepted(answer[1], created=answer[1] == registration_id)


def _entries(reply: object) -> list[Entry]:
    """Stream entries out of XREADGROUP's reply, in its RESP2 form (list) or its RESP3 form (dict)."""
    if not reply:
        return []
    if isinstance(reply, dict):
        return [entry for batches in reply.values() for batch in batches for entry in batch]
    assert isinstance(reply, list)  # noqa: S101 - redis-py knows no third form
    return [entry for _, entries in reply for entry in entries]


def _ledger_fields(accepted: dict[str, str]) -> tuple[str, dict[str, str | int]]:
    """First stage ('' to reject) and ledger fields for what a publisher left in the inbox; nothing in it is trusted."""
    try:
        event = parse_event(accepted.get("event", ""))
        order, offset = int(accepted["order"]), int(accepted["offset"])
        idempotency = accepted["idempotency"]
        if order < 1 or not _IDEMPOTENCY_HASH.fullmatch(idempotency):
            raise ValueError("order or idempotency hash")
    except (Rejected, KeyError, ValueError) as error:
        finding = codes.EVENT_MALFORMED.finding("event", f"The queued event cannot be read: {error}")
        return "", {
            "namespace": "default",
            "name": "unreadable",
            "base_model": "",
            "source": "",
            "order": 0,
            "version": 0,
            "offset": 0,
            "idempotency": hashlib.sha256(b"").hexdigest()[:32],
            "findings": dump_findings([finding]),
        }
    return ORDER[0], {
        "namespace": event.namespace,
        "name": event.name,
        "base_model": event.base_model,
        "source": event.source,
        "labels": json.dumps(event.labels),
        "metadata": json.dumps(event.metadata),
        "supersede": int(event.supersede),
        "follow": event.follow.value,
        "order": order,
        "version": order,
        "offset": offset,
        "idempotency": idempotency,
    }
