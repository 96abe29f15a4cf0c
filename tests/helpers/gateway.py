"""A gateway for tests: the real application behind a real uvicorn, in a thread of the test's own process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from lora_registry.settings import Settings
from lora_workers.gateway.app import create_app
from lora_workers.gateway.serving import listen
from tests.helpers.registry import BASE
from tests.helpers.waiting import wait_until

REGISTRATIONS = "/v1/registrations"


@contextmanager
def running_gateway(settings: Settings, *, on_loopback: bool = True, token: str = "") -> Iterator[httpx.Client]:
    """A client of a gateway with these settings."""
    app = create_app(settings, on_loopback=on_loopback)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2))
    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            wait_until(lambda: server.started, what="the gateway", every_s=0.005)
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
                client.app = app  # type: ignore[attr-defined]
                yield client
        finally:
            server.should_exit = True
            thread.join()


def event(name: str = "support-bot", **fields: Any) -> dict[str, Any]:
    """The JSON of an event."""
    return {"name": name, "base_model": BASE, "source": "/adapters/support-bot", **fields}
