"""Requests to the application that a middleware is around, without a network: they pass by whatever is outside it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from lora_workers.node.asgi import App, Headers, Message, Receive, Scope


class InnerApp:
    """The application inside.

    Args:
        app: the application.
        api_key: bearer token for requests; empty: none.
    """

    def __init__(self, app: App, *, api_key: str = "") -> None:
        self._app = app
        self._api_key = api_key
        self._from_server: dict[str, Any] = {}

    def remember(self, scope: Scope) -> None:
        """Keep what frameworks put into every scope: the application object, the state of its lifespan."""
        for key in ("app", "state"):
            if key in scope:
                self._from_server[key] = scope[key]

    async def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        """Ask the application; returns the status and the body of the answer."""
        raw = b"" if body is None else json.dumps(body).encode()
        parts = [raw]

        async def receive() -> Message:
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": False}
            await asyncio.Event().wait()  # the client never goes away
            raise AssertionError

        status, _, answer = await self.collect(self._scope(method, path, len(raw)), receive)
        return status, answer

    async def collect(self, scope: Scope, receive: Receive) -> tuple[int, Headers, bytes]:
        """Pass a request on, and gather the whole answer: status, headers, body."""
        status = 500
        headers: Headers = []
        parts: list[bytes] = []

        async def send(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], list(message.get("headers", ()))
            elif message["type"] == "http.response.body":
                parts.append(message.get("body", b""))

        await self._app(scope, receive, send)
        return status, headers, b"".join(parts)

    def _scope(self, method: str, path: str, length: int) -> Scope:
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        headers.append((b"content-length", str(length).encode()))
        if self._api_key:
            headers.append((b"authorization", f"Bearer {self._api_key}".encode()))
        return {
            **self._from_server,
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 0),
            "server": ("127.0.0.1", 0),
        }
