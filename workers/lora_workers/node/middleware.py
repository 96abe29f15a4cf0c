"""ASGI middleware for `vllm serve --middleware lora_workers.node.middleware.AliasMiddleware`.

A request may name an alias as its model; vLLM is given the served name that the alias stands for, and the answer's
header `x-lora-served-name` tells which it was. When an alias moves, this server goes on with the old version until it
has answered a request with the new one itself. Nothing else of a request or of an answer is touched.

vLLM dies if a name is unloaded and loaded again while a request of it still runs. Here all requests pass by, so an
unload, whoever asks for it, waits for them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from lora_registry.errors import RegistryError
from lora_registry.settings import load_settings
from lora_registry.subscriber import AsyncSubscriber
from lora_workers.node.aliases import AliasTable, is_served_name, parse
from lora_workers.node.inner_requests import InnerApp
from lora_workers.node.json_model import find_field
from lora_workers.node.options import NodeOptions, load_options

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADER: Final = b"x-lora-served-name"
_UNLOAD: Final = "/v1/unload_lora_adapter"
_FIRST_CATALOG_S: Final = 5.0
"""So long a request for an unknown alias waits for the first catalog after the server's start."""
_UNLOAD_WAIT_S: Final = 5.0
_LOOK_S: Final = 0.25
_LONGEST_LOOK_S: Final = 5.0
_AGAIN_S: Final = 5.0


class AliasMiddleware:
    """Rewrites aliases to served names.

    Args:
        app: what is inside: vLLM.
        options: what the operator said; None: read from the environment.
        subscriber: the registry; None: the one that the environment names.
    """

    def __init__(self, app: App, options: NodeOptions | None = None, subscriber: AsyncSubscriber | None = None) -> None:
        self._app = app
        self._inner = InnerApp(app)
        self._options = options or load_options()
        if subscriber is None:
            settings = load_settings()
            subscriber = AsyncSubscriber(self._options.base, url=settings.redis_url, key_prefix=settings.key_prefix)
        self._subscriber = subscriber
        self._inner.api_key = self._options.engine_api_key.get_secret_value()
        self._table = AliasTable()
        self._published: frozenset[str] = frozenset()
        self._running: Counter[str] = Counter()
        self._left: dict[str, float] = {}
        self._gates: dict[str, asyncio.Event] = {}
        self._changed, self._has_catalog = asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; everything but requests passes by."""
        self._inner.remember(scope)
        if not self._tasks:
            self._tasks = [asyncio.create_task(work()) for work in (self._follow, self._tend)]
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] == "GET" and scope["path"] == "/v1/models":
            await self._list_models(scope, receive, send)
        elif scope["method"] == "POST" and _is_json(scope):
            await self._pass_request(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    # Requests

    async def _pass_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read_body(receive)
        if body is None:
            return
        if scope["path"] == _UNLOAD:
            name = find_field(body, "lora_name")
            await self._pass_unload(name.name if name else "", scope, _replay(body, receive), send)
            return
        field = find_field(body)
        served_name = await self._served_name(field.name) if field else None
        if field is None or served_name is None:
            await self._app(scope, _replay(body, receive), send)
            return
        if served_name != field.name:
            body = field.replaced_by(served_name)
            scope = {**scope, "headers": _with_length(scope["headers"], len(body))}
        while gate := self._gates.get(served_name):  # it is being unloaded at this moment
            await gate.wait()
        self._running[served_name] += 1
        try:
            await self._app(scope, _replay(body, receive), _tell(served_name, send))
        finally:
            self._running[served_name] -= 1
            if not self._running[served_name]:
                del self._running[served_name]  # names come from requests: there is no end of them

    async def _served_name(self, model: str) -> str | None:
        """What a request for `model` is for; None if that is no name of the registry's."""
        if is_served_name(model):
            return model
        if not self._has_catalog.is_set() and parse(model):
            try:
                await asyncio.wait_for(self._has_catalog.wait(), _FIRST_CATALOG_S)
            except TimeoutError:
                return None
        return self._table.resolve(model)

    async def _pass_unload(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Unload when no request of that name runs, and let none in meanwhile."""
        deadline = time.monotonic() + _UNLOAD_WAIT_S
        while self._running[name] or name in self._gates:
            if time.monotonic() > deadline:
                await _answer(send, 409, {"error": {"message": f"requests of {name} are running", "code": 409}})
                return
            await asyncio.sleep(0.02)
        gate = self._gates[name] = asyncio.Event()
        try:
            await self._app(scope, receive, send)
        finally:
            del self._gates[name]
            gate.set()

    async def _list_models(self, scope: Scope, receive: Receive, send: Send) -> None:
        """vLLM's list, with the aliases after it."""
        status, headers, body = await self._inner.collect(scope, receive)
        try:
            answer = json.loads(body) if status == 200 else None
            parent = answer["data"][0]["id"] if answer else ""
        except (ValueError, KeyError, IndexError, TypeError):
            answer = None
        if answer:
            known = {card.get("id") for card in answer["data"]}
            answer["data"] += [
                _card(alias, served_name, parent)
                for alias, served_name in sorted(self._table.names().items())
                if alias not in known
            ]
            body = json.dumps(answer).encode()
        await send({"type": "http.response.start", "status": status, "headers": _with_length(headers, len(body))})
        await send({"type": "http.response.body", "body": body})

    # In the background

    async def _follow(self) -> None:
        """Keep the table as the catalog is, for ever."""
        while True:
            try:
                async for _ in self._subscriber.follow():
                    view = self._subscriber.view
                    self._published = frozenset(record.served_name for record in view.versions.values())
                    self._table.follow(view)
                    self._has_catalog.set()
                    self._changed.set()
            except RegistryError:
                logger.exception("the registry cannot be followed; aliases stay as they are")
            except Exception:
                logger.exception("following the registry failed; aliases stay as they are")
            await asyncio.sleep(_AGAIN_S)

    async def _tend(self) -> None:
        """Move aliases to versions that answer, and unload what they left."""
        pause_s = _LOOK_S
        while True:
            is_waiting = bool(self._table.waiting() or self._left)
            try:
                await asyncio.wait_for(self._changed.wait(), pause_s if is_waiting else None)
                pause_s = _LOOK_S
            except TimeoutError:
                pause_s = min(2 * pause_s, _LONGEST_LOOK_S)
            self._changed.clear()
            try:
                await self._look()
            except Exception:
                logger.exception("moving aliases failed; they stay as they are")

    async def _look(self) -> None:
        waiting = self._table.waiting()
        if not waiting and not self._left and not self._has_catalog.is_set():
            return
        listed = await self._listed()
        for served_name, before in waiting.items():
            # What is not loaded here has nothing to lose: the first request loads the new version as well.
            if before & listed and not await self._answers(served_name):
                continue
            self._table.swap(served_name)
            self._left |= {name: time.monotonic() for name in before}
        in_use = self._table.in_use()
        retired = {name for name in listed if is_served_name(name)} - self._published
        for name in {*self._left, *retired}:
            if name in in_use or name not in listed:
                self._left.pop(name, None)
            elif time.monotonic() >= self._left.setdefault(name, time.monotonic()) + self._options.drain_s:
                await self._unload(name)

    async def _listed(self) -> set[str]:
        status, body = await self._inner.request("GET", "/v1/models")
        return {card["id"] for card in json.loads(body)["data"]} if status == 200 else set()

    async def _answers(self, served_name: str) -> bool:
        """Whether this server answers one token with it; with the plug-in, asking loads it."""
        body = {"model": served_name, "prompt": [0], "max_tokens": 1, "temperature": 0}
        status, answer = await self._inner.request("POST", "/v1/completions", body)
        if status != 200:
            logger.info("%s does not answer yet: %s %s", served_name, status, answer[:200])
        return status == 200

    async def _unload(self, name: str) -> None:
        if self._running[name]:
            return
        gate = self._gates[name] = asyncio.Event()
        try:
            status, _ = await self._inner.request("POST", _UNLOAD, {"lora_name": name})
        finally:
            del self._gates[name]
            gate.set()
        if status in (200, 404):
            self._left.pop(name, None)


def _is_json(scope: Scope) -> bool:
    return any(
        name.lower() == b"content-type" and value.partition(b";")[0].strip().lower().endswith(b"json")
        for name, value in scope["headers"]
    )


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body; None if the client went away."""
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """What the application receives: the body, then whatever comes."""
    left = [body]

    async def next_message() -> Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return next_message


def _tell(served_name: str, send: Send) -> Send:
    async def send_with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (HEADER, served_name.encode())]}
        await send(message)

    return send_with_header


def _with_length(headers: Any, length: int) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    return [*kept, (b"content-length", str(length).encode())]


def _card(alias: str, served_name: str, parent: str) -> dict[str, Any]:
    return {
        "id": alias,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "lora-registry",
        "root": served_name,
        "parent": parent,
        "permission": [],
    }


async def _answer(send: Send, status: int, answer: dict[str, Any]) -> None:
    body = json.dumps(answer).encode()
    headers = _with_length([(b"content-type", b"application/json")], len(body))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
