"""A registry on one machine: a Valkey server, a dispatcher and workers for every stage, as separate processes."""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lora_registry.connection import connect
from lora_registry.errors import Configuration, RegistryError
from lora_registry.ledger import Ledger
from lora_registry.settings import Settings
from lora_registry.stages import Stage, passed
from lora_workers import processes
from lora_workers.embedded import EmbeddedValkey
from lora_workers.supervisor import Child, Supervisor

_LOOK_S = 1.0
_READY_TIMEOUT_S = 60.0
_RECHECK_S = 0.05
_AT_ONCE = {Stage.RESOLVE: 4}
"""Child processes of one worker, if not one. Resolve mostly waits, for places that may never answer: see ADR 0014."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Staffing:
    """How many processes there are, and how they log.

    Attributes:
        workers: worker processes of each stage.
        validate_workers: worker processes of validate, the stage that takes long.
        log_level: level of all processes.
        log: file for what the processes print; None: this process's own output.
        gateway_port: port of the HTTP gateway on loopback; None: there is none.
        with_resync: whether there are watched places to look at.
    """

    workers: int = 1
    validate_workers: int = 1
    log_level: str = "warning"
    log: Path | None = None
    gateway_port: int | None = None
    with_resync: bool = False

    def children(self, settings: Settings) -> list[Child]:
        """The processes to run, dispatcher first."""
        children = [self._child("dispatcher", ["dispatcher"], settings)]
        for stage in passed(canary=bool(settings.canary_engines)):
            for number in range(self._count(stage, settings)):
                arguments = ["worker", "--queues", stage.value, "--concurrency", str(_AT_ONCE.get(stage, 1))]
                child = self._child(f"{stage} worker {number + 1}", arguments, settings)
                child.stages = (stage,)
                children.append(child)
        if self.gateway_port:
            children.append(self._child("gateway", ["gateway", "--port", str(self.gateway_port)], settings))
        if self.with_resync:
            children.append(self._child("resync", ["resync"], settings))
        return children

    def _count(self, stage: Stage, settings: Settings) -> int:
        if stage is Stage.CANARY:
            return len(set(settings.canary_engines.values()))  # an engine takes one candidate at a time
        return self.validate_workers if stage is Stage.VALIDATE else self.workers

    def _child(self, name: str, arguments: list[str], settings: Settings) -> Child:
        command = [sys.executable, "-m", "lora_workers", *arguments, "--log-level", self.log_level]
        return Child(name, command, environment=environment_of(settings), log=self.log)


class Installation:
    """Everything of one registry, started, looked after and ended together.

    Args:
        settings: the registry's settings; its `redis_url` is the server's.
        server: the server to run; None if one is running elsewhere.
        staffing: how many processes.
    """

    def __init__(self, settings: Settings, *, server: EmbeddedValkey | None, staffing: Staffing) -> None:
        self._server = server
        self._stages = passed(canary=bool(settings.canary_engines))
        self._ledger = Ledger(connect(settings.redis_url, name="lora-supervisor"), settings)
        self._supervisor = Supervisor(
            staffing.children(settings), ledger=self._ledger, stall_timeout_s=settings.stall_timeout_s
        )

    @property
    def size(self) -> int:
        """Number of processes, the server not counted."""
        return len(self._supervisor.children)

    @property
    def worker_count(self) -> int:
        """Number of workers."""
        return sum(bool(child.stages) for child in self._supervisor.children)

    @property
    def others(self) -> list[str]:
        """What there is besides workers."""
        return [f"the {child.name}" for child in self._supervisor.children if not child.stages]

    def start_server(self) -> None:
        """Start the server, if it is ours.

        Raises:
            Configuration: it does not start.
        """
        if self._server:
            self._server.start()

    def start_processes(self) -> None:
        """Start dispatcher and workers. Call it in the main thread: they end when the thread does that started them."""
        self._supervisor.start()

    def is_ready(self, *, within_s: float = _READY_TIMEOUT_S) -> bool:
        """Wait until every stage has a worker; False if that takes longer than `within_s`.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        deadline = time.monotonic() + within_s
        while not all(self._ledger.pulse(stage).slots for stage in self._stages):
            if time.monotonic() > deadline:
                return False
            time.sleep(_RECHECK_S)
        return True

    def run(self, *, until: Callable[[], bool]) -> None:
        """Restart what dies or hangs, until `until` answers True."""
        next_look = time.monotonic()
        while not until():
            if time.monotonic() >= next_look:
                self.look()
                next_look = time.monotonic() + _LOOK_S
            time.sleep(_RECHECK_S)

    def look(self) -> None:
        """Look once: restart what has died or hangs, the server first."""
        server = self._server
        if server and (server.process is None or server.process.poll() is not None):
            logger.warning(
                "Valkey ended with exit code %s; restarting it", server.process and server.process.returncode
            )
            try:
                server.start()
            except RegistryError as error:
                logger.error("%s", error)
                server.kill()
                return
            # A Celery worker may live on after its broker was restarted and consume nothing, without a word.
            self._supervisor.renew_workers()
        self._supervisor.look()

    def stop(self) -> None:
        """End everything in order, the server last. Interrupted (a second Ctrl-C), it kills what is left."""
        try:
            self._supervisor.stop()
        except KeyboardInterrupt:
            for child in self._supervisor.children:
                if child.process:
                    processes.kill_group(child.process)
        finally:
            if self._server:
                self._server.stop()


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment from which another process reads the same settings.

    Raises:
        Configuration: a source root has a colon in its name.
    """
    if any(":" in str(root) for root in settings.source_roots):
        raise Configuration("LORA_REGISTRY_SOURCE_ROOTS: a directory's name holds a ':', which separates them")
    values = settings.model_dump(mode="json")
    values["source_roots"] = ":".join(values["source_roots"])
    values["canary_engines"] = ",".join(f"{base}={engine}" for base, engine in values["canary_engines"].items())
    for name in ("engine_profiles", "allowed_schemes", "allowed_networks", "marker_required"):
        values[name] = ",".join(values[name])
    deadlines = values["incomplete_deadlines_s"].items()
    values["incomplete_deadlines_s"] = ",".join(f"{scheme}={seconds}" for scheme, seconds in deadlines)
    given = {name: value for name, value in values.items() if value is not None}
    return {f"LORA_REGISTRY_{name.upper()}": str(value) for name, value in given.items()}


@contextmanager
def data_directory(path: Path) -> Iterator[Path]:
    """Make the directory of a registry's data and keep it for this process alone.

    Raises:
        Configuration: it cannot be made, or another process runs on it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Configuration(f"{path} cannot be used for data: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path
    except BlockingIOError as error:
        raise Configuration(f"another `lora-registry up` runs on {path}; give --data another directory") from error
    finally:
        os.close(descriptor)
