"""The dispatcher: takes events off the queue into the ledger, wakes stages, sweeps, and admits servers.

Any number may run; each step is one script, so it does not matter which of them takes it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable

from celery import Celery

from lora_registry.connection import LONGEST_BLOCK_S, connect
from lora_registry.errors import RedisUnavailable, ServerNotAdmitted
from lora_registry.hook_events import PendingEvents
from lora_registry.inbox import Inbox, admit
from lora_registry.ledger import Ledger
from lora_registry.open_promotions import OpenPromotions
from lora_registry.settings import Settings
from lora_registry.stages import ORDER, Stage
from lora_workers.celery_app import make_app, send_wake_ups, wake_for_promotions

_RETRY_S = 0.2
_TAKE_OVER_IDLE_S = 5.0
_SAID_AGAIN_S = 5.0
logger = logging.getLogger(__name__)


class Dispatcher:
    """One dispatcher.

    Args:
        settings: the registry's settings.
        app: Celery app to send wake-ups with; default: one for the settings.
    """

    def __init__(self, settings: Settings, *, app: Celery | None = None) -> None:
        self._settings = settings
        self._client = connect(settings.redis_url, name="lora-dispatcher")
        self._inbox = Inbox(self._client, settings)
        self._pending = PendingEvents(self._client, settings)
        self._ledger = Ledger(self._client, settings)
        self._promotions = OpenPromotions(self._client, settings)
        self._app = app or make_app(settings)
        self._consumer = f"{socket.gethostname()}:{os.getpid()}"
        self._next_sweep = 0.0
        self._generation = ""
        self._stopping = False

    def run(self) -> None:
        """Dispatch until `stop`, or SIGTERM or SIGINT; an outage of Redis is waited out."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())
        while not self._stopping:
            try:
                self.step()
            except RedisUnavailable as error:
                logger.warning("%s", error)
                time.sleep(_RETRY_S)
            except ServerNotAdmitted as error:
                logger.error("%s. %s", error.message, error.remedy)
                self._rest(_SAID_AGAIN_S)

    def _rest(self, pause_s: float) -> None:
        until = time.monotonic() + pause_s
        while not self._stopping and time.monotonic() < until:
            time.sleep(_RETRY_S)

    def stop(self) -> None:
        """End after the current step."""
        self._stopping = True

    def step(self) -> int:
        """Sweep if it is time, then dispatch what is there, waiting for it until the next sweep.

        Returns:
            Number of events dispatched.

        Raises:
            ServerNotAdmitted: the server is empty, and was not before.
            RedisUnavailable: the server is out of reach.
        """
        entries = []
        if time.monotonic() >= self._next_sweep:
            entries = self._sweep()
            self._next_sweep = time.monotonic() + self._settings.sweep_interval_s
        wait_s = min(LONGEST_BLOCK_S, max(0.001, self._next_sweep - time.monotonic()))
        entries = entries or self._inbox.read(self._consumer, block_s=wait_s)
        for entry in entries:
            self._wake(ORDER[0], self._inbox.dispatch(entry))
        return len(entries)

    def _sweep(self) -> list[tuple[str, dict[str, str]]]:
        """Admit a new server, wake for what was lost, accept what hooks ask for, take over events."""
        is_new, self._generation = admit(self._client, self._settings, known=self._generation)
        if is_new:
            logger.warning("admitted a new server; generation %s", self._generation)
            self._inbox.forget_consumers()
        passed = self._ledger.pass_over(Stage.CANARY, stays=self._settings.canary_engines)
        self._wake(Stage.PUBLISH, passed)
        for stage in ORDER:
            self._wake(stage, self._ledger.sweep(stage))
        if self._promotions.wake_ups():
            self._send(lambda: wake_for_promotions(self._app), what="promotions")
        self._pending.release(self._inbox)
        return self._inbox.take_over(self._consumer, idle_s=_TAKE_OVER_IDLE_S)

    def _wake(self, stage: Stage, count: int) -> None:
        if count:
            self._send(lambda: send_wake_ups(self._app, stage, count), what=stage)

    @staticmethod
    def _send(send: Callable[[], None], *, what: str) -> None:
        try:
            send()
        except Exception as error:  # noqa: BLE001 - whatever it is: a later sweep sends them again
            logger.warning("could not wake %s: %s", what, error)
