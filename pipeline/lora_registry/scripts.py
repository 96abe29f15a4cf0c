"""The Lua scripts behind every state change: loaded from `lua/`, called by name.

A script says in a line `-- requires: clock, due` which shared snippets (`lua/_clock.lua`, …) stand before it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import redis
import redis.asyncio

from lora_registry.connection import redis_errors
from lora_registry.errors import RegistryError

_REQUIRES = re.compile(r"^-- requires: (.+)$", re.MULTILINE)
Argument = str | int | float


@cache
def source(name: str) -> str:
    """The full text of script `name`, shared snippets included."""
    text = _read(f"{name}.lua")
    required = _REQUIRES.search(text)
    snippets = [_read(f"_{part.strip()}.lua") for part in required.group(1).split(",")] if required else []
    return "\n".join([*snippets, text])


@cache
def digest(name: str) -> str:
    """The SHA-1 by which a server caches the script."""
    return hashlib.sha1(source(name).encode(), usedforsecurity=False).hexdigest()


def call(client: redis.Redis, name: str, *, keys: Sequence[str], args: Sequence[Argument] = ()) -> Any:
    """Run script `name`; a server that does not know it is given its text.

    Returns:
        What the script returns; its header says what that is.

    Raises:
        RedisUnavailable: the server is out of reach.
    """
    with redis_errors():
        try:
            return client.evalsha(digest(name), len(keys), *keys, *args)
        except redis.exceptions.NoScriptError:
            return client.eval(source(name), len(keys), *keys, *args)


async def call_all(
    client: redis.asyncio.Redis, name: str, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]
) -> list[Any | RegistryError]:
    """Run script `name` once for each (keys, args) of `calls`, in one round trip; not atomic as a whole.

    Returns:
        For each call what the script returned, or why it did not run.

    Raises:
        RedisUnavailable: the server is out of reach; any of them may have run.
    """
    with redis_errors():
        replies = await _run_all(client, name, calls)
        if any(isinstance(reply, redis.exceptions.NoScriptError) for reply in replies):
            # A script may run twice, as when a reply is lost. Most roles may not load one without running it.
            replies = await _run_all(client, name, calls, is_known=False)
    return [_as_error(reply) if isinstance(reply, Exception) else reply for reply in replies]


async def _run_all(
    client: redis.asyncio.Redis,
    name: str,
    calls: Sequence[tuple[Sequence[str], Sequence[Argument]]],
    *,
    is_known: bool = True,
) -> list[Any]:
    async with client.pipeline(transaction=False) as pipe:
        for place, (keys, args) in enumerate(calls):
            if place == 0 and not is_known:
                pipe.eval(source(name), len(keys), *keys, *args)
            else:
                pipe.evalsha(digest(name), len(keys), *keys, *args)
        replies: list[Any] = await pipe.execute(raise_on_error=False)
        return replies


def _as_error(reply: Exception) -> RegistryError:
    try:
        with redis_errors():
            raise reply
    except RegistryError as error:
        return error


def _read(file_name: str) -> str:
    return (resources.files("lora_registry") / "lua" / file_name).read_text(encoding="utf-8")
