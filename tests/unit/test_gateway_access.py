"""Who is let in by a gateway: what counts as loopback, and what a caller may."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from lora_registry.errors import (
    Configuration,
    Conflict,
    IdempotencyConflict,
    InvalidName,
    LeaseLost,
    NotFound,
    QueueFull,
    RedisUnavailable,
    RegistryError,
    Rejected,
    ServerNotAdmitted,
)
from lora_registry.namespace_codes import NAMESPACE_UNKNOWN, QUOTA_BYTES
from lora_registry.tokens import Scope, make_token
from lora_workers.gateway.authentication import Caller, is_loopback
from lora_workers.gateway.problems import HttpProblem, problem_of


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost", "LocalHost"])
def test_loopback_is_this_machine(host: str) -> None:
    """Every address of 127.0.0.0/8, IPv6's one, and the name."""
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "localhost.evil", "127.0.0.1.evil", "2130706433"])
def test_everything_else_is_not(host: str) -> None:
    """All addresses at once are not loopback, nor are names that begin like it."""
    assert not is_loopback(host)


def test_a_caller_without_a_scope_or_namespace_is_forbidden() -> None:
    """Each of several scopes is enough; the namespace is needed besides; without tokens everything is allowed."""
    caller = Caller(make_token(scopes=[Scope.READ], namespaces=["team"], now_s=0)[1])
    assert caller.require(Scope.PUBLISH, Scope.READ, namespace="team") is caller
    for scopes, namespace in (((Scope.PUBLISH,), "team"), ((Scope.READ,), "other")):
        with pytest.raises(HttpProblem) as refused:
            caller.require(*scopes, namespace=namespace)
        assert refused.value.status == HTTPStatus.FORBIDDEN
    assert Caller().require(Scope.ADMIN, namespace="any").name == "-"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RedisUnavailable(), 503),
        (ServerNotAdmitted(), 503),
        (QueueFull(), 503),
        (Configuration("Redis refused"), 503),
        (NotFound(), 404),
        (IdempotencyConflict(), 409),
        (Conflict(), 409),
        (InvalidName(), 422),
        (Rejected(), 422),
        (Rejected(findings=(QUOTA_BYTES.finding("team"),)), 429),
        (Rejected(findings=(NAMESPACE_UNKNOWN.finding("team"),)), 403),
        (LeaseLost(), 500),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_every_error_has_its_status(error: RegistryError, status: int) -> None:
    """What may pass is 503 with a time to come again; what is wrong with the request is 4xx."""
    problem = problem_of(error)
    assert problem.status == status
    assert ("Retry-After" in problem.headers) is (status == 503)
    assert problem.remedy
