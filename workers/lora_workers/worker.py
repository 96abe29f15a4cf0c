"""A worker process: Celery consuming the queues of some stages."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from celery import Celery
from celery.signals import worker_process_init, worker_ready, worker_shutting_down

from lora_registry.connection import connect
from lora_registry.engine_profiles import find_profiles
from lora_registry.errors import RegistryError
from lora_registry.ledger import Ledger
from lora_registry.settings import Settings
from lora_registry.stages import Stage
from lora_workers.celery_app import make_app, spawn_children
from lora_workers.numeric_needs import count_gpus, require_numeric
from lora_workers.processes import die_with_parent
from lora_workers.sources import open_sources
from lora_workers.tasks import Around, Station, rebuild_app, register_tasks

_SLOTS_FOR_S = 30.0
_STALLED = 70
"""Exit code of a worker that ends because it hangs. Source: sysexits.h, EX_SOFTWARE."""
logger = logging.getLogger(__name__)


def run_worker(
    settings: Settings, stages: Sequence[Stage], *, concurrency: int = 1, around: Around | None = None
) -> int:
    """Run a worker until it is told to stop (SIGTERM: finish what is running).

    Args:
        settings: the registry's settings.
        stages: stages to work on.
        concurrency: child processes; each works on one claim at a time.
        around: put around every stage's function.

    With numeric validation on GPUs there is one child for each GPU instead, a fresh interpreter without `around`.

    Returns:
        Exit code for the process.

    Raises:
        Configuration: an engine profile or the credentials file cannot be read, or a scheme has no library here.
        MissingExtra: a validate worker has no torch, and numeric validation is not switched off.
    """
    find_profiles(settings.engine_profiles)  # what is wrong with them is said before anything starts
    open_sources(settings)
    gpus = _count_gpus(settings, stages)
    app = make_app(settings)
    register_tasks(app, Station(app, settings, around=around))
    if gpus:
        concurrency = gpus
        level = logging.getLogger().getEffectiveLevel()
        spawn_children(app, rebuild=rebuild_app, arguments=(settings.model_dump_json(), level))
    worker_process_init.connect(_on_child_start, weak=False)
    slots = _Slots(settings, stages, concurrency)
    worker_ready.connect(slots.start, weak=False)
    worker_shutting_down.connect(slots.stop, weak=False)
    # Soft shutdown: give running tasks a while, then put their messages back. Source: celery 5.7, REMAP_SIGTERM.
    os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")
    return _run(app, stages, concurrency)


def _count_gpus(settings: Settings, stages: Sequence[Stage]) -> int:
    """Number of GPUs to use; 0: compute on the CPU, or nothing."""
    if Stage.VALIDATE not in stages or settings.numeric == "off":
        return 0
    require_numeric()
    if settings.device == "cuda":
        return count_gpus() or 1  # where they are not seen from here, torch may still find one
    return count_gpus() if settings.device == "auto" else 0


def _run(app: Celery, stages: Sequence[Stage], concurrency: int) -> int:
    # Remote control stays on: without it and without these three, a worker hangs when the broker restarts.
    arguments = [
        "--quiet",
        "worker",
        "--without-gossip",
        "--without-mingle",
        "--without-heartbeat",
        "--pool=prefork",
        f"--concurrency={concurrency}",
        f"--queues={','.join(stages)}",
        f"--hostname={'-'.join(stages)}.{os.getpid()}@{socket.gethostname()}",
        "--loglevel=WARNING",
    ]
    try:
        app.worker_main(arguments)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0


def _on_child_start(**_: Any) -> None:
    die_with_parent()


class _Slots:
    """Tells the ledger, as long as the worker lives, how many claims it can work on at once.

    A Celery worker can outlive a restart of its broker and consume nothing. So when due work is not claimed by
    anybody, the process ends, and whoever supervises it starts a new one.
    """

    def __init__(self, settings: Settings, stages: Sequence[Stage], concurrency: int) -> None:
        self._settings = settings
        self._stages = stages
        self._names = [f"{socket.gethostname()}:{os.getpid()}:{slot}" for slot in range(concurrency)]
        self._stop = threading.Event()
        self._started_at = time.monotonic()

    def start(self, **_: Any) -> None:
        """Begin; Celery calls it when the worker consumes."""
        threading.Thread(target=self._run, name="slots", daemon=True).start()

    def stop(self, **_: Any) -> None:
        """End; the slots are forgotten after at most `_SLOTS_FOR_S`."""
        self._stop.set()

    def _run(self) -> None:
        ledger = Ledger(connect(self._settings.redis_url, name="lora-worker-slots"), self._settings)
        while True:
            try:
                for stage in self._stages:
                    ledger.announce_slots(stage, self._names, for_s=_SLOTS_FOR_S)
                    self._end_if_stalled(stage, ledger)
            except RegistryError as error:
                logger.info("slots not announced: %s", error)
            if self._stop.wait(_SLOTS_FOR_S / 3):
                return

    def _end_if_stalled(self, stage: Stage, ledger: Ledger) -> None:
        timeout_s = self._settings.stall_timeout_s
        if time.monotonic() - self._started_at > timeout_s and ledger.pulse(stage).is_stalled(timeout_s):
            logger.error("%s: work is due and nobody claims it; ending, to be started anew", stage)
            os._exit(_STALLED)  # what hangs cannot be asked; the children end with this process
