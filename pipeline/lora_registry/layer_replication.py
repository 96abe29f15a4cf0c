"""A deeper model made of a base's own layers, as layer_replication describes it.

Source: `replicate_layers` in peft/tuners/tuners_utils.py (PEFT 0.21.2).
"""

from __future__ import annotations

import re
from typing import TypeVar

from lora_registry import file_codes
from lora_registry.base_profile import BaseProfile
from lora_registry.findings import Finding

MAX_REPLICATED_LAYERS = 1000
"""Several times the layers of the deepest model; a range of 100,000 layers would keep PEFT busy for minutes."""

_LAYER = re.compile(r"((?:model\.)*(?:layers|h)|(?:bert\.)?encoder\.layer)\.(\d{1,6})\.(.+)")
Shaped = TypeVar("Shaped")


def replicate(base: BaseProfile, ranges: tuple[tuple[int, int], ...]) -> BaseProfile | Finding:
    """The profile of the deeper model.

    Args:
        base: the base model's profile.
        ranges: `(begin, end)` of the layers that are stacked, in this order.

    Returns:
        The profile, or what is wrong with the ranges.
    """
    length = sum(max(0, end - begin) for begin, end in ranges)
    if length > MAX_REPLICATED_LAYERS:
        return file_codes.LAYER_REPLICATION_INVALID.finding(
            "layer_replication", expected=f"at most {MAX_REPLICATED_LAYERS} layers", actual=length
        )
    order = [layer for begin, end in ranges for layer in range(begin, end)]
    beyond = max(order, default=0)
    if beyond >= base.num_layers:
        return file_codes.LAYER_REPLICATION_INVALID.finding(
            "layer_replication", expected=f"layers 0 to {base.num_layers - 1}", actual=beyond
        )
    if not any(_LAYER.fullmatch(name) for name in base.modules):
        message = "PEFT replicates layers only where they are called model.layers or h."
        return file_codes.LAYER_REPLICATION_INVALID.finding("layer_replication", message)
    copies: dict[int, list[int]] = {}
    for number, layer in enumerate(order):
        copies.setdefault(layer, []).append(number)
    return base.model_copy(
        update={
            "modules": _copied(base.modules, copies),
            "disk_modules": _copied(base.disk_modules, copies),
            "parameters": _copied(base.parameters, copies),
            "experts": _copied(base.experts, copies),
            "bare_modules": tuple(_copied(dict.fromkeys(base.bare_modules), copies)),
            "num_layers": len(order),
        }
    )


def _copied(shapes: dict[str, Shaped], copies: dict[int, list[int]]) -> dict[str, Shaped]:
    copied: dict[str, Shaped] = {}
    for name, shape in shapes.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            copied[name] = shape
            continue
        for number in copies.get(int(match[2]), ()):
            copied[f"{match[1]}.{number}.{match[3]}"] = shape
    return copied
