"""The event that starts everything: somebody says "here is an adapter"."""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from lora_registry.errors import Rejected
from lora_registry.names import DEFAULT_NAMESPACE, AdapterName, check_base_name

Key = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
Value = Annotated[str, StringConstraints(max_length=256)]
_SIGNED_BY = ("sig", "token", "key", "secret", "credential")
"""Words in the names of a query's fields that are signatures or keys."""


class Follow(StrEnum):
    """Who moves the adapter's own alias: every new version, or only people."""

    LATEST = "latest"
    MANUAL = "manual"


class RegistrationRequested(BaseModel):
    """A request to register one adapter.

    Attributes:
        namespace: tenant that the adapter belongs to.
        name: adapter's name in the namespace.
        base_model: registered name of the base model that the adapter was trained on.
        source: where the bytes are: an absolute path or a URL such as `hf://org/repo@revision`.
        labels: selectable attributes, at most 32; values of at most 256 characters.
        metadata: free attributes that nothing selects by, such as a context length; at most 32.
        supersede: end older pending registrations of the adapter once this one is validated.
        follow: `manual` leaves the adapter's own alias where it is.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    namespace: str = DEFAULT_NAMESPACE
    name: str
    base_model: str
    source: Annotated[str, StringConstraints(min_length=1, max_length=2048)]
    labels: Annotated[dict[Key, Value], Field(max_length=32)] = {}
    metadata: Annotated[dict[Key, Value], Field(max_length=32)] = {}
    supersede: bool = False
    follow: Follow = Follow.LATEST

    @field_validator("source")
    @classmethod
    def _check_source(cls, source: str) -> str:
        if may_hold_secret(source):  # events are kept, shown and logged
            raise ValueError("it has a password or a query in it; let the namespace's policy name a credential")
        return source

    @model_validator(mode="after")
    def _check_names(self) -> RegistrationRequested:
        _ = self.adapter
        check_base_name(self.base_model)
        return self

    @property
    def adapter(self) -> AdapterName:
        """The adapter's full name."""
        return AdapterName(self.namespace, self.name)

    def payload_digest(self) -> str:
        """SHA-256 of what is asked for: two events under one idempotency key must agree on it.

        Equal events have equal digests, whatever the order of their labels and metadata.
        """
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def may_hold_secret(source: str) -> bool:
    """Whether a source is a URL that may have a password, a key or a signature in it.

    On the web a user name or a query is a key enough. Elsewhere an `@` may begin a revision or an account, and a `?` be
    part of an object's name; a user with a password, or a key with its secret, which may hold slashes, is not.
    """
    scheme, separator, rest = source.partition("://")
    if not separator or scheme.lower() == "file":
        return False
    if scheme.lower() in ("http", "https"):
        return "@" in rest.partition("/")[0] or "?" in rest or "#" in rest
    query = rest.partition("?")[2].lower()
    return ":" in rest.rpartition("@")[0] or ("=" in query and any(word in query for word in _SIGNED_BY))


def parse_event(raw: str | bytes) -> RegistrationRequested:
    """Parse an event's JSON.

    Raises:
        Rejected: it is not a legal event; the message names the first offending field.
    """
    try:
        return RegistrationRequested.model_validate_json(raw)
    except ValidationError as error:
        raise Rejected(describe_validation_error(error)) from error


def describe_validation_error(error: ValidationError) -> str:
    """One line that names the first offending field and what is wrong with it; no input is repeated."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'event'}: {first['msg']}"
