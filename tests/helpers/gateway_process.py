"""A gateway as a process of its own, which a test can kill and start again on the same port."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import Popen

import httpx

from lora_registry.settings import Settings
from lora_workers import processes
from tests.helpers.stack import environment_of
from tests.helpers.waiting import wait_until


class GatewayProcess:
    """`lora-registry gateway` on a free port.

    Args:
        settings: the registry's settings.
        log: file for what it prints.
        environment: variables besides the settings, such as secrets.
    """

    def __init__(self, settings: Settings, log: Path, *, environment: Mapping[str, str] | None = None) -> None:
        self._settings = settings
        self._environment = dict(environment or {})
        self._log = log
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=60)
        self.process = self.start()

    def start(self, *, host: str = "127.0.0.1") -> Popen[bytes]:
        """Start it and wait until it listens."""
        known = self.said().count("listening on")
        command = [sys.executable, "-m", "lora_workers", "gateway", "--host", host, "--port", str(self._port)]
        with self._log.open("ab") as log:
            self.process = processes.start(
                command, environment=environment_of(self._settings) | self._environment, log=log
            )
        wait_until(lambda: self.said().count("listening on") > known, what="the gateway", every_s=0.01)
        return self.process

    def kill(self) -> None:
        """End it as a crash would."""
        processes.kill_group(self.process)
        self.process.wait()

    def close(self) -> None:
        """End it."""
        self.kill()
        self.client.close()
        print(self.said()[-6000:])

    def said(self) -> str:
        """What it has printed."""
        return self._log.read_text() if self._log.exists() else ""

    def answered(self, path: str) -> list[int]:
        """Statuses that its access log has for a path."""
        return [int(each) for each in re.findall(rf"'{re.escape(path)}' (\d+) ", self.said())]
