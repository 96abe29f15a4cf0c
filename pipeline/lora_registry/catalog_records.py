"""What the catalog holds: published versions, and what aliases point at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

from lora_registry.names import AdapterName


class VersionRecord(BaseModel):
    """One published version of an adapter.

    Attributes:
        namespace: tenant.
        name: adapter's name in the namespace.
        version: number, from 1; gaps are normal.
        lora_int_id: integer id in [1, 2**31 - 1], never reused.
        served_name: what engines call it; never means other bytes.
        base_model: base model it fits.
        base_revision: revision of the base whose shapes it was checked against.
        digest: `sha256:…` over the artifact's manifest.
        rank: largest rank among its modules.
        size_bytes: size of the weights file.
        source: where the bytes were found, with the commit where the place has one.
        requested_source: what the publisher asked for, if that was put otherwise (a branch, an alias); else empty.
        registration_id: registration that published it.
        labels: what selectors select by.
        metadata: anything else that the publisher wanted to keep with it.
        traits: what engines' verdicts depend on, as text (see kept_traits.py); empty: not known.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    namespace: str
    name: str
    version: int
    lora_int_id: int
    served_name: str
    base_model: str
    base_revision: str
    digest: str
    rank: int
    size_bytes: int
    source: str
    requested_source: str = ""
    registration_id: str
    labels: dict[str, str] = {}
    metadata: dict[str, str] = {}
    traits: str = ""

    @property
    def adapter(self) -> AdapterName:
        """The adapter it is a version of."""
        return AdapterName(self.namespace, self.name)

    @property
    def field(self) -> str:
        """Its name inside the catalog: `namespace.name.vN`."""
        return f"{self.namespace}.{self.name}.v{self.version}"


class AliasMode(StrEnum):
    """Who moves an alias: each newer version, or only people."""

    FOLLOW = "follow"
    PINNED = "pinned"


class MovedBy(StrEnum):
    """What an alias was moved by."""

    FOLLOW = "follow"
    SET = "set"
    ROLLBACK = "rollback"
    PROMOTE = "promote"
    RETIRE = "retire"


@dataclass(frozen=True)
class AliasTarget:
    """What an alias points at now."""

    version: int
    mode: AliasMode

    @classmethod
    def parse(cls, stored: str) -> AliasTarget:
        """Parse the stored form `<version> <mode> <digest>`."""
        version, mode, _ = stored.split(" ")
        return cls(int(version), AliasMode(mode))
