"""What a woken worker does: claim due registrations of its stage, work on each by itself, hand each on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from lora_registry.errors import Deferred, LeaseLost, ProcessUnfit, RegistryError, Rejected, Transient
from lora_registry.leases import LeaseKeeper
from lora_registry.ledger import Lease, Ledger
from lora_registry.registrations import Outcome
from lora_registry.stages import Stage, after

Perform = Callable[[Lease], Mapping[str, str | int] | None]
"""A stage's function: returns what later stages need, or None if it ended the registration itself."""
Wake = Callable[[Stage, int], None]
"""Sends so many wake-up messages to a stage."""

HOLD_S = 0.05
"""While more work is due, wake-ups for the next stage wait so long, so that its claims find whole batches."""

logger = logging.getLogger(__name__)


def work(
    stage: Stage, perform: Perform, *, ledger: Ledger, keeper: LeaseKeeper, wake: Wake, owner: str, budget_s: float
) -> int:
    """Work on due registrations of `stage` until none is due or `budget_s` is spent.

    The budget lets a worker process return to Celery now and then, for shutdown and time limits.

    Returns:
        Number of registrations worked on.

    Raises:
        RedisUnavailable: the server is out of reach; what is leased is due again when its lease runs out.
    """
    deadline = time.monotonic() + budget_s
    done, woken = 0, True
    held = _HeldWakeUps(after(stage), wake)
    try:
        while True:
            claim = ledger.claim(stage, owner=owner, woken=woken)
            if claim.wake_ups:
                wake(stage, claim.wake_ups)
            if not claim.leases:
                return done
            with keeper.keep(claim.leases):
                for place, lease in enumerate(claim.leases, start=1):
                    is_last = place == len(claim.leases) and not claim.more_due
                    held.add(_work_on(lease, perform, ledger), hold=not is_last)
            done += len(claim.leases)
            woken = False
            if time.monotonic() > deadline:
                _leave(stage, ledger, wake, owner)
                return done
    finally:
        held.send()


class _HeldWakeUps:
    """Wake-ups for the next stage that are not sent yet.

    A timer sends them, not the next look of the worker: what it works on next may take minutes.
    """

    def __init__(self, stage: Stage | None, wake: Wake) -> None:
        self._stage = stage
        self._wake = wake
        self._count = 0
        self._changed = threading.Lock()
        self._timer: threading.Timer | None = None

    def add(self, count: int, *, hold: bool) -> None:
        """Add `count`; send all now, or `HOLD_S` after the first of them."""
        with self._changed:
            self._count += count
            if hold and self._count and self._timer is None:
                self._timer = threading.Timer(HOLD_S, self.send)
                self._timer.daemon = True
                self._timer.start()
        if not hold:
            self.send()

    def send(self) -> None:
        """Send what is held."""
        with self._changed:
            count, self._count = self._count, 0
            if self._timer:
                self._timer.cancel()
                self._timer = None
        if count and self._stage:
            self._wake(self._stage, count)


def _leave(stage: Stage, ledger: Ledger, wake: Wake, owner: str) -> None:
    """Before a worker stops with work still due: the wake-up that led here is used up, so send one for the rest."""
    missing = ledger.sweep(stage)
    if missing:
        wake(stage, missing)
    logger.debug("%s: %s spent its budget, sent %d wake-ups", stage, owner, missing)


def _work_on(lease: Lease, perform: Perform, ledger: Ledger) -> int:
    """Work on one registration; whatever goes wrong is recorded with it and touches no other.

    Returns:
        Number of wake-ups to send to the next stage.
    """
    try:
        fields = perform(lease)
        return 0 if fields is None else ledger.complete(lease, fields)
    except Rejected as error:
        _record(lease, ledger.finish, lease, Outcome.REJECTED, error.findings)
    except LeaseLost:
        logger.info("%s: the lease on %s is lost", lease.stage, lease.registration.id)
    except Deferred as error:
        _record(lease, ledger.defer, lease, error)
    except Transient as error:
        _record(lease, ledger.fail, lease, error)
        if isinstance(error, ProcessUnfit):
            raise
    except Exception as error:  # the boundary: recorded in the registration's history
        logger.exception("%s failed on %s", lease.stage, lease.registration.id)
        _record(lease, ledger.fail, lease, error)
    return 0


def _record(lease: Lease, write: Callable[..., object], *arguments: object) -> None:
    try:
        write(*arguments)
    except RegistryError as error:
        # Nothing is lost: the lease runs out, and the registration is due again.
        logger.warning("%s: %s could not be recorded: %s", lease.stage, lease.registration.id, error)
    except Exception:  # the boundary, as above; what cannot be recorded must not hurt the rest of the batch either
        logger.exception("%s: %s could not be recorded", lease.stage, lease.registration.id)
