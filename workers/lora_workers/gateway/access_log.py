"""One line for each request: who, what, the answer and how long it took. Neither headers nor query are in it."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("lora_registry.access")


class AccessLog:
    """ASGI middleware that logs what `app` answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and log the answer once it has been sent."""
        if scope["type"] != "http" or not logger.isEnabledFor(logging.INFO):
            return await self._app(scope, receive, send)
        began, status = time.perf_counter(), 0

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            took_ms = (time.perf_counter() - began) * 1000
            # %r: a path may hold line breaks, which would look like further lines.
            logger.info(
                "%s %r %s %.1f ms %s", scope["method"], scope["path"], status, took_ms, scope.get("caller", "-")
            )
        return None
