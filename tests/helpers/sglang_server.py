"""Stands in for SGLang, which needs a GPU: its endpoints, its answers and its known faults, over real HTTP.

Source: SGLang 0.5.23 as read (no server was run): entrypoints/http_server.py:1652-1684 and 2009-2020,
managers/io_struct.py:2516-2580, managers/tokenizer_manager.py:3744-3788, managers/tokenizer_control_mixin.py.

Faults that it has: a request for a name that was unloaded loads it again from its old path; a load that fails halfway
blocks the name until it is unloaded; whatever is wrong with an adapter is a 400.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE
from tests.helpers.loopback import served

Answer = tuple[int, Any]


@dataclass
class SglangServer:
    """The server's state.

    Attributes:
        max_lora_rank, model_path: what it was started for.
        loaded: adapters by name, with their paths.
        remembered: adapters that it would load again when they are asked for.
        halfway: names whose load failed halfway.
        fail_halfway: names whose next load fails halfway.
        healthy: whether `/health` answers 200.
        away: whether it answers everything with 503, as a proxy before a dead engine does.
        mute: names that it lists and answers no request with.
        calls: paths that were asked for, in order.
    """

    max_lora_rank: int = 16
    model_path: str = "/models/base"
    loaded: dict[str, str] = field(default_factory=dict)
    remembered: dict[str, str] = field(default_factory=dict)
    halfway: set[str] = field(default_factory=set)
    fail_halfway: set[str] = field(default_factory=set)
    healthy: bool = True
    away: bool = False
    mute: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    url: str = ""

    def restart(self) -> None:
        """What a restart leaves: nothing."""
        self.loaded.clear()
        self.remembered.clear()
        self.halfway.clear()

    def answer(self, path: str, body: dict[str, Any]) -> Answer:
        """Status and JSON of the answer to a request."""
        self.calls.append(path)
        if self.away:
            return 503, {}
        match path:
            case "/health":
                return (200 if self.healthy else 503), {}
            case "/get_server_info":
                return 200, {
                    "version": "0.5.23",
                    "max_lora_rank": self.max_lora_rank,
                    "lora_target_modules": ["all"],
                    "tp_size": 1,
                    "max_loaded_loras": None,
                    "model_path": self.model_path,
                }
            case "/v1/models":
                return 200, {"object": "list", "data": self._cards()}
            case "/load_lora_adapter":
                return self._load(body["lora_name"], body["lora_path"])
            case "/unload_lora_adapter":
                return self._unload(body["lora_name"])
            case "/generate":
                return self._generate(body.get("lora_path"))
        return 404, {"detail": "Not Found"}

    def _cards(self) -> list[dict[str, Any]]:
        base = {"id": "base", "object": "model", "owned_by": "sglang", "root": "base", "parent": None}
        return [
            base,
            *(
                {"id": name, "object": "model", "owned_by": "sglang", "root": path, "parent": "base"}
                for name, path in self.loaded.items()
            ),
        ]

    def _load(self, name: str, path: str) -> Answer:
        if name in self.loaded:
            return self._said(400, f"LoRA adapter {name} is already loaded.")
        if name in self.halfway:
            return self._said(400, f"LoRA adapter {name} has an incomplete unload")
        if name in self.fail_halfway:
            self.fail_halfway.discard(name)
            self.halfway.add(name)
            return self._said(400, "one of the ranks failed")
        try:
            config = json.loads((Path(path) / CONFIG_FILE).read_bytes())
        except OSError as error:
            return self._said(400, f"Failed to load LoRA adapter {name} from {path}: {error}")
        if config["r"] > self.max_lora_rank:
            return self._said(400, f"LoRA adapter {name} with rank {config['r']} is incompatible")
        self.loaded[name] = self.remembered[name] = path
        return self._said(200, "")

    def _unload(self, name: str) -> Answer:
        if name in self.halfway:
            self.halfway.discard(name)
            return self._said(200, "")
        if name not in self.loaded:
            return self._said(400, f"LoRA adapter {name} is not loaded.")
        del self.loaded[name]
        return self._said(200, "")

    def _generate(self, name: str | None) -> Answer:
        if name in self.mute:
            return 500, {"error": {"message": "probability tensor contains nan"}}
        if name and name not in self.loaded:
            if name not in self.remembered:
                return 400, {"error": {"message": f"The following requested LoRA adapters are not loaded: {name}"}}
            self.loaded[name] = self.remembered[name]  # the unload was not final
        text = (Path(self.loaded[name]) / WEIGHTS_FILE).read_text(errors="replace") if name else "base"
        return 200, {"text": text, "meta_info": {}}

    def _said(self, status: int, error: str) -> Answer:
        return status, {"success": status == 200, "error_message": error, "loaded_adapters": dict(self.loaded)}


@contextmanager
def sglang_server() -> Iterator[SglangServer]:
    """A server on a free port of the loopback."""
    state = SglangServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(*state.answer(self.path, {}))

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._reply(*state.answer(self.path, json.loads(raw)))

        def _reply(self, status: int, answer: Any) -> None:
            raw = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with served(Handler) as state.url:
        yield state
