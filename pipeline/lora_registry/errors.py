"""Everything this package raises, sorted by what the caller must do.

    RegistryError
    ├── Rejected            the request is wrong: record the findings, never retry
    │   ├── InvalidName
    │   ├── IdempotencyConflict
    │   └── ConfigError, HeaderError, BaseProfileError (beside what they judge)
    ├── Transient           the world is wrong: retry with backoff, then dead-letter
    │   ├── RedisUnavailable
    │   ├── ServerNotAdmitted
    │   ├── ArtifactBusy
    │   ├── QueueFull
    │   ├── RateLimited
    │   ├── SourceTooSlow
    │   ├── CanaryEngineUnfit  the canary engine cannot judge now: that blames no adapter
    │   ├── ProcessUnfit    … and only in another process: record, then end this one
    │   └── Deferred        not there yet: looked at again at no cost, and rejected when its time is up
    ├── LeaseLost           someone else owns the registration: stop, write nothing
    │   └── EngineBusy      the canary engine tries another candidate; the registration was given back, at no cost
    ├── AnnouncementGap     the log no longer reaches back to the cursor: resync from the snapshot
    ├── NotFound            nothing of that name is registered
    ├── Conflict            the state is not what the caller expected: read it again, then decide
    ├── NotServed           nodes cannot serve a version as asked: look at the rollout
    ├── PromotionAborted    the gate did not open: the alias is where it was
    ├── ArtifactDamaged     what the artifact store holds is not what the digest says: do not use it
    ├── WaitTimeout         the outcome did not come in time; the registration goes on
    ├── Configuration       the settings are wrong: fail at start
    └── WrongUsage          the command line is wrong: read its help

The docstring of a class is its default message. Every error has a stable ``code`` and a ``remedy``, and
survives pickling, attributes included.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from lora_registry.findings import Finding


class RegistryError(Exception):
    """The registry could not do what was asked."""

    code: ClassVar[str] = "REGISTRY_ERROR"
    remedy: str = "See the message."

    def __init__(self, message: str | None = None, *, remedy: str | None = None) -> None:
        self.message = message or inspect.getdoc(type(self)) or type(self).__name__
        super().__init__(self.message)
        if remedy:
            self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, vars(self)))


class Rejected(RegistryError):
    """The request is wrong; trying again gives the same answer."""

    code = "REJECTED"
    remedy = "Read the findings, mend the adapter or the request, and register again."

    def __init__(
        self, message: str | None = None, *, findings: tuple[Finding, ...] = (), remedy: str | None = None
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.findings = findings


class InvalidName(Rejected):
    """That is not a legal name."""

    code = "NAME_INVALID"
    remedy = "Use lower-case letters, digits, '_' and '-', at most 96 of them, and no reserved word."


class IdempotencyConflict(Rejected):
    """The idempotency key was already used for another request."""

    code = "IDEMPOTENCY_CONFLICT"
    remedy = "Use a new key for a new request; repeat the old request unchanged to get its registration."


class Transient(RegistryError):
    """Something outside the request failed; it may work later."""

    code = "TRANSIENT"
    remedy = "Nothing: it is retried. If it lasts, look at the message."


class RedisUnavailable(Transient):
    """Redis is out of reach."""

    code = "REDIS_UNAVAILABLE"
    remedy = "Check LORA_REGISTRY_REDIS_URL and that the server runs; `lora-registry up` starts one."


class ServerNotAdmitted(Transient):
    """The Redis server was started or replaced, and the dispatcher has not admitted it yet."""

    code = "SERVER_NOT_ADMITTED"
    remedy = "Start the dispatcher (`lora-registry dispatcher`): it admits the server soon, or its log says why not."


class QueueFull(Transient):
    """The event queue is full; nothing was accepted."""

    code = "QUEUE_FULL"
    remedy = "Start more workers or wait; the limit is LORA_REGISTRY_MAX_QUEUED_EVENTS."


class ProcessUnfit(Transient):
    """Something failed that this process does not recover from; another one may do the work."""

    code = "PROCESS_UNFIT"
    remedy = "Nothing: it is retried in a new process. If it lasts, look at the message."


class RateLimited(Transient):
    """The place is asked too often."""

    code = "RATE_LIMITED"
    remedy = "Nothing: it is retried. If it lasts, give a credential with a higher limit."

    def __init__(self, message: str | None = None, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SourceTooSlow(Transient):
    """The place answers so slowly that finding the adapter there took longer than it may."""

    code = "SOURCE_TOO_SLOW"
    remedy = "Nothing: it is retried. If it lasts, move the adapter, or raise LORA_REGISTRY_RESOLVE_TIME_LIMIT_S."


class Deferred(Transient):
    """Not all of it is there yet."""

    code = "DEFERRED"
    remedy = "Nothing: it is looked at again. Finish the upload."

    def __init__(
        self, message: str | None = None, *, findings: tuple[Finding, ...] = (), deadline_s: float = 0.0
    ) -> None:
        """Say what is missing.

        Args:
            message: as with every error.
            findings: what the registration is rejected with if that is still so at the deadline.
            deadline_s: seconds from when the registration was taken into the ledger.
        """
        super().__init__(message)
        self.findings = findings
        self.deadline_s = deadline_s


class CanaryEngineUnfit(Transient):
    """The canary engine is out of reach, unwell, or not set up for this."""

    code = "CANARY_ENGINE_UNFIT"
    remedy = "Look at the engine and its log, and at LORA_REGISTRY_CANARY_ENGINES of the canary workers."


class LeaseLost(RegistryError):
    """Another worker owns this registration now."""

    code = "LEASE_LOST"
    remedy = "Nothing: the other worker finishes it."


class EngineBusy(LeaseLost):
    """The canary engine tries another candidate; the registration was given back, at no cost."""

    code = "ENGINE_BUSY"
    remedy = "Nothing: it is due again in a moment."


class AnnouncementGap(RegistryError):
    """The announcement log no longer reaches back to the cursor."""

    code = "ANNOUNCEMENT_GAP"
    remedy = "Nothing: the subscriber resyncs from the snapshot."


class NotFound(RegistryError):
    """Nothing of that name is registered."""

    code = "NOT_FOUND"
    remedy = "List what there is with `lora-registry list` or `lora-registry base list`."


class Conflict(RegistryError):
    """The state is not the one that was expected."""

    code = "CONFLICT"
    remedy = "Read the current state and decide again."

    def __init__(
        self, message: str | None = None, *, remedy: str | None = None, current_version: int | None = None
    ) -> None:
        """Say what is so instead.

        Args:
            message, remedy: as with every error.
            current_version: of an alias: what it points at; 0: at none.
        """
        super().__init__(message, remedy=remedy)
        self.current_version = current_version


class NotServed(RegistryError):
    """No serving node can serve the version as asked."""

    code = "NOT_SERVED"
    remedy = "See what the nodes say with `lora-registry rollout NAME`, and which there are with `lora-registry nodes`."


class PromotionAborted(RegistryError):
    """The promotion was given up."""

    code = "PROMOTION_ABORTED"
    remedy = "See what the nodes say with `lora-registry rollout NAME`; promote again when they can serve it."


class ArtifactDamaged(RegistryError):
    """The artifact store does not hold the bytes that the digest was taken over."""

    code = "ARTIFACT_DAMAGED"
    remedy = "Restore it from a backup, or remove its directory and register the adapter again."


class ArtifactBusy(Transient):
    """An artifact of the same bytes is being removed at this moment."""

    code = "ARTIFACT_BUSY"
    remedy = "Nothing: it is retried, and kept anew once it is gone."


class WaitTimeout(RegistryError):
    """The outcome did not come in time; the registration goes on."""

    code = "WAIT_TIMEOUT"
    remedy = "Ask again with `lora-registry status`; check that the dispatcher and the workers run."


class Configuration(RegistryError):
    """The configuration is wrong."""

    code = "CONFIGURATION"
    remedy = "Correct the setting that the message names."


class WrongUsage(RegistryError):
    """The command line is wrong."""

    code = "WRONG_USAGE"
    remedy = "See what the command takes with `--help`."


def _rebuild(kind: type[RegistryError], message: str, attributes: dict[str, object]) -> RegistryError:
    """Make an unpickled error without its constructor, whose arguments differ from class to class."""
    error = kind.__new__(kind, message)
    error.__dict__.update(attributes)
    return error
