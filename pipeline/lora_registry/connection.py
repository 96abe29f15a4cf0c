"""The one module that opens Redis connections and maps what they raise.

redis-py retries a command whose reply was lost, so every write here is a script that may run twice. Blocking reads
need a socket timeout longer than their block. Source: redis-py 8.1 defaults (socket_timeout 5 s, 10 retries).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import redis
import redis.asyncio
from redis import exceptions as errors
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from lora_registry.errors import Configuration, RedisUnavailable

LONGEST_BLOCK_S: Final = 5.0
"""No blocking read asks the server to wait longer than this."""
_SOCKET_TIMEOUT_S: Final = LONGEST_BLOCK_S + 10.0
_CONNECT_TIMEOUT_S: Final = 5.0
_PASSING: Final = ("BUSY ", "MISCONF ", "NOREPLICAS ")
"""How replies begin that redis-py has no class for: a script runs long, the disk is full, too few replicas follow."""


def connect(url: str, *, name: str = "lora-registry", retries: int = 2, timeout_s: float | None = None) -> redis.Redis:
    """A client for `url`; nothing is sent until the first command.

    Args:
        url: the server.
        name: what the server calls the connection.
        retries: how often a command is tried again.
        timeout_s: longest wait for a connection or an answer, for those who never block on the server.

    Raises:
        Configuration: the URL is not one that redis-py reads.
    """
    try:
        return redis.Redis.from_url(
            url,
            decode_responses=True,
            client_name=name,
            socket_timeout=timeout_s or _SOCKET_TIMEOUT_S,
            socket_connect_timeout=timeout_s or _CONNECT_TIMEOUT_S,
            health_check_interval=30,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), retries),
        )
    except ValueError:
        raise _illegal_url() from None


def connect_async(
    url: str, *, name: str = "lora-registry", retries: int = 2, timeout_s: float = _SOCKET_TIMEOUT_S
) -> redis.asyncio.Redis:
    """The asyncio twin of `connect`, for the subscriber and the gateway.

    Raises:
        Configuration: the URL is not one that redis-py reads.
    """
    try:
        return redis.asyncio.Redis.from_url(
            url,
            decode_responses=True,
            client_name=name,
            socket_timeout=timeout_s,
            socket_connect_timeout=_CONNECT_TIMEOUT_S,
            retry=AsyncRetry(ExponentialBackoff(cap=0.5, base=0.05), retries),
        )
    except ValueError:
        raise _illegal_url() from None


def _illegal_url() -> Configuration:
    """What redis-py says of a URL may have a part of its password in it ("port could not be cast …")."""
    return Configuration(
        "LORA_REGISTRY_REDIS_URL: it is no URL of a Redis server",
        remedy="Write redis://, rediss:// or unix://, and escape what a URL cannot hold (`/` as %2F).",
    )


def command(client: redis.Redis, *parts: str | int | float) -> Any:
    """Send one command; the reply is what redis-py makes of it (text, not bytes).

    Raises:
        RedisUnavailable: the server cannot take the command now.
        Configuration: the server refuses the user.
    """
    with redis_errors():
        return client.execute_command(*parts)  # type: ignore[no-untyped-call] # untyped in redis-py


def server_time_s(client: redis.Redis) -> float:
    """The server's clock, in seconds since 1970-01-01: the one that says when something is over.

    Raises:
        RedisUnavailable: the server cannot take the command now.
    """
    seconds, microseconds = command(client, "TIME")
    return float(seconds) + float(microseconds) / 1e6


def open_bell(client: redis.Redis) -> redis.client.PubSub:
    """A subscription that hands out only real messages; use it in a `with`."""
    bell: redis.client.PubSub = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
    return bell


@contextmanager
def redis_errors() -> Iterator[None]:
    """Map what redis-py raises when the server is away or takes no commands or writes for now to RedisUnavailable.

    Raises:
        RedisUnavailable: the server cannot take the command now.
        Configuration: the server knows the user or password not, or does not allow the user the command.
    """
    try:
        yield
    except (errors.AuthenticationError, errors.NoPermissionError) as error:
        raise Configuration(f"Redis refused: {error}") from error
    except (errors.ConnectionError, errors.TimeoutError, errors.ReadOnlyError, errors.OutOfMemoryError) as error:
        raise RedisUnavailable(f"Redis is out of reach: {error}") from error
    except errors.ResponseError as error:
        if not isinstance(error, errors.MasterDownError) and not str(error).startswith(_PASSING):
            raise
        raise RedisUnavailable(f"Redis takes no commands for now: {error}") from error
