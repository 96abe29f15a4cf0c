"""The gateway's process: where it listens, and when it refuses to."""

from __future__ import annotations

import gc
import signal
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from lora_registry.connection import connect
from lora_registry.errors import Configuration
from lora_registry.settings import Settings
from lora_registry.tokens import Tokens
from lora_workers.gateway.app import create_app
from lora_workers.gateway.authentication import is_loopback

_END_WITHIN_S = 3
"""Requests that wait for an outcome are cut off so long after SIGTERM."""


def serve(settings: Settings, *, host: str, port: int, say: Callable[[str], object]) -> None:
    """Serve HTTP until SIGTERM or SIGINT.

    Args:
        settings: the registry's settings.
        host: name or address to listen on; without a token in the registry, only a loopback one.
        port: port to listen on; 0 for a free one.
        say: told in a line where it listens.

    Raises:
        Configuration: nobody may listen there, or without a token this gateway may not.
        RedisUnavailable: it cannot be told whether there is a token.
    """
    on_loopback = is_loopback(host)
    has_token = on_loopback or _has_token(settings)
    if not has_token:
        raise Configuration(
            f"no token exists, and {host} is not loopback: anybody could register adapters",
            remedy="Make a token with `lora-registry token create`, or listen on 127.0.0.1.",
        )
    app = create_app(settings, on_loopback=on_loopback)
    with listen(host, port) as listening:
        bound = listening.getsockname()
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        say(f"listening on http://{shown}:{bound[1]}")
        if on_loopback:
            say("as long as no token exists, everybody on this machine may do everything")
        for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again at its end, which is an orderly one
            signal.signal(number, lambda *_: None)
        run(app, listening)


def run(app: FastAPI, listening: socket.socket) -> None:
    """Serve HTTP there until the process is told to end."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_END_WITHIN_S,
    )
    # Looking for garbage in what was imported, and stays, took 40 ms twice a second under load; looking for it in what
    # the requests in flight hold, each time that 700 objects were new, took a thirtieth of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)
    uvicorn.Server(config).run(sockets=[listening])


def _has_token(settings: Settings) -> bool:
    return bool(Tokens(connect(settings.redis_url, name="lora-gateway"), settings).all())


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, of protocol TCP by name: on others asyncio leaves Nagle's algorithm on, which costs 40 ms.

    Raises:
        Configuration: the address is taken, or none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(2048)
        except BaseException:
            listening.close()
            raise
    except OSError as error:
        raise Configuration(
            f"cannot listen on {host} port {port}: {error.strerror}", remedy="Give --host and --port others."
        ) from error
    return listening
