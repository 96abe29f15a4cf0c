"""The gateway as a real process, which a test can kill."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import Popen

import httpx

from lora_registry.settings import Settings
from lora_workers import processes
from tests.helpers.hooks import SECRETS, Sent
from tests.helpers.stack import environment_of
from tests.helpers.waiting import wait_until

_LISTENS = re.compile(r"listening on (http://\S+)")


class GatewayProcess:
    """One `lora-registry gateway` on a free loopback port.

    Args:
        settings: the registry's settings, hooks file included.
        log: file that its output goes to.
    """

    def __init__(self, settings: Settings, log: Path, *, environment: Mapping[str, str] = SECRETS) -> None:
        self._environment = environment_of(settings) | dict(environment)
        self._log = log
        self.url = ""
        self.process: Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        command = [sys.executable, "-m", "lora_workers", "gateway", "--host", "127.0.0.1", "--port", "0"]
        with self._log.open("wb") as log:
            self.process = processes.start(command, environment=self._environment, log=log)
        found = wait_until(
            lambda: _LISTENS.search(self._log.read_text(errors="replace")) or self._ended(), what="the gateway"
        )
        self.url = found[1]

    def kill(self) -> None:
        """End it as a crash would."""
        if self.process:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def post(self, sent: Sent) -> httpx.Response:
        """Deliver; the answer."""
        return httpx.post(
            f"{self.url}/v1/webhooks/{sent.hook}", content=sent.body, headers=dict(sent.headers), timeout=20
        )

    def verdict(self, sent: Sent) -> str:
        """Deliver; what the answer calls it."""
        answer = self.post(sent)
        assert answer.status_code in (200, 202), answer.text
        return str(answer.json()["verdict"])

    def _ended(self) -> None:
        assert self.process is not None
        assert self.process.poll() is None, self._log.read_text(errors="replace")
