"""Stands in for vLLM, which takes a minute to start: its HTTP answers, and its known faults, over real HTTP.

Source: vLLM 0.32.0, vllm/entrypoints/openai/models/serving.py and api_router.py, vllm/v1/metrics/loggers.py (a line
for each set of adapters that ever ran together), and answers seen on a running server.
It reads the files as vLLM does when they are loaded, and computes no model: an adapter moves each log-probability by
what its lora_B tensors add up to, and so not at all if they are zero.

Faults that it has: a refusal by a healthy server is a 500; NaN weights load, an answer with them is a 400, and the next
two answers of others are wrong; an adapter whose tensors have another prefix loads, and is not applied.
"""

from __future__ import annotations

import json
import math
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE
from tests.helpers.adapters_on_disk import read_floats
from tests.helpers.loopback import served

Answer = tuple[int, Any]
_TOKENS = 4


@dataclass
class VllmServer:
    """The server's state.

    Attributes:
        max_lora_rank: what it was started for.
        applies: whether it applies what it loaded.
        healthy: whether anything but the connection works.
        is_up: whether a connection gets an answer.
        spoils: how many answers of others a NaN spoils.
        loaded: adapters by name, with their paths.
        most_loaded: the most that were loaded at one time.
        calls: `(path, model or adapter)` of what was asked for, in order.
        let_answer: requests for adapters wait for it; meanwhile they run.
        max_loras: adapters that run in one step.
        version: what it says that it is.
    """

    max_lora_rank: int = 16
    applies: bool = True
    healthy: bool = True
    is_up: bool = True
    spoils: int = 2
    loaded: dict[str, str] = field(default_factory=dict)
    most_loaded: int = 0
    calls: list[tuple[str, str]] = field(default_factory=list)
    let_answer: threading.Event = field(default_factory=threading.Event)
    max_loras: int = 16
    version: str = "0.32.0"
    url: str = ""
    _running: Counter[str] = field(default_factory=Counter)
    _ran_at: dict[str, float] = field(default_factory=dict)
    _effects: dict[str, float] = field(default_factory=dict)
    _spoiled: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def asked(self, path: str) -> list[str]:
        """Whom requests to `path` were about."""
        return [about for called, about in self.calls if called == path]

    def answer(self, path: str, body: dict[str, Any]) -> Answer:
        """Status and answer of a request."""
        about = body.get("lora_name") or body.get("model", "")
        self.calls.append((path, about))
        if path == "/v1/completions" and about != "base":
            with self._run(about):
                self.let_answer.wait(60)
                return self._answer(path, about, body)
        return self._answer(path, about, body)

    def _answer(self, path: str, about: str, body: dict[str, Any]) -> Answer:
        with self._lock:
            if not self.healthy:
                return 503, _error("EngineCore encountered an issue")
            match path:
                case "/health":
                    return 200, ""
                case "/version":
                    return 200, {"version": self.version}
                case "/metrics":
                    return 200, self._metrics()
                case "/v1/models":
                    return 200, {"object": "list", "data": self._cards()}
                case "/v1/load_lora_adapter":
                    return self._load(about, body["lora_path"])
                case "/v1/unload_lora_adapter":
                    return self._unload(about)
                case "/v1/completions":
                    return self._complete(about, body)
        return 404, {"detail": "Not Found"}

    @contextmanager
    def _run(self, name: str) -> Iterator[None]:
        """A request of an adapter runs, if it is loaded."""
        running = [name] if name in self.loaded else []
        self._note(self._running.update, running)
        try:
            yield
        finally:
            self._note(self._running.subtract, running)

    def _note(self, change: Callable[[list[str]], None], names: list[str]) -> None:
        with self._lock:
            change(names)
            self._ran_at[",".join(sorted((+self._running).keys()))] = time.time()

    def _metrics(self) -> str:
        kind = "vllm:lora_requests_info"
        lines = [f"# HELP {kind} Running stats on lora requests.", f"# TYPE {kind} gauge"]
        for running, at in self._ran_at.items():
            labels = f'max_lora="{self.max_loras}",running_lora_adapters="{running}",waiting_lora_adapters=""'
            lines.append(f"{kind}{{{labels}}} {at:.16e}")
        return "".join(f"{line}\n" for line in lines)

    def _cards(self) -> list[dict[str, Any]]:
        adapters = [{"id": name, "root": path, "parent": "base"} for name, path in self.loaded.items()]
        return [{"id": "base", "root": "/models/base", "parent": None}, *adapters]

    def _load(self, name: str, path: str) -> Answer:
        if name in self.loaded:
            return 400, _error(f"The lora adapter '{name}' has already been loaded.")
        try:
            config = json.loads((Path(path) / CONFIG_FILE).read_bytes())
        except OSError:
            return 404, _error(f"Loading lora {name} failed: No adapter found for {path}")
        if config["r"] > self.max_lora_rank:
            rank = f"LoRA rank {config['r']} is greater than max_lora_rank {self.max_lora_rank}."
            return 500, _error(f"Call to add_lora method failed: Worker failed with error '{rank}'")
        added = {key: sum(map(abs, values)) for key, values in read_floats(Path(path) / WEIGHTS_FILE).items()}
        self._effects[name] = sum(size for key, size in added.items() if ".lora_B" in key) if self.applies else 0.0
        self.loaded[name] = path
        self.most_loaded = max(self.most_loaded, len(self.loaded))
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _unload(self, name: str) -> Answer:
        if name not in self.loaded:
            return 404, _error(f"The lora adapter '{name}' cannot be found.")
        del self.loaded[name]
        return 200, f"Success: LoRA adapter '{name}' removed successfully."

    def _complete(self, model: str, body: dict[str, Any]) -> Answer:
        if model != "base" and model not in self.loaded:
            return 404, _error(f"The model `{model}` does not exist.")
        effect = 0.0 if model == "base" else self._effects[model]
        if math.isnan(effect):
            self._spoiled = self.spoils
            return 400, _error("Out of range float values are not JSON compliant")
        if self._spoiled:
            self._spoiled -= 1
            effect -= 7.0 + self._spoiled
        seed = zlib.crc32(json.dumps(body["prompt"]).encode())
        logprobs = [-((seed >> shift) % 97) / 100 - 0.01 - effect for shift in range(_TOKENS)]
        told = {"tokens": [f" {word}" for word in "abcd"], "token_logprobs": logprobs}
        return 200, {"model": model, "choices": [{"text": " a b c d", "logprobs": told}]}


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message}}


@contextmanager
def vllm_server() -> Iterator[VllmServer]:
    """A server on a free port of the loopback."""
    state = VllmServer()
    state.let_answer.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0)))))

        def _answer(self, body: dict[str, Any]) -> None:
            if not state.is_up:
                self.close_connection = True
                return
            status, answer = state.answer(self.path, body)
            raw = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)
            except BrokenPipeError:  # whoever asked was killed
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with served(Handler) as state.url:
        try:
            yield state
        finally:
            state.let_answer.set()
