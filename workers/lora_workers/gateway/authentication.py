"""Who asks, and what they may: bearer tokens with scopes and namespaces.

Without a token in the registry, a gateway on loopback lets everybody do everything, and any other lets nobody in. One
that has seen a token lets nobody in without one any more, whatever becomes of the token.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from lora_registry import gateway_codes
from lora_registry.namespaces import NamespacePolicy
from lora_registry.policies import Policies
from lora_registry.tokens import Scope, Token, Tokens, find_token
from lora_workers.gateway.problems import HttpProblem

_FRESH_S: Final = 1.0
"""For so long tokens and policies are taken as they were read: a revoked token works no longer than that."""


@dataclass(frozen=True)
class Caller:
    """Who sent a request.

    Attributes:
        token: the token that was sent; None where everybody may do everything.
    """

    token: Token | None = None

    @property
    def name(self) -> str:
        """What logs call the caller: the token's id, which is no secret."""
        return self.token.id if self.token else "-"

    def reaches(self, namespace: str) -> bool:
        """Whether the caller may see this namespace."""
        return self.token is None or self.token.reaches(namespace)

    def require(self, *scopes: Scope, namespace: str | None = None) -> Caller:
        """Make sure that the caller has one of the scopes, and reaches the namespace.

        Raises:
            HttpProblem: it is not so (403).
        """
        if self.token is not None and not any(self.token.allows(scope) for scope in scopes):
            raise _forbidden(f"the token has not the scope {' or '.join(scopes)}")
        if namespace is not None and not self.reaches(namespace):
            raise _forbidden(f"the token is not for namespace {namespace[:100]!r}")
        return self


@dataclass(frozen=True)
class Access:
    """Tokens by id and policies by namespace, as they were at one moment."""

    tokens: Mapping[str, Token]
    policies: Mapping[str, NamespacePolicy]


class Gatekeeper:
    """Tells who sent a request.

    Args:
        tokens: the registry's tokens.
        policies: the registry's policies.
        on_loopback: whether the gateway listens on loopback only.
    """

    def __init__(self, tokens: Tokens, policies: Policies, *, on_loopback: bool) -> None:
        self._tokens = tokens
        self._policies = policies
        self._on_loopback = on_loopback
        self._access = Access({}, {})
        self._has_seen_tokens = False
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def access(self) -> Access:
        """Tokens and policies, not older than a second.

        Raises:
            RedisUnavailable: the server is out of reach: nobody is let in by what was true earlier.
        """
        if time.monotonic() - self._read_at > _FRESH_S:
            async with self._reading:
                if time.monotonic() - self._read_at > _FRESH_S:
                    began = time.monotonic()
                    self._access = await run_in_threadpool(self._read)
                    self._read_at = began
                    self._has_seen_tokens |= bool(self._access.tokens)
        return self._access

    async def identify(self, request: Request) -> Caller:
        """Who sent the request.

        Raises:
            HttpProblem: the token is missing, unknown, revoked or expired (401).
            RedisUnavailable: the server is out of reach.
        """
        access = await self.access()
        caller = self._bearer(request, access) if self._has_seen_tokens else self._open_to_all(request)
        request.scope["caller"] = caller.name
        return caller

    def _bearer(self, request: Request, access: Access) -> Caller:
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise _unauthorized("a bearer token is missing", "")
        token = find_token(credentials.strip(), access.tokens, now_s=time.time())
        if token is None:
            raise _unauthorized("the bearer token is not known, or has expired", ', error="invalid_token"')
        return Caller(token)

    def _open_to_all(self, request: Request) -> Caller:
        if not self._on_loopback:
            raise _unauthorized("no token exists yet, and the gateway does not listen on loopback only", "")
        # A page in somebody's browser can reach loopback under a name of its own (DNS rebinding).
        if not is_loopback(_host_of(request.headers.get("host", ""))):
            raise _forbidden("without tokens, the gateway answers on the machine's own address only")
        return Caller()

    def _read(self) -> Access:
        return Access(self._tokens.all(), self._policies.all())


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, is this machine and nothing else."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_of(header: str) -> str:
    """The host of a `Host` header, without its port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def _unauthorized(detail: str, more: str) -> HttpProblem:
    challenge = {"WWW-Authenticate": f'Bearer realm="lora-registry"{more}'}
    code = gateway_codes.UNAUTHENTICATED
    return HttpProblem(HTTPStatus.UNAUTHORIZED, code.code, detail, remedy=code.remedy, headers=challenge)


def _forbidden(detail: str) -> HttpProblem:
    code = gateway_codes.FORBIDDEN
    return HttpProblem(HTTPStatus.FORBIDDEN, code.code, detail, remedy=code.remedy)
