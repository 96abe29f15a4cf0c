"""The ledger: work in progress. Every change of a registration's state is one script here.

A worker claims due registrations under leases, works, and completes each by compare-and-set: whoever lost the lease
writes nothing. Scripts that make work due also say how many wake-ups to send; sending them is the caller's part, and
losing them costs a sweep interval, never a registration.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import redis

from lora_registry import codes, scripts
from lora_registry.connection import command, redis_errors
from lora_registry.errors import ArtifactBusy, Deferred, EngineBusy, LeaseLost, NotFound, Rejected, ServerNotAdmitted
from lora_registry.findings import Finding
from lora_registry.keys import Keys
from lora_registry.registrations import Outcome, Registration, dump_findings, parse_registration
from lora_registry.settings import Settings
from lora_registry.stages import BATCH, STATE_AFTER, Stage, after

_US_PER_S = 1_000_000
REMOVAL_S: Final = 600.0
"""How long a garbage collection's claim on one artifact stands: ten times what it takes itself for it at most."""
_ENGINE_PAUSE_S = 0.5
"""How long a registration waits whose canary engine is busy."""
_PASS_OVER_AT_MOST = 1000
"""Registrations of one namespace that one sweep hands on, so that the script stays short."""
_LONGEST_RETRY_AFTER_S = 3600.0
_LIST_DEAD_LETTERS = "List them with `lora-registry dead-letters list`."


@dataclass(frozen=True)
class Lease:
    """The right to work on one registration in one stage, until its epoch or owner changes."""

    registration: Registration
    stage: Stage
    epoch: int
    owner: str

    @property
    def following(self) -> Stage | None:
        """The stage that the registration passes next; None after the last."""
        return after(self.stage, canary=self.registration.is_tried)


@dataclass(frozen=True)
class Claim:
    """What a claim brought: leases to work on, wake-ups to send to the same stage, and whether yet more is due."""

    leases: tuple[Lease, ...]
    wake_ups: int
    more_due: bool = False


@dataclass(frozen=True)
class Pulse:
    """How a stage is doing.

    Attributes:
        due: registrations that wait for a claim.
        leased: registrations that are being worked on.
        slots: worker slots that have lately said they exist.
        oldest_due_s: for how long the oldest due registration has been due; 0 if there is none.
        since_claim_s: time since the last claim; None if there was none.
    """

    due: int
    leased: int
    slots: int
    oldest_due_s: float
    since_claim_s: float | None

    def is_stalled(self, timeout_s: float) -> bool:
        """Whether work has been due for `timeout_s`, and nobody has claimed any or holds a lease."""
        silent_s = self.oldest_due_s if self.since_claim_s is None else min(self.oldest_due_s, self.since_claim_s)
        return self.due > 0 and self.leased == 0 and silent_s > timeout_s


@dataclass(frozen=True)
class DeadLetter:
    """A registration whose retries are exhausted, with its history (oldest failure first)."""

    registration: Registration
    stage: str
    history: tuple[dict[str, Any], ...] = field(default=())


class Ledger:
    """Typed access to registrations in progress and to the dead letters."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._settings = settings
        self._keys = Keys(settings.key_prefix)

    @property
    def lease_s(self) -> float:
        """How long a lease lasts unless it is renewed."""
        return self._settings.lease_s

    def get(self, registration_id: str) -> Registration:
        """The registration, from acceptance to the end of its retention.

        Raises:
            NotFound: there is none of that id (any more).
            RedisUnavailable: the server is out of reach.
        """
        # The second look at the ledger is for a dispatch between the first two.
        for look in (self._registration, self._accepted, self._registration):
            registration = look(registration_id)
            if registration:
                return registration
        kept_s = self._settings.retention_s
        raise NotFound(
            f"no registration {registration_id[:100]!r}; finished ones are kept {kept_s} s",
            remedy="Check the id; it is what `lora-registry register` printed.",
        )

    def claim(self, stage: Stage, *, owner: str, limit: int | None = None, woken: bool = True) -> Claim:
        """Claim due registrations of `stage`, at most `limit` (default: the stage's batch).

        Args:
            stage: stage to work on.
            owner: who claims; unique for each process.
            limit: most registrations to take.
            woken: whether a wake-up message led here; it is retired.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        settings = self._settings
        reply = scripts.call(
            self._redis,
            "claim",
            keys=[self._keys.turns(stage)],
            args=[
                self._keys.prefix,
                stage,
                owner,
                limit or BATCH[stage],
                int(settings.lease_s * _US_PER_S),
                int(woken),
                settings.max_attempts,
                settings.dead_letter_retention_s,
                settings.retention_s,
                BATCH[stage],
            ],
        )
        hashes = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in reply[2:]]
        leases = tuple(Lease(parse_registration(each), stage, int(each["epoch"]), owner) for each in hashes)
        return Claim(leases, wake_ups=int(reply[0]), more_due=bool(reply[1]))

    def allocate(self, lease: Lease) -> tuple[int, int]:
        """Get or allocate the registration's `lora_int_id` and version number under the admitted server.

        Returns:
            `lora_int_id` in [1, 2**31 - 1], and the version number.

        Raises:
            LeaseLost: another worker owns the registration.
            ServerNotAdmitted: the server is new and no dispatcher has admitted it.
            Rejected: every id has been issued.
            RedisUnavailable: the server is out of reach; ask again, the answer stays the same.
        """
        answer = scripts.call(
            self._redis,
            "allocate",
            keys=[self._keys.next_id, self._keys.registration(lease.registration.id)],
            args=[lease.epoch, lease.owner, self._keys.server],
        )
        if answer[0] == "lost":
            raise LeaseLost
        if answer[0] == "not-admitted":
            raise ServerNotAdmitted
        if answer[0] == "exhausted":
            raise Rejected("all ids are issued", findings=(codes.IDS_EXHAUSTED.finding("lora_int_id"),))
        return int(answer[1]), int(answer[2])

    def complete(self, lease: Lease, fields: Mapping[str, str | int]) -> int:
        """Hand the registration on to the next stage, with what this one found out.

        Returns:
            Number of wake-ups to send to the next stage.

        Raises:
            LeaseLost: another worker owns the registration; nothing was written.
            RedisUnavailable: the server is out of reach.
        """
        supersede = lease.stage is Stage.VALIDATE and lease.registration.fields.get("supersede") == "1"
        return self._end_stage(lease, STATE_AFTER[lease.stage], fields, following=lease.following, supersede=supersede)

    def finish(self, lease: Lease, outcome: Outcome, findings: tuple[Finding, ...] = ()) -> None:
        """End the registration with `outcome`.

        Raises:
            LeaseLost: another worker owns the registration; nothing was written.
            RedisUnavailable: the server is out of reach.
        """
        self._end_stage(lease, outcome, {"findings": dump_findings(findings)}, following=None, supersede=False)

    def fail(self, lease: Lease, error: Exception) -> bool:
        """Give the registration back after `error`: due again after a backoff, or dead-lettered.

        Returns:
            True if it was dead-lettered.

        Raises:
            LeaseLost: another worker owns the registration; nothing was written.
            RedisUnavailable: the server is out of reach; the lease runs out by itself.
        """
        settings = self._settings
        retry_after_s = min(getattr(error, "retry_after_s", 0.0), _LONGEST_RETRY_AFTER_S)
        answer = self._give_back(
            lease,
            "fail",
            error,
            [settings.max_attempts, settings.dead_letter_retention_s, int(retry_after_s * _US_PER_S)],
        )
        return answer == "dead"

    def pin(self, lease: Lease, digest: str) -> None:
        """Keep garbage collection off the artifact `digest` until the registration ends; call it before keeping one.

        Raises:
            LeaseLost: another worker owns the registration.
            ArtifactBusy: the artifact is being removed at this moment.
            RedisUnavailable: the server is out of reach.
        """
        answer = scripts.call(
            self._redis,
            "pin",
            keys=[self._keys.registration(lease.registration.id)],
            args=[*self._lease_arguments(lease), digest, int(REMOVAL_S * _US_PER_S)],
        )
        if answer == "lost":
            raise LeaseLost
        if answer == "removing":
            raise ArtifactBusy(f"{digest} is being removed at this moment")

    def defer(self, lease: Lease, error: Deferred) -> bool:
        """Give the registration back because it has to wait for its files: due again after a pause, at no cost.

        The pauses grow as those between attempts do; the last look is at the deadline.

        Returns:
            True if its time was up: it is rejected with the error's findings.

        Raises:
            LeaseLost: another worker owns the registration; nothing was written.
            RedisUnavailable: the server is out of reach; the lease runs out by itself.
        """
        answer = self._give_back(
            lease,
            "defer",
            error,
            [int(error.deadline_s * _US_PER_S), dump_findings(error.findings), self._settings.retention_s],
        )
        return answer == "rejected"

    def renew(self, lease: Lease) -> None:
        """Prolong the lease by `lease_s` from now.

        Raises:
            LeaseLost: another worker owns the registration.
            RedisUnavailable: the server is out of reach.
        """
        held = scripts.call(
            self._redis,
            "renew",
            keys=[self._keys.registration(lease.registration.id)],
            args=[*self._lease_arguments(lease), int(self._settings.lease_s * _US_PER_S)],
        )
        if not held:
            raise LeaseLost

    def hold_engine(self, lease: Lease, engine_id: str) -> None:
        """Have a canary engine to oneself for as long as the lease lasts.

        Raises:
            EngineBusy: another registration has it; this one was given back and is due again in a moment.
            LeaseLost: another worker owns the registration.
            RedisUnavailable: the server is out of reach.
        """
        registration_id = lease.registration.id
        answer = scripts.call(
            self._redis,
            "hold_engine",
            keys=[self._keys.canary_engine(engine_id), self._keys.registration(registration_id)],
            args=[*self._lease_arguments(lease), int(_ENGINE_PAUSE_S * _US_PER_S)],
        )
        if answer != "held":
            raise EngineBusy if answer == "busy" else LeaseLost

    def pass_over(self, stage: Stage, *, stays: Collection[str]) -> int:
        """Hand on what is due in an optional stage, except registrations for the base models `stays`.

        Returns:
            Number of wake-ups to send to the stage after it.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        following = after(stage)
        assert following  # noqa: S101 - the last stage is for all
        return int(
            scripts.call(
                self._redis,
                "pass_over",
                keys=[self._keys.turns(stage)],
                args=[self._keys.prefix, stage, following, BATCH[following], _PASS_OVER_AT_MOST, *stays],
            )
        )

    def sweep(self, stage: Stage) -> int:
        """Look after a stage: presume long unanswered wake-ups lost, trim old dead letters.

        Returns:
            Number of wake-ups to send.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        settings = self._settings
        return int(
            scripts.call(
                self._redis,
                "sweep",
                keys=[self._keys.turns(stage)],
                args=[
                    self._keys.prefix,
                    stage,
                    BATCH[stage],
                    int(settings.wake_timeout_s * _US_PER_S),
                    settings.dead_letter_retention_s,
                ],
            )
        )

    def pulse(self, stage: Stage) -> Pulse:
        """How the stage is doing.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        due, leased, slots, oldest_us, since_us = scripts.call(
            self._redis, "pulse", keys=[self._keys.turns(stage)], args=[self._keys.prefix, stage]
        )
        since_claim_s = None if since_us < 0 else since_us / _US_PER_S
        return Pulse(due, leased, slots, oldest_us / _US_PER_S, since_claim_s)

    def announce_slots(self, stage: Stage, slots: list[str], *, for_s: float) -> None:
        """Say that worker slots of `stage` exist for the next `for_s` seconds; call again before that.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        with redis_errors():
            seconds, _ = self._redis.time()
            until_us = (seconds + for_s) * _US_PER_S
            self._redis.zadd(self._keys.slots(stage), dict.fromkeys(slots, until_us))

    def dead_letters(self) -> list[DeadLetter]:
        """All dead letters, oldest first.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        ids = command(self._redis, "ZRANGE", self._keys.dead_letters, 0, -1)
        found = [self._registration(each) for each in ids]
        return [self._dead_letter(each) for each in found if each is not None]

    def dead_letter(self, registration_id: str) -> DeadLetter:
        """One dead letter.

        Raises:
            NotFound: it is no dead letter.
            RedisUnavailable: the server is out of reach.
        """
        registration = self._registration(registration_id)
        if registration is None or registration.outcome is not Outcome.DEAD_LETTERED:
            raise NotFound(f"{registration_id[:100]!r} is no dead letter", remedy=_LIST_DEAD_LETTERS)
        return self._dead_letter(registration)

    def redrive(self, registration_id: str) -> None:
        """Make a dead letter due again in the stage where it died.

        Raises:
            NotFound: it is no dead letter.
            RedisUnavailable: the server is out of reach.
        """
        done = scripts.call(
            self._redis,
            "redrive",
            keys=[self._keys.registration(registration_id), self._keys.dead_letters],
            args=[self._keys.prefix, registration_id],
        )
        if not done:
            raise NotFound(f"{registration_id[:100]!r} is no dead letter", remedy=_LIST_DEAD_LETTERS)

    def _end_stage(
        self,
        lease: Lease,
        state: str,
        fields: Mapping[str, str | int],
        *,
        following: Stage | None,
        supersede: bool,
    ) -> int:
        answer = scripts.call(
            self._redis,
            "complete",
            keys=[self._keys.registration(lease.registration.id)],
            args=[
                *self._lease_arguments(lease),
                following or "",
                BATCH[following] if following else 0,
                state,
                int(supersede),
                self._settings.retention_s,
                *(part for pair in fields.items() for part in pair),
            ],
        )
        if answer[0] == "lost":
            raise LeaseLost
        return int(answer[1])

    def _give_back(self, lease: Lease, script: str, error: Exception, rest: Sequence[str | int]) -> str:
        """Run a script that makes the registration due again after a pause, or ends it; what it says it did."""
        settings = self._settings
        answer = scripts.call(
            self._redis,
            script,
            keys=[self._keys.registration(lease.registration.id)],
            args=[
                *self._lease_arguments(lease),
                _described(error),
                int(settings.backoff_first_s * _US_PER_S),
                int(settings.backoff_max_s * _US_PER_S),
                *rest,
            ],
        )
        if answer[0] == "lost":
            raise LeaseLost
        return str(answer[0])

    def _lease_arguments(self, lease: Lease) -> list[str | int]:
        return [self._keys.prefix, lease.registration.id, lease.stage, lease.epoch, lease.owner]

    def _registration(self, registration_id: str) -> Registration | None:
        fields = command(self._redis, "HGETALL", self._keys.registration(registration_id))
        return parse_registration(fields) if fields else None

    def _accepted(self, registration_id: str) -> Registration | None:
        accepted = command(self._redis, "HGETALL", self._keys.accepted(registration_id))
        if not accepted:
            return None
        event = json.loads(accepted["event"])
        basics = {name: event[name] for name in ("namespace", "name", "base_model", "source")}
        order = accepted["order"]
        return parse_registration(
            {**basics, "id": registration_id, "state": "received", "stage": "", "order": order, "attempts": "0"}
        )

    def _dead_letter(self, registration: Registration) -> DeadLetter:
        entries = command(self._redis, "LRANGE", self._keys.history(registration.id), 0, -1)
        history = tuple(json.loads(entry) for entry in entries)
        return DeadLetter(registration, registration.fields.get("dead_stage", ""), history)


def _described(error: Exception) -> str:
    """The error as an entry of the history has it: a JSON object without its braces."""
    text = f"{type(error).__name__}: {error}"[:1000]
    return json.dumps({"code": getattr(error, "code", "UNEXPECTED"), "error": text})[1:-1]
