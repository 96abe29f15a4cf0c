"""Collections: selectors under a name, so that a tenant's adapters can be spoken of as one thing."""

from __future__ import annotations

from collections.abc import Iterator

import redis
from pydantic import BaseModel, ConfigDict, field_validator

from lora_registry.catalog import OWN_ALIAS, Catalog
from lora_registry.catalog_records import VersionRecord
from lora_registry.connection import command
from lora_registry.errors import NotFound
from lora_registry.keys import Keys
from lora_registry.names import check_base_name, check_word
from lora_registry.selection import Selector
from lora_registry.settings import Settings


class Collection(BaseModel):
    """A selector that was given a name; what it stands for changes with the catalog.

    Attributes:
        name: its name.
        base_model: base model of its versions; empty: any.
        selector: what it selects; without aliases: what each adapter's own alias points at.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    base_model: str = ""
    selector: Selector = Selector()

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return check_word(name, what="collection")

    @field_validator("base_model")
    @classmethod
    def _check_base(cls, base_model: str) -> str:
        return base_model and check_base_name(base_model)


class Collections:
    """Typed access to the collections of a registry.

    Args:
        client: connection to the registry's server.
        settings: the registry's settings.
    """

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._key = Keys(settings.key_prefix).collections
        self._catalog = Catalog(client, settings)

    def set(self, collection: Collection) -> bool:
        """Keep a collection, in place of what has its name.

        Returns:
            Whether the name is new.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        return bool(command(self._redis, "HSET", self._key, collection.name, collection.model_dump_json()))

    def get(self, name: str) -> Collection:
        """One collection.

        Raises:
            NotFound: there is none of that name.
            RedisUnavailable: the server is out of reach.
        """
        stored = command(self._redis, "HGET", self._key, name)
        if stored is None:
            raise NotFound(f"no collection {name[:100]!r} is kept", remedy=_REMEDY)
        return Collection.model_validate_json(stored)

    def all(self) -> list[Collection]:
        """All collections, by name.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        stored = command(self._redis, "HGETALL", self._key)
        return [Collection.model_validate_json(stored[name]) for name in sorted(stored)]

    def remove(self, name: str) -> None:
        """Forget a collection; its versions stay.

        Raises:
            NotFound: there is none of that name.
            RedisUnavailable: the server is out of reach.
        """
        if not command(self._redis, "HDEL", self._key, name):
            raise NotFound(f"no collection {name[:100]!r} is kept", remedy=_REMEDY)

    def resolve(self, collection: Collection) -> Iterator[VersionRecord]:
        """The versions that a collection stands for now, in no particular order.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        selector = collection.selector
        found: set[str] = set()
        for alias in selector.aliases or (OWN_ALIAS,):
            versions = self._catalog.select(
                base_model=collection.base_model or None,
                namespace=selector.namespace or None,
                labels=selector.labels,
                alias=alias,
            )
            for record in versions:
                if record.field not in found and selector.matches(record):
                    found.add(record.field)
                    yield record


_REMEDY = "List them with `lora-registry collection list`."
