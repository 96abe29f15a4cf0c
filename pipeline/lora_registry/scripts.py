"""The Lua scripts behind every state change: loaded from `lua/`, called by name.

A script says in a line `-- requires: clock, due` which shared snippets (`lua/_clock.lua`, …) stand before it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import Any, Generic, NamedTuple, TypeVar

import redis
import redis.asyncio

from lora_registry.connection import redis_errors

_REQUIRES = re.compile(r"^-- requires: (.+)$", re.MULTILINE)
Argument = str | int | float
Answer = TypeVar("Answer")


class Call(NamedTuple, Generic[Answer]):
    """A script to be run, by whoever has a connection, alone or together with others.

    Attributes:
        script: name of the script.
        keys, args: see its header.
        read: makes of what the script returns what the caller asked for, or raises a RegistryError.
    """

    script: str
    keys: Sequence[str]
    args: Sequence[Argument]
    read: Callable[[Any], Answer]


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


def run(client: redis.Redis, call_: Call[Answer]) -> Answer:
    """Run one script.

    Raises:
        RegistryError: what its answer means.
        RedisUnavailable: the server is out of reach.
    """
    return call_.read(call(client, call_.script, keys=call_.keys, args=call_.args))


async def run_all(client: redis.asyncio.Redis, calls: Sequence[Call[Any]]) -> list[Any | Exception]:
    """Run scripts in one round trip, those of one name in this order; not atomic as a whole.

    Returns:
        For each of them what `run` would return or raise.

    Raises:
        RedisUnavailable: the server is out of reach; any of them may have run.
    """
    with redis_errors():
        replies = await _run_all(client, calls)
        missed = [place for place, reply in enumerate(replies) if isinstance(reply, redis.exceptions.NoScriptError)]
        if missed:  # most roles may not load a script without running it
            again = [calls[place] for place in missed]
            for place, reply in zip(missed, await _run_all(client, again, with_text=True), strict=True):
                replies[place] = reply
    return [_answer(each, reply) for each, reply in zip(calls, replies, strict=True)]


async def _run_all(client: redis.asyncio.Redis, calls: Sequence[Call[Any]], *, with_text: bool = False) -> list[Any]:
    """Replies and errors; `with_text`: the first call of each script brings its text."""
    known = set() if with_text else {each.script for each in calls}
    async with client.pipeline(transaction=False) as pipe:
        for each in calls:
            if each.script in known:
                pipe.evalsha(digest(each.script), len(each.keys), *each.keys, *each.args)
            else:
                known.add(each.script)
                pipe.eval(source(each.script), len(each.keys), *each.keys, *each.args)
        replies: list[Any] = await pipe.execute(raise_on_error=False)
        return replies


def _answer(call_: Call[Any], reply: Any) -> Any | Exception:
    try:
        if isinstance(reply, Exception):
            with redis_errors():
                raise reply
        return call_.read(reply)
    except Exception as error:  # noqa: BLE001 - raised where this one is waited for; the others have their answers
        return error


def _read(file_name: str) -> str:
    return (resources.files("lora_registry") / "lua" / file_name).read_text(encoding="utf-8")
