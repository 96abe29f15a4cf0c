"""Requests to the application that a middleware is around, without a network: they pass by whatever is outside it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Scope, Receive, Callable[[Message], Awaitable[None]]], Awaitable[None]]


class InnerApp:
    """The application inside.

    Args:
        app: the application.

    Attributes:
        api_key: bearer token for requests; empty: none.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._from_server: dict[str, Any] = {}
        self.api_key = ""

    def remember(self, scope: Scope) -> None:
        """Keep what frameworks put into every scope: the application object, the state of its lifespan."""
        for key in ("app", "state"):
            if key in scope:
                self._from_server[key] = scope[key]

    async def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        """Ask the application; returns the status and the body of the answer."""
        raw = b"" if body is None else json.dumps(body).encode()
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        headers.append((b"content-length", str(len(raw)).encode()))
        if self.api_key:
            headers.append((b"authorization", f"Bearer {self.api_key}".encode()))
        scope = {
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
        parts = [raw]

        async def receive() -> Message:
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": False}
            await asyncio.Event().wait()  # the client never goes away
            raise AssertionError

        status, _, answer = await self.collect(scope, receive)
        return status, answer

    async def collect(self, scope: Scope, receive: Receive) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Pass a request on, and gather the whole answer: status, headers, body."""
        status = 500
        headers: list[tuple[bytes, bytes]] = []
        parts: list[bytes] = []

        async def send(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], list(message.get("headers", ()))
            elif message["type"] == "http.response.body":
                parts.append(message.get("body", b""))

        await self._app(scope, receive, send)
        return status, headers, b"".join(parts)
