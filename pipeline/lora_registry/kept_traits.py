"""What a version record keeps of an adapter's traits: enough for any engine's verdict, without reading the artifact.

It is compact JSON inside one text, since records pass through Lua, whose JSON forgets empty lists.
"""

from __future__ import annotations

from typing import Any, Final

from lora_registry.adapter_config import AdapterConfig
from lora_registry.adapter_traits import AdapterTraits
from lora_registry.strict_json import dump_compact, load_object

CONFIG_FIELDS: Final = (
    "rank", "lora_alpha", "use_dora", "bias", "lora_bias", "modules_to_save", "init_lora_weights", "use_rslora",
    "target_parameters", "layer_replication", "alora_invocation_tokens",
)  # fmt: skip
"""Fields of adapter_config.json that conditions read; the pattern of target_modules is kept besides."""
TRAIT_FIELDS: Final = (
    "largest_rank", "other_ranks", "other_alphas", "whole_parameters", "bias_parameters", "targets", "partial_types",
    "q_without_v", "kv_without_q", "up_without_gate", "embeddings", "heads", "head_rows", "trained_tokens",
    "embedding_copies", "base_dtype", "overflows",
)  # fmt: skip
"""Traits that conditions read, less the files beside an adapter: an artifact has none."""

_WHOLE: Final = ("modules_to_save", "targets", "overflows")
"""Lists that conditions compare with others, so that every entry counts; a base model bounds them."""
_ANY: Final = ("layer_replication", "alora_invocation_tokens")
"""Lists of which it only counts whether they are empty."""
_LISTED: Final = 3
"""Entries of the other lists that a reason names, before it says how many there are."""
_MORE: Final = "\U0010ffff"
"""Stands for an entry that was left out; it sorts after every name."""
_PATTERN: Final = "target_pattern"
_MAX_PATTERN: Final = 100


def keep_traits(traits: AdapterTraits) -> str:
    """The traits as a version record keeps them: some 200 characters for most adapters."""
    plain_config, plain_traits = _plain()
    kept = {name: _kept(name, getattr(traits, name)) for name in TRAIT_FIELDS if _differs(traits, plain_traits, name)}
    config = {
        name: _kept(name, getattr(traits.config, name))
        for name in CONFIG_FIELDS
        if _differs(traits.config, plain_config, name)
    }
    if traits.target_pattern:
        config[_PATTERN] = traits.target_pattern[:_MAX_PATTERN]
    return dump_compact({**kept, "config": config}).decode().strip()


def parse_traits(text: str) -> AdapterTraits:
    """The inverse of `keep_traits`, as far as conditions can tell. What a later version keeps besides is ignored.

    Raises:
        StrictJsonError, KeyError, TypeError: it is not what `keep_traits` writes.
    """
    kept = load_object(text.encode())
    config: dict[str, Any] = {
        name: _read(value) for name, value in kept["config"].items() if name in (*CONFIG_FIELDS, _PATTERN)
    }
    traits: dict[str, Any] = {name: _read(value) for name, value in kept.items() if name in TRAIT_FIELDS}
    traits["targets"] = frozenset(traits.get("targets", ()))
    config["target_modules"] = config.pop(_PATTERN, ())
    return AdapterTraits(AdapterConfig(**({"rank": 1, "lora_alpha": 1.0} | config)), **({"largest_rank": 1} | traits))


def _plain() -> tuple[AdapterConfig, AdapterTraits]:
    config = AdapterConfig(rank=1, lora_alpha=1.0, target_modules=())
    return config, AdapterTraits(config, largest_rank=1)


def _differs(one: object, other: object, name: str) -> bool:
    return bool(getattr(one, name) != getattr(other, name))


def _kept(name: str, value: Any) -> Any:
    """A value as JSON: a list whole, or as `{"of": how many, "first": the first in order}`."""
    if not isinstance(value, list | tuple | frozenset):
        return value
    if name in _ANY:
        return list(value[:1])  # type: ignore[index] # neither of them is a set
    if name in _WHOLE or len(value) <= _LISTED:
        return sorted(value)
    return {"of": len(value), "first": sorted(value)[:_LISTED]}


def _read(value: Any) -> Any:
    if isinstance(value, dict):
        return (*value["first"], *[_MORE] * (value["of"] - len(value["first"])))
    return tuple(map(_read, value)) if isinstance(value, list) else value
