"""What an operator tells a node: flags of `lora-registry node`, or `LORA_REGISTRY_NODE_…` for what runs inside vLLM."""

from __future__ import annotations

import socket
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from lora_registry.errors import Configuration, InvalidName
from lora_registry.events import describe_validation_error
from lora_registry.names import check_base_name
from lora_registry.nodes import NodeId
from lora_registry.settings import Seconds
from lora_workers.credentials import HeaderText

PREFIX = "LORA_REGISTRY_NODE_"
_CACHE = Path("lora-registry-node")
_LONGEST_ID = 128


class NodeOptions(BaseSettings):
    """All options of a node, with units in their names.

    Raises:
        ValidationError: a value is not legal; `load_options` turns it into `Configuration`.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)

    base: str
    """Base model that the engine serves, as the registry calls it."""
    cache: Path = _CACHE
    """Directory for artifacts; the engine must see it under the same path."""
    max_cache_gb: Annotated[float, Field(gt=0)] | None = None
    """What the cache may hold, in units of 10⁹ bytes; None: what the disk takes."""

    engine: str = "vllm"
    """Which driver."""
    engine_url: str = "http://127.0.0.1:8000"
    """Where the engine answers, or the directory that it watches."""
    engine_api_key: HeaderText = SecretStr("")
    """Bearer token that the engine asks for; empty: none."""
    profile: str = ""
    """Engine profile that says what the engine takes: a built-in one's name or a JSON file; empty: not known."""
    max_lora_rank: Annotated[int, Field(gt=0)] | None = None
    """Largest rank that the engine was started for, where it does not tell; None: not known."""

    any_base: bool = False
    """Whether it goes on although the engine names another base model."""

    node_id: NodeId = ""
    """The node's name among all nodes; by default what `default_node_id` says."""
    select: str = ""
    """Which versions it serves; empty: all of its base model that an alias points at."""
    slots: Annotated[int, Field(ge=0)] = 0
    """Adapters that it holds loaded at a time; 0: what the engine tells, or any number."""
    eager: bool = True
    """Whether it loads what it wants at once, and not at the first request."""

    drain_s: Annotated[float, Field(ge=0)] = 30.0
    """How long an adapter stays loaded that nobody wants any more; at most twenty times as long if it is busy."""
    reconcile_s: Seconds = 10.0
    """How often the engine is compared with the catalog when nothing happens."""
    retry_first_s: Seconds = 1.0
    """First pause after a failure that may pass; it doubles each time."""
    retry_max_s: Seconds = 60.0
    """Longest such pause."""
    retry_refused_s: Seconds = 600.0
    """Pause after a failure that does not pass by itself."""

    @model_validator(mode="before")
    @classmethod
    def _name_node(cls, given: dict[str, Any]) -> dict[str, Any]:
        if "node_id" in given:
            return given
        url, cache = str(given.get("engine_url", "")), Path(str(given.get("cache", _CACHE)))
        return given | {"node_id": default_node_id(url, cache)}

    @field_validator("base")
    @classmethod
    def _check_base(cls, base: str) -> str:
        try:
            return check_base_name(base)
        except InvalidName as error:
            raise ValueError(error.message) from error

    @property
    def max_cache_bytes(self) -> int | None:
        """The cache's limit in bytes."""
        return None if self.max_cache_gb is None else int(self.max_cache_gb * 1e9)


def default_node_id(engine_url: str, cache: Path) -> str:
    """A name that a restart keeps: the host's, and the engine's port; without one, what the cache's path makes of it.

    Args:
        engine_url: where the engine answers, or the directory that it watches; empty: not given.
        cache: the node's cache; no other node on the host has the same.
    """
    place = engine_url.rstrip("/").replace(":", "/").rpartition("/")[2]
    own = "" if engine_url.startswith(("http://", "https://")) else sha256(bytes(cache.resolve())).hexdigest()[:8]
    apart = "".join(f"-{part}" for part in (_word(place), own) if part)
    return f"{_word(socket.gethostname())[: _LONGEST_ID - len(apart)] or 'node'}{apart}"


def _word(text: str) -> str:
    kept = "".join(each if each.isascii() and (each.isalnum() or each in "._-") else "-" for each in text)
    return kept.strip("-._")[:64]


def load_options(**overrides: object) -> NodeOptions:
    """Options from the environment, with `overrides` (given by flags) on top; a None override is left out.

    Raises:
        Configuration: a value is not legal or missing; the message names it.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return NodeOptions(**given)  # type: ignore[arg-type] # pydantic checks them
    except ValidationError as error:
        field, _, reason = describe_validation_error(error).partition(": ")
        raise Configuration(f"{PREFIX}{field.upper()}: {reason}") from error
