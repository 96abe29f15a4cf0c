"""Bearer tokens of the HTTP gateway: made once, kept as a hash.

A token is 256 random bits, so one SHA-256 is the right hash: bcrypt and its kin slow down the guessing of passwords
that people choose, and here there is nothing to guess. The id in front finds the record; the hash is compared in
constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Final, Literal

import redis
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from lora_registry.connection import command
from lora_registry.errors import NotFound
from lora_registry.keys import Keys
from lora_registry.names import check_word
from lora_registry.settings import SECONDS_PER_DAY, Settings

ALL_NAMESPACES: Final = "*"
_TOKEN = re.compile(r"lrt_([0-9a-f]{12})_([A-Za-z0-9_-]{43})", re.ASCII)
_NOBODY: Final = "0" * 64


class Scope(StrEnum):
    """What a token is for; `admin` includes the others."""

    PUBLISH = "publish"
    READ = "read"
    ADMIN = "admin"


class Token(BaseModel):
    """One token, without its secret.

    Attributes:
        id: twelve hexadecimal digits, part of the token and no secret.
        sha256: of the whole token.
        scopes: what it is for.
        namespaces: whose adapters it reaches; `*` stands for all.
        created_at: seconds since 1970.
        expires_at: seconds since 1970; None: never.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    id: str
    sha256: str = Field(repr=False)
    scopes: frozenset[Scope]
    namespaces: frozenset[str]
    created_at: float
    expires_at: float | None = None

    def allows(self, scope: Scope) -> bool:
        """Whether it has the scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def reaches(self, namespace: str) -> bool:
        """Whether the namespace is one of its own."""
        return namespace in self.namespaces or ALL_NAMESPACES in self.namespaces

    def is_expired(self, now_s: float) -> bool:
        """Whether it is past its end."""
        return self.expires_at is not None and now_s >= self.expires_at


def make_token(
    *, scopes: Collection[Scope], namespaces: Collection[str], now_s: float, expires_days: int | None = None
) -> tuple[SecretStr, Token]:
    """A new token: the secret, which nobody can see again, and what is kept of it.

    Raises:
        InvalidName: a namespace is not legal.
    """
    for namespace in namespaces:
        if namespace != ALL_NAMESPACES:
            check_word(namespace, what="namespace")
    token_id = secrets.token_hex(6)
    secret = f"lrt_{token_id}_{secrets.token_urlsafe(32)}"
    expires_at = None if expires_days is None else now_s + expires_days * SECONDS_PER_DAY
    kept = Token(
        id=token_id,
        sha256=_hash(secret),
        scopes=frozenset(scopes),
        namespaces=frozenset(namespaces),
        created_at=now_s,
        expires_at=expires_at,
    )
    return SecretStr(secret), kept


def find_token(presented: str, tokens: Mapping[str, Token], *, now_s: float) -> Token | None:
    """The token that `presented` is, if it is one of `tokens` and has not expired."""
    form = _TOKEN.fullmatch(presented)
    known = tokens.get(form[1]) if form else None
    # Hash and comparison happen in any case, so that the time does not tell whether the id exists.
    matches = hmac.compare_digest(_hash(presented), known.sha256 if known else _NOBODY)
    return known if known and matches and not known.is_expired(now_s) else None


class Tokens:
    """The tokens that the registry knows."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._keys = Keys(settings.key_prefix)

    def create(
        self, *, scopes: Collection[Scope], namespaces: Collection[str], expires_days: int | None = None
    ) -> tuple[SecretStr, Token]:
        """Make a token and keep its hash; the secret is shown to nobody again.

        Raises:
            InvalidName: a namespace is not legal.
            RedisUnavailable: the server is out of reach.
        """
        secret, kept = make_token(scopes=scopes, namespaces=namespaces, now_s=time.time(), expires_days=expires_days)
        command(self._redis, "HSET", self._keys.tokens, kept.id, kept.model_dump_json())
        return secret, kept

    def all(self) -> dict[str, Token]:
        """Every token by its id, expired ones included.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        stored = command(self._redis, "HGETALL", self._keys.tokens)
        return {token_id: Token.model_validate_json(kept) for token_id, kept in sorted(stored.items())}

    def revoke(self, token_id: str) -> None:
        """Forget a token; gateways refuse it within a second or two.

        Raises:
            NotFound: there is none of that id.
            RedisUnavailable: the server is out of reach.
        """
        if not command(self._redis, "HDEL", self._keys.tokens, token_id):
            raise NotFound(f"there is no token {token_id[:100]!r}", remedy="List them with `lora-registry token list`.")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
