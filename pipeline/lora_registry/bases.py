"""Base models that adapters are registered for: their profiles, and beside each the map of its tokenizer."""

from __future__ import annotations

from functools import lru_cache

import redis

from lora_registry.base_profile import BaseProfile, equal_shape
from lora_registry.connection import command, redis_errors
from lora_registry.errors import Conflict, NotFound
from lora_registry.keys import Keys
from lora_registry.names import DEFAULT_NAMESPACE
from lora_registry.tokenizer_maps import TokenizerMap, stored_digest

_MOST_TOKENIZERS = 4
"""Maps that a process keeps; each of a large vocabulary takes some 20 MB."""


class BaseModels:
    """Typed access to them.

    Args:
        client: connection to the registry's server.
        keys: the registry's keys.
    """

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._redis = client
        self._keys = keys
        self._tokenizers: dict[str, TokenizerMap] = {}

    def add(self, profile: BaseProfile) -> bool:
        """Register a base model, or a new revision of it with the same shapes.

        Returns:
            True if the name is new.

        Raises:
            Conflict: the name is taken by a base of other shapes, or by an adapter.
            RedisUnavailable: the server is out of reach.
        """
        qualified = profile.name if "." in profile.name else f"{DEFAULT_NAMESPACE}.{profile.name}"
        if command(self._redis, "HEXISTS", self._keys.adapters, qualified):
            raise Conflict(f"{profile.name!r} is the name of an adapter; engines serve both under one namespace")
        if self._store(profile, is_new=True):
            return True
        if not equal_shape(self.get(profile.name), profile):
            raise Conflict(f"base model {profile.name!r} is registered with other shapes; choose another name")
        self._store(profile, is_new=False)
        return False

    def _store(self, profile: BaseProfile, *, is_new: bool) -> bool:
        """Write the profile and, beside it, the tokenizer's map; returns whether that was done."""
        stored, keys = profile.model_dump_json(), self._keys
        with redis_errors(), self._redis.pipeline(transaction=True) as pipe:
            (pipe.hsetnx if is_new else pipe.hset)(keys.bases, profile.name, stored)
            if profile.tokenizer is not None:
                (pipe.hsetnx if is_new else pipe.hset)(keys.tokenizers, profile.name, profile.tokenizer.stored)
            elif not is_new:
                pipe.hdel(keys.tokenizers, profile.name)
            return bool(pipe.execute()[0])

    def get(self, name: str) -> BaseProfile:
        """Profile of a base model.

        Raises:
            NotFound: no base model of that name is registered.
            RedisUnavailable: the server is out of reach.
        """
        stored = command(self._redis, "HGET", self._keys.bases, name)
        if stored is None:
            raise NotFound(f"no base model {name[:200]!r} is registered")
        return _parse_profile(stored)

    def tokenizer_of(self, base: BaseProfile) -> TokenizerMap | None:
        """The map of a registered base model's tokenizer; None if it has none, or it was replaced meanwhile.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        if not base.tokenizer_stored or base.tokenizer is not None:
            return base.tokenizer
        if base.tokenizer_stored not in self._tokenizers:
            stored = command(self._redis, "HGET", self._keys.tokenizers, base.name)
            if stored is None or stored_digest(stored) != base.tokenizer_stored:
                return None
            if len(self._tokenizers) >= _MOST_TOKENIZERS:
                self._tokenizers.clear()
            self._tokenizers[base.tokenizer_stored] = TokenizerMap.from_stored(stored)
        return self._tokenizers[base.tokenizer_stored]

    def all(self) -> list[BaseProfile]:
        """All registered base models, by name.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        stored = command(self._redis, "HGETALL", self._keys.bases)
        return [_parse_profile(stored[name]) for name in sorted(stored)]


@lru_cache(maxsize=32)
def _parse_profile(stored: str) -> BaseProfile:
    """Parse once per text: a profile of a large base takes milliseconds, and every validation needs it."""
    return BaseProfile.model_validate_json(stored)
