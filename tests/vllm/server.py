"""Real vLLM servers as processes of their own, which a test can kill and start again."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx

from lora_workers import processes
from tests.helpers.waiting import wait_until

ROOT = Path(__file__).parents[2]
VLLM = ROOT / ".venv-vllm" / "bin" / "vllm"
SOURCES = {"PYTHONPATH": os.pathsep.join(str(ROOT / each) for each in ("pipeline", "workers"))}
"""vLLM's environment knows the plug-in from wherever it was installed; what runs is the code of this checkout."""
_START_TIMEOUT_S = 240.0
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else the workers of all servers here wait for one core
    "TORCHDYNAMO_DISABLE": "1",  # else the first log-probabilities compile C++ for twenty seconds
    "VLLM_LOGGING_LEVEL": "INFO",
}


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class VllmServer:
    """One `vllm serve` on the CPU.

    Args:
        base: directory of the base model.
        directory: for its log.
        environment: variables on top of the usual ones.
        arguments: arguments of `vllm serve` on top of the usual ones; a later one replaces an earlier.
    """

    def __init__(
        self, base: Path, directory: Path, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self._base = base
        self._arguments = arguments
        self._environment = dict(environment or {})
        self._port = free_port()
        self.log = directory / "vllm.log"
        directory.mkdir(parents=True, exist_ok=True)
        self._process: Popen[bytes] | None = None
        self.http = httpx.Client(base_url=self.url, timeout=120.0)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it; `wait` waits until it answers. Two servers start faster side by side."""
        options = {
            "--served-model-name": "base",
            "--host": "127.0.0.1",
            "--port": str(self._port),
            "--dtype": "float32",
            "--max-model-len": "512",
            "--max-num-seqs": "8",
            "--block-size": "32",
            "--max-lora-rank": "16",
            "--max-loras": "16",
            "--max-cpu-loras": "32",
        }
        usual = [part for option in options.items() for part in option]
        switches = ["--enforce-eager", "--enable-lora"]
        environment = _ENVIRONMENT | SOURCES | self._environment
        with self.log.open("ab") as log:
            command = [VLLM, "serve", self._base, *usual, *switches, *self._arguments]
            self._process = processes.start(command, environment=environment, log=log)

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            AssertionError: it ended, or takes too long; the end of its log is printed.
        """
        try:
            wait_until(self._is_up, what=f"vLLM at {self.url}", timeout_s=_START_TIMEOUT_S, every_s=0.25)
        except AssertionError:
            print(self.log.read_text(errors="replace")[-6000:])
            raise

    def _is_up(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise AssertionError("vLLM ended")
        return self.is_healthy()

    def is_healthy(self) -> bool:
        """Whether `/health` answers 200."""
        try:
            return self.http.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """End it and its engine as a crash would."""
        if self._process:
            processes.kill_group(self._process)
            self._process.wait()

    def stop(self) -> None:
        """End it."""
        self.http.close()
        self.kill()

    # Requests

    def listed(self) -> dict[str, str]:
        """Names of models → their root."""
        return {card["id"]: card["root"] for card in self.http.get("/v1/models").json()["data"]}

    def complete(self, model: str, prompt: str | list[int], *, tokens: int = 12, **fields: Any) -> httpx.Response:
        """Ask for a completion that always takes the likeliest token."""
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 0}
        return self.http.post("/v1/completions", json=body | fields)


def environment_of_a_node(settings_environment: Mapping[str, str], **variables: str) -> dict[str, str]:
    """What the plug-in and the middleware inside vLLM read."""
    return {
        **settings_environment,
        **{f"LORA_REGISTRY_NODE_{name.upper()}": value for name, value in variables.items()},
        "PATH": os.environ["PATH"],
    }
