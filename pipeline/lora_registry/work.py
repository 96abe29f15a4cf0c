"""What a woken worker does: claim due registrations of its stage, work on each by itself, hand each on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from lora_registry.errors import LeaseLost, RegistryError, Rejected, Transient
from lora_registry.ledger import Lease, Ledger
from lora_registry.registrations import Outcome
from lora_registry.stages import Stage, after

Perform = Callable[[Lease], Mapping[str, str | int] | None]
"""A stage's function: returns what later stages need, or None if it ended the registration itself."""
Wake = Callable[[Stage, int], None]
"""Sends so many wake-up messages to a stage."""

logger = logging.getLogger(__name__)


def work(stage: Stage, perform: Perform, *, ledger: Ledger, wake: Wake, owner: str, budget_s: float) -> int:
    """Work on due registrations of `stage` until none is due or `budget_s` is spent.

    The budget lets a worker process return to Celery now and then, for shutdown and time limits.

    Returns:
        Number of registrations worked on.

    Raises:
        RedisUnavailable: the server is out of reach; what is leased is due again when its lease runs out.
    """
    deadline = time.monotonic() + budget_s
    done, woken = 0, True
    while True:
        claim = ledger.claim(stage, owner=owner, woken=woken)
        if claim.wake_ups:
            wake(stage, claim.wake_ups)
        if not claim.leases:
            return done
        wake_ups = 0
        with _renewed(claim.leases, ledger):
            for lease in claim.leases:
                wake_ups += _work_on(lease, perform, ledger)
                if wake_ups and (following := after(stage)):
                    wake(following, wake_ups)
                    wake_ups = 0
        done += len(claim.leases)
        woken = False
        if time.monotonic() > deadline:
            _leave(stage, ledger, wake, owner)
            return done


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
    except Transient as error:
        _record(lease, ledger.fail, lease, error)
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


@contextmanager
def _renewed(leases: tuple[Lease, ...], ledger: Ledger) -> Iterator[None]:
    """Renew the leases every third of their length while the body runs."""
    stop = threading.Event()

    def renew() -> None:
        held = list(leases)
        while held and not stop.wait(ledger.lease_s / 3):
            for lease in list(held):
                try:
                    ledger.renew(lease)
                except LeaseLost:
                    held.remove(lease)
                except Transient:
                    break

    thread = threading.Thread(target=renew, name="lease-renewal", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
