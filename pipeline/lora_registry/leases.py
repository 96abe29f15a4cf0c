"""Keeping leases: one thread for each worker process renews what is being worked on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lora_registry.errors import LeaseLost, RegistryError
from lora_registry.ledger import Lease, Ledger

logger = logging.getLogger(__name__)


class LeaseKeeper:
    """Renews the leases that are held, every third of a lease's length.

    The thread begins with the first lease, so after any fork, and is kept: starting one for each claim costs more than
    many a stage's work.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._held: dict[str, Lease] = {}
        self._changed = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def keep(self, leases: tuple[Lease, ...]) -> Iterator[None]:
        """Renew `leases` while the body runs; one that is lost is no longer renewed."""
        with self._changed:
            self._held.update({lease.registration.id: lease for lease in leases})
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            for lease in leases:
                self._let_go(lease)

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(self._ledger.lease_s / 3):
            with self._changed:
                held = tuple(self._held.values())
            for lease in held:
                if not self._renew(lease):
                    self._let_go(lease)

    def _let_go(self, lease: Lease) -> None:
        with self._changed:
            # By now a later lease on the same registration, in its next stage, may be held.
            if self._held.get(lease.registration.id) == lease:
                del self._held[lease.registration.id]

    def _renew(self, lease: Lease) -> bool:
        try:
            self._ledger.renew(lease)
        except LeaseLost:
            return False
        except RegistryError as error:  # the next round tries again; the lease is longer than three of them
            logger.info("the lease on %s was not renewed: %s", lease.registration.id, error)
        return True
