"""The stand that benchmarks run on: one real server, and processes that end with it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO

import redis

from lora_registry.connection import connect
from lora_registry.inbox import admit
from lora_registry.settings import Settings, load_settings
from lora_workers import processes
from lora_workers.embedded import EmbeddedValkey
from tests.benchmarks.versions import PublishedVersions

ROOT = Path(__file__).parents[2]
_SIZES = {False: (1_000, 100_000), True: (1_000, 10_000)}


@dataclass
class Stand:
    """What a benchmark is given.

    Attributes:
        url: the server, a unix socket.
        directory: for artifacts and logs.
        quick: take fewer and smaller rounds.
    """

    url: str
    directory: Path
    quick: bool = False
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def settings(self, prefix: str) -> Settings:
        """Settings of a registry of its own, under `prefix`."""
        return load_settings(
            redis_url=self.url,
            key_prefix=prefix,
            source_roots=(self.directory,),
            artifact_store=self.directory / "artifacts",
            numeric="off",  # its own benchmark measures it
        )

    def connect(self) -> redis.Redis:
        """A connection such as the project itself uses."""
        return connect(self.url, name="benchmark")

    @property
    def socket_path(self) -> str:
        """Path of the server's unix socket."""
        return self.url.removeprefix("unix://")

    def start(self, module: str, *arguments: str, settings: Settings | None = None) -> None:
        """Start `python -m module`, its settings in its environment; it ends with the stand."""
        with (self.directory / "processes.log").open("ab") as log:
            process = processes.start(
                [sys.executable, "-m", module, *arguments], environment=environment_of(settings), log=log
            )
        self._started.append(process)

    def log_tail(self) -> str:
        """The last that the started processes wrote."""
        return (self.directory / "processes.log").read_text(errors="replace")[-4000:]

    def stop(self) -> None:
        """End what was started."""
        for process in self._started:
            if process.poll() is None:
                process.terminate()
        for process in self._started:
            processes.stop(process)

    @cached_property
    def small(self) -> PublishedVersions:
        """A registry of 1,000 published versions."""
        return self._filled("{small}", _SIZES[self.quick][0])

    @cached_property
    def large(self) -> PublishedVersions:
        """A registry of 100,000 published versions (a quick run: 10,000)."""
        return self._filled("{large}", _SIZES[self.quick][1])

    def registry(self, prefix: str) -> PublishedVersions:
        """An empty registry under `prefix` that versions can be published in, one script each."""
        settings = self.settings(prefix)
        admit(self.connect(), settings)
        return PublishedVersions(self.connect(), settings, self.directory)

    def _filled(self, prefix: str, count: int) -> PublishedVersions:
        versions = self.registry(prefix)
        print(f"    publishing {count:,} versions", flush=True)
        versions.fill(count)
        return versions


@contextmanager
def open_stand(*, quick: bool) -> Iterator[Stand]:
    """A stand on a server of its own, in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="lora-bench-", ignore_cleanup_errors=True) as directory:
        server = EmbeddedValkey(Path(directory) / "server")
        server.start()
        stand = Stand(server.url, Path(directory), quick)
        try:
            yield stand
        finally:
            stand.stop()
            server.kill()


@contextmanager
def child(module: str, *arguments: str) -> Iterator[IO[str]]:
    """A process `python -m module` that reports on its standard output."""
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout
    try:
        yield process.stdout
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def environment_of(settings: Settings | None) -> dict[str, str]:
    """Environment variables for a child process of these settings."""
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if settings:
        environment |= {
            "LORA_REGISTRY_REDIS_URL": settings.redis_url,
            "LORA_REGISTRY_KEY_PREFIX": settings.key_prefix,
            "LORA_REGISTRY_SOURCE_ROOTS": ":".join(str(root) for root in settings.source_roots),
            "LORA_REGISTRY_ARTIFACT_STORE": str(settings.artifact_store),
            "LORA_REGISTRY_NUMERIC": settings.numeric,
        }
    return environment
