"""A real MLflow server, in a virtual environment of its own, that sends its own signed webhooks."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx

from lora_workers import processes
from tests.helpers.waiting import wait_until

ROOT = Path(__file__).parents[2]
VENV = ROOT / ".venv-mlflow"
_INSTALLED = VENV / ".installed"


def install() -> None:
    """Install MLflow where the Makefile does, unless it is there; its many packages are kept out of everything else.

    Raises:
        subprocess.CalledProcessError: it cannot be installed.
    """
    if not _INSTALLED.exists():
        # The tests may themselves run under make, which hands its flags down.
        outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        subprocess.run(["make", str(_INSTALLED.relative_to(ROOT))], cwd=ROOT, env=outside, check=True, timeout=280)


class MlflowServer:
    """One MLflow server on loopback with a database of its own.

    Args:
        directory: where it keeps its data; must be there.

    Attributes:
        url: where it answers.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._http = httpx.Client(timeout=30)
        self.url = ""

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [VENV / "bin" / "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._directory / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self._directory / "artifacts")]
        allowed = {
            "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
            "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "PYTHONPATH": "",
        }
        with (self._directory / "mlflow.log").open("wb") as log:
            self._process = processes.start(command, environment=allowed, log=log)
        wait_until(self._answers, what="the MLflow server", timeout_s=150, every_s=0.2)

    def stop(self) -> None:
        """End it and its children."""
        self._http.close()
        if self._process:
            processes.kill_group(self._process)  # nothing of it is kept
            self._process.wait()

    def log(self) -> str:
        """The end of what it said."""
        return (self._directory / "mlflow.log").read_text(errors="replace")[-3000:]

    def ask(self, method: str, what: str, **fields: Any) -> Any:
        """One call of its REST API; what it answers."""
        query, body = (fields, None) if method == "GET" else (None, fields)
        answer = self._http.request(method, f"{self.url}/api/2.0/mlflow/{what}", params=query, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def add_webhook(self, url: str, secret: str, *events: tuple[str, str]) -> str:
        """Have it send these events to `url`; returns the webhook's id."""
        listed = [{"entity": entity, "action": action} for entity, action in events]
        made = self.ask("POST", "webhooks", name="lora-registry", url=url, secret=secret, events=listed)
        return str(made["webhook"]["webhook_id"])

    def add_version(self, model: str, source: str, **tags: str) -> str:
        """Make a version of a model, and the model if it is new; `_` in a tag's name stands for a dot."""
        if self._http.get(f"{self.url}/api/2.0/mlflow/registered-models/get", params={"name": model}).is_error:
            self.ask("POST", "registered-models/create", name=model)
        listed = [{"key": key.replace("_", "."), "value": value} for key, value in tags.items()]
        made = self.ask("POST", "model-versions/create", name=model, source=source, tags=listed)
        return str(made["model_version"]["version"])

    def set_alias(self, model: str, alias: str, version: str) -> None:
        """Let an alias mean a version."""
        self.ask("POST", "registered-models/alias", name=model, alias=alias, version=version)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        try:
            return self._http.get(f"{self.url}/health").status_code == 200
        except httpx.HTTPError:
            return False
