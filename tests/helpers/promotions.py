"""An adapter to promote, and what is left of a promoter that died."""

from __future__ import annotations

from lora_registry.catalog import Opening
from lora_registry.catalog_records import MovedBy
from lora_registry.client import RegistrationClient
from lora_registry.names import AdapterName
from lora_registry.nodes import NodeState
from lora_registry.open_promotions import OpenPromotion, OpenPromotions
from lora_registry.promotion import Promotions
from tests.helpers.registry import Registry

BOT = AdapterName("default", "support-bot")


def client_of(registry: Registry) -> RegistrationClient:
    """A publisher's client of the registry."""
    return RegistrationClient(registry.client, registry.settings)


def two_versions(registry: Registry) -> Promotions:
    """An adapter whose alias `stable` points at the first of two versions, and its own too."""
    registry.register(content="one", follow="manual")
    registry.register(content="two")
    for alias in ("stable", BOT.name):
        registry.catalog.move_alias(BOT, alias, 1)
    return client_of(registry).promotions()


def fail_on_b(node_id: str, served_name: str) -> tuple[NodeState, str] | None:
    """What makes the node `b` refuse the second version."""
    return (NodeState.FAILED, "no memory") if (node_id, served_name) == ("b", "support-bot.v2") else None


def move_and_die(
    registry: Registry, alias: str = "stable", *, version: int = 2, before: int = 1, length_s: float = 60.0
) -> None:
    """What is left of a promoter that died right after it moved the alias."""
    opening = Opening(f"token-{version}", lease_s=0.0, length_s=length_s, failures_since_s=1.0)
    registry.catalog.move_alias(BOT, alias, version, expect=before, by="me", how=MovedBy.PROMOTE, opens=opening)


def moves_of(registry: Registry, alias: str = "stable") -> list[tuple[str, int | None, int | None, str]]:
    """The alias's moves, newest first: by what, from where, to where, by whom."""
    return [(each.how, each.before, each.after, each.by) for each in registry.lifecycle.history(BOT, alias)]


def lost(registry: Registry) -> list[OpenPromotion]:
    """The promotions that somebody has to decide."""
    return OpenPromotions(registry.client, registry.settings).lost()[0]
