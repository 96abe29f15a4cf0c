"""ASGI middleware for `vllm serve --middleware lora_workers.node.middleware.AliasMiddleware`.

A request may name an alias as its model; vLLM is given the served name that the alias stands for, and the answer's
header `x-lora-served-name` tells which it was. When an alias moves, this server goes on with the old version until it
has answered a request with the new one itself. Nothing else of a request or of an answer is touched, and what vLLM
calls its base model stays that.

All requests pass by here, so an unload, whoever asks for it, waits for the requests of its name.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import Final

from lora_registry.errors import RegistryError
from lora_registry.settings import load_settings
from lora_registry.subscriber import AsyncSubscriber
from lora_workers.node.alias_moves import AliasMover
from lora_workers.node.aliases import AliasTable, is_served_name, parse
from lora_workers.node.asgi import (
    App,
    Receive,
    Scope,
    Send,
    read_body,
    replay,
    send_answer,
    send_error,
    with_header,
    with_length,
)
from lora_workers.node.cache import Cache
from lora_workers.node.form_model import FormField
from lora_workers.node.inner_requests import InnerApp
from lora_workers.node.inner_vllm import LOAD, MODELS, UNLOAD, InnerVllm
from lora_workers.node.json_model import ModelField, find_field
from lora_workers.node.leftovers import Leftovers
from lora_workers.node.model_list import add_aliases
from lora_workers.node.note_files import NoteFiles
from lora_workers.node.options import NodeOptions, load_options
from lora_workers.node.request_model import find_model, may_name_model
from lora_workers.node.running_requests import RunningRequests, StillRunning

logger = logging.getLogger(__name__)

HEADER: Final = b"x-lora-served-name"
_FIRST_CATALOG_S: Final = 5.0
"""So long after the server's start a request for an unknown alias may wait for the first catalog."""
_UNLOAD_WAIT_S: Final = 5.0
_AGAIN_S: Final = 5.0


class AliasMiddleware:
    """Rewrites aliases to served names.

    Args:
        app: what is inside: vLLM.
        options: what the operator said; None: read from the environment.
        subscriber: the registry; None: the one that the environment names.
    """

    def __init__(self, app: App, options: NodeOptions | None = None, subscriber: AsyncSubscriber | None = None) -> None:
        options = options or load_options()
        if subscriber is None:
            settings = load_settings()
            subscriber = AsyncSubscriber(options.base, url=settings.redis_url, key_prefix=settings.key_prefix)
        self._app, self._subscriber = app, subscriber
        self._inner = InnerApp(app, api_key=options.engine_api_key.get_secret_value())
        self._vllm = InnerVllm(self._inner)
        self._table, self._running = AliasTable(NoteFiles(options.cache).recall_routes()), RunningRequests()
        cache = Cache(options.cache)
        leftovers = Leftovers(lambda path: cache.digest_at(path) is not None, drain_s=options.drain_s)
        self._mover = AliasMover(self._table, self._vllm, self._running, leftovers)
        self._has_catalog = asyncio.Event()
        self._waits_until = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; everything but requests passes by."""
        self._inner.remember(scope)
        if not self._tasks:
            self._waits_until = time.monotonic() + _FIRST_CATALOG_S
            self._tasks = [asyncio.create_task(work) for work in (self._follow(), self._mover.run())]
        if scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == MODELS:
            await self._list_models(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] == "POST" and may_name_model(scope):
            await self._pass_request(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _pass_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        if body is None:
            return
        if scope["path"] == UNLOAD:
            await self._pass_unload(body, scope, receive, send)
        elif scope["path"] == LOAD:
            await self._pass_load(body, scope, receive, send)
        elif field := find_model(scope, body):
            await self._pass_for_model(field, body, scope, receive, send)
        else:
            await self._app(scope, replay(body, receive), send)

    async def _pass_for_model(
        self, field: ModelField | FormField, body: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        served_name = await self._served_name(field.name)
        if served_name is None:
            await self._app(scope, replay(body, receive), send)
            return
        if served_name != field.name:
            body = field.replaced_by(served_name)
            scope = {**scope, "headers": with_length(scope["headers"], len(body))}
        async with self._running.one(served_name):
            await self._app(scope, replay(body, receive), with_header(HEADER, served_name.encode(), send))

    async def _served_name(self, model: str) -> str | None:
        """What a request for `model` is for; None if that is no name of the registry's."""
        if parse(model) is None or model in await self._vllm.bases():
            return None
        if is_served_name(model):
            return model
        if not self._has_catalog.is_set():
            await self._wait_for_catalog(model)
        return self._table.resolve(model)

    async def _wait_for_catalog(self, model: str) -> None:
        """Wait until the aliases are known, for some seconds after the start; what vLLM lists may be no alias."""
        left_s = self._waits_until - time.monotonic()
        models = await self._vllm.models() if left_s > 0 else None
        if models is None or model not in models.adapters:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_catalog.wait(), left_s)

    async def _pass_load(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Load; meanwhile the name counts as one that is here, and afterwards aliases may move to it."""
        async with self._running.one(_adapter_of(body)):
            await self._app(scope, replay(body, receive), send)
        self._mover.look_soon()

    async def _pass_unload(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Unload when no request of that name runs, and let none in meanwhile."""
        name = _adapter_of(body)
        try:
            async with self._running.none(name, wait_s=_UNLOAD_WAIT_S):
                await self._app(scope, replay(body, receive), send)
        except StillRunning:
            await send_error(send, 409, f"requests of {name} are running")

    async def _list_models(self, scope: Scope, receive: Receive, send: Send) -> None:
        """vLLM's list, with the aliases after it."""
        status, headers, body = await self._inner.collect(scope, receive)
        await send_answer(send, status, headers, add_aliases(body, self._table.names()) if status == 200 else body)

    async def _follow(self) -> None:
        """Keep the table as the catalog is, for ever."""
        while True:
            try:
                async for _ in self._subscriber.follow():
                    self._mover.follow(self._subscriber.view)
                    self._has_catalog.set()
            except RegistryError:
                logger.exception("the registry cannot be followed; aliases stay as they are")
            except Exception:
                logger.exception("following the registry failed; aliases stay as they are")
            await asyncio.sleep(_AGAIN_S)


def _adapter_of(body: bytes) -> str:
    field = find_field(body, "lora_name")
    return field.name if field else ""
