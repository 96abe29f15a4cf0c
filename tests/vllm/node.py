"""A node agent as a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import Popen

from lora_registry.settings import Settings
from lora_workers import processes
from tests.helpers.stack import environment_of
from tests.vllm.models import BASE_NAME


class Node:
    """`lora-registry node` beside an engine.

    Args:
        engine_url: where the engine answers.
        settings: the registry's settings.
        directory: for its cache and log.
        node_id: its name.
        cache: its cache; None: one in `directory`.
    """

    def __init__(
        self, engine_url: str, settings: Settings, directory: Path, *, node_id: str, cache: Path | None = None
    ) -> None:
        self.node_id = node_id
        self.cache = cache or directory / "cache"
        self.log = directory / "agent.log"
        directory.mkdir(parents=True, exist_ok=True)
        self._settings = settings
        self._engine_url = engine_url
        self._process: Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        """Start it."""
        options = {
            "--base": BASE_NAME,
            "--engine": "vllm",
            "--engine-url": self._engine_url,
            "--cache": str(self.cache),
            "--node-id": self.node_id,
            "--drain-s": "2",
            "--max-lora-rank": "16",
        }
        usual = [part for option in options.items() for part in option]
        environment = environment_of(self._settings) | {
            "LORA_REGISTRY_NODE_RECONCILE_S": "1",
            "LORA_REGISTRY_NODE_RETRY_FIRST_S": "0.2",
        }
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "lora_workers", "node", *usual, *arguments]
            self._process = processes.start(command, environment=environment, log=log)

    def stop(self) -> None:
        """End it in order."""
        if self._process:
            processes.stop(self._process)
            self._process = None
