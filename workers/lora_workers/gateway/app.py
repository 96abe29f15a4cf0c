"""The gateway's application, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from lora_registry.settings import Settings
from lora_workers.gateway import adapters, aliases, bases, health, problems, registrations
from lora_workers.gateway.access_log import AccessLog
from lora_workers.gateway.documentation import document
from lora_workers.gateway.services import open_services
from lora_workers.gateway.webhooks import hook_router


def create_app(settings: Settings, *, on_loopback: bool = False) -> FastAPI:
    """The gateway for a registry.

    Args:
        settings: the registry's settings.
        on_loopback: whether it listens on loopback only; then, as long as no token exists, everybody may do everything.

    Raises:
        Configuration: the server's URL, the hooks file or a secret that it refers to is not legal.
    """
    services = open_services(settings, on_loopback=on_loopback)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await services.close()

    app = FastAPI(title="lora-registry", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.services = services
    app.state.adapter_index = adapters.AdapterIndex(services.catalog)
    webhooks = hook_router(services)
    for router in (registrations.router, webhooks, adapters.router, aliases.router, bases.router, health.router):
        app.include_router(router)
    problems.install(app)
    document(app)
    app.add_middleware(AccessLog)
    return app
