"""What redis-py raises becomes one of two errors: the server cannot now, or it will not."""

from __future__ import annotations

import pytest
from redis import exceptions

from lora_registry.connection import connect, connect_async, redis_errors
from lora_registry.errors import Configuration, RedisUnavailable


def raise_inside(error: Exception) -> None:
    """What a command that fails does."""
    with redis_errors():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ConnectionError("refused"),
        exceptions.TimeoutError("slow"),
        exceptions.BusyLoadingError("LOADING"),
        exceptions.ReadOnlyError("a replica"),
        exceptions.OutOfMemoryError("full"),
        exceptions.MasterDownError("no master"),
        exceptions.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"),
        exceptions.ResponseError("BUSY Redis is busy running a script."),
        exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."),
    ],
    ids=lambda error: f"{type(error).__name__} {str(error).split()[0]}",
)
def test_server_that_cannot_now_is_unavailable(error: Exception) -> None:
    """Whatever keeps it from taking a command for a while is waited out, and the reason is said."""
    with pytest.raises(RedisUnavailable, match=str(error)[:10]) as raised:
        raise_inside(error)
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        exceptions.AuthenticationError("WRONGPASS"),
        exceptions.NoPermissionError("no permissions to run 'set'"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_server_that_refuses_the_user_is_a_matter_of_configuration(error: Exception) -> None:
    """Waiting would not help: user, password or permissions are to be corrected."""
    with pytest.raises(Configuration, match="refused"):
        raise_inside(error)


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
        exceptions.ResponseError("BUSYGROUP Consumer Group name already exists"),
        exceptions.NoScriptError("NOSCRIPT"),
        ZeroDivisionError(),
    ],
    ids=lambda error: f"{type(error).__name__} {str(error).split(maxsplit=1)[:1]}",
)
def test_what_is_our_own_mistake_stays_what_it_is(error: Exception) -> None:
    """A bug is not taken for an outage and retried for ever."""
    with pytest.raises(type(error)) as raised:
        raise_inside(error)
    assert raised.value is error


@pytest.mark.parametrize(
    "url", ["", "localhost:6379", "http://localhost", "redis://localhost:s3cret", "redis://:s3cret/x@localhost"]
)
def test_url_that_is_none_names_the_setting(url: str) -> None:
    """It is noticed when the client is made, before anything is sent; what may be a password is not repeated."""
    for make in (connect, connect_async):
        with pytest.raises(Configuration, match="LORA_REGISTRY_REDIS_URL") as raised:
            make(url)
        assert "s3cret" not in str(raised.value)
        assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    "url", ["redis://localhost:6379/0", "rediss://user:password@localhost/1", "unix:///run/a.sock"]
)
def test_nothing_is_sent_before_the_first_command(url: str) -> None:
    """A client can be made while its server is away."""
    connect(url)
    connect_async(url)
