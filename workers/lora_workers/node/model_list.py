"""What engines answer to `GET /v1/models`: their base models, and the adapters that they have. No I/O."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelList:
    """A list of models.

    Attributes:
        bases: names of the base model → its name or path; None if the engine does not tell. At least one.
        adapters: names of adapters → their paths; None likewise.
    """

    bases: dict[str, str | None]
    adapters: dict[str, str | None]

    @property
    def base(self) -> str:
        """What the engine calls its base model first."""
        return next(iter(self.bases))


def parse_model_list(answer: object) -> ModelList:
    """Read an answer, as parsed from JSON. An adapter's card has a parent, a base model's has none.

    Raises:
        ValueError: it is no list of models, or has no base model: no engine answers so.
    """
    cards = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(cards, list):
        raise ValueError("it is no list of models")
    models = ModelList({}, {})
    for card in cards:
        name, root, is_adapter = _read_card(card)
        (models.adapters if is_adapter else models.bases)[name] = root
    if not models.bases:
        raise ValueError("it lists no base model")
    return models


def _read_card(card: object) -> tuple[str, str | None, bool]:
    if not isinstance(card, dict):
        raise ValueError(f"{str(card)[:100]!r} is no model")
    name, root, parent = card.get("id"), card.get("root"), card.get("parent")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{str(card)[:100]!r} has no name")
    for each in (root, parent):
        if not isinstance(each, str | None):
            raise ValueError(f"the root or the parent of {name[:100]!r} is no text")
    return name, root, bool(parent)


def add_aliases(body: bytes, aliases: Mapping[str, str]) -> bytes:
    """An engine's answer with the aliases after its own models; what is no list of models stays as it is.

    An alias that a base model has as its name is none; one that an adapter has as its name is what requests mean by it.

    Args:
        body: the answer.
        aliases: names → the served names that they stand for.
    """
    try:
        answer = json.loads(body)
        models = parse_model_list(answer)
    except ValueError:
        return body
    added = {alias: name for alias, name in sorted(aliases.items()) if alias not in models.bases}
    kept = [card for card in answer["data"] if card["id"] not in added]
    cards = [_make_card(alias, name, models.base) for alias, name in added.items()]
    return json.dumps(answer | {"data": kept + cards}).encode()


def _make_card(alias: str, served_name: str, parent: str) -> dict[str, Any]:
    return {
        "id": alias,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "lora-registry",
        "root": served_name,
        "parent": parent,
        "permission": [],
    }
