"""A restarting supervisor: for `lora-registry up`, where no other one (systemd, Kubernetes) is there.

It restarts a process that exits, and the workers of a stage that have stopped claiming: a Celery worker can live on
and consume nothing after its broker was restarted.
"""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from lora_registry.errors import RedisUnavailable
from lora_registry.ledger import Ledger
from lora_registry.stages import Stage
from lora_workers import processes

_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 10.0
_STEADY_S = 30.0
"""A process that lived so long is restarted at once; one that died sooner waits a little longer each time."""
logger = logging.getLogger(__name__)


@dataclass
class Child:
    """One supervised process.

    Attributes:
        name: what logs call it.
        command: program and arguments.
        stages: stages it works on; empty for one that claims nothing.
        log: file that what it prints is added to; None: this process's own output.
    """

    name: str
    command: Sequence[str]
    stages: Sequence[Stage] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    delay_s: float = 0.0
    restarts: int = -1
    log: Path | None = None

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") if self.log else nullcontext() as log:
            self.process = processes.start(self.command, environment=self.environment, log=log)
        self.started_at = time.monotonic()
        self.restarts += 1


class Supervisor:
    """Keeps children running until `stop`.

    Args:
        children: what to run.
        ledger: to see whether stages claim their due work.
        stall_timeout_s: due work that nobody has claimed or leased for so long means that a stage's workers hang.
    """

    def __init__(self, children: Sequence[Child], *, ledger: Ledger, stall_timeout_s: float) -> None:
        self.children = list(children)
        self._ledger = ledger
        self._stall_timeout_s = stall_timeout_s

    def start(self) -> None:
        """Start all children."""
        for child in self.children:
            child.start()

    def look(self) -> None:
        """Look once: restart what has exited or hangs. Call it every second or so."""
        for child in self.children:
            if child.process is None or child.process.poll() is not None:
                self._restart(child)
        for stage in Stage:
            if self._is_stalled(stage):
                for child in self.children:
                    if stage in child.stages and child.process is not None:
                        logger.warning("%s claims no due work; restarting it", child.name)
                        processes.kill_group(child.process)

    def renew_workers(self) -> None:
        """Ask all workers to end, so that `look` starts new ones."""
        for child in self.children:
            if child.stages and child.process is not None and child.process.poll() is None:
                child.process.terminate()

    def stop(self) -> None:
        """Ask all children to end, the last started first, and wait for them."""
        running = [child.process for child in reversed(self.children) if child.process]
        for process in running:
            if process.poll() is None:
                process.terminate()
        for process in running:
            processes.stop(process)

    def _restart(self, child: Child) -> None:
        now = time.monotonic()
        lived_s = now - child.started_at
        if lived_s < child.delay_s:
            return
        code = child.process.returncode if child.process else None
        logger.warning("%s ended with exit code %s; restarting it", child.name, code)
        steady = lived_s > _STEADY_S
        child.delay_s = _FIRST_DELAY_S if steady else min(_LONGEST_DELAY_S, max(_FIRST_DELAY_S, child.delay_s * 2))
        child.start()

    def _is_stalled(self, stage: Stage) -> bool:
        youngest = [time.monotonic() - child.started_at for child in self.children if stage in child.stages]
        if not youngest or min(youngest) < self._stall_timeout_s:
            return False
        try:
            pulse = self._ledger.pulse(stage)
        except RedisUnavailable:
            return False
        return pulse.is_stalled(self._stall_timeout_s)
