"""The conditions of the engines' rules: what about an adapter makes an engine refuse it or serve it wrongly.

A condition is a pure function of an adapter's traits, a node's profile and the rule's own values. Which engine answers
how is data, in engines/*.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_registry import engine_codes as codes
from lora_registry.code import Code

if TYPE_CHECKING:
    from lora_registry.adapter_traits import AdapterTraits
    from lora_registry.engine_profiles import EngineProfile, EngineRule

_PADDED_TO = 16
_SMALLEST_SHARD = 8
"""Ranks that LoRAX and TGI pad to. Source: LoRAX a7394ba3, server/lorax_server/utils/sgmv.py (pad_rank)."""
_TOKENIZER_FILES = frozenset({"tokenizer.json", "tokenizer.model", "added_tokens.json", "tokenizer_config.json"})


@dataclass(frozen=True)
class Match:
    """A condition that holds: what about the adapter it is about."""

    subject: str = ""
    expected: str = ""
    actual: str = ""


Holds = Callable[["AdapterTraits", "EngineProfile", "EngineRule"], Match | None]


@dataclass(frozen=True)
class Condition:
    """One condition.

    Attributes:
        code: code of the reasons that it leads to.
        holds: tells whether it holds for an adapter and a node, and why.
    """

    code: Code
    holds: Holds


CONDITIONS: dict[str, Condition] = {}


def _condition(code: Code) -> Callable[[Holds], Holds]:
    def add(holds: Holds) -> Holds:
        CONDITIONS[holds.__name__] = Condition(code, holds)
        return holds

    return add


def _some(subject: str, found: Iterable[str]) -> Match | None:
    listed = sorted(found)
    if not listed:
        return None
    return Match(subject, actual=", ".join(listed[:3]) + (f", … ({len(listed)})" if len(listed) > 3 else ""))


def _flag(subject: str, is_set: bool) -> Match | None:
    return Match(subject, "false", "true") if is_set else None


@_condition(codes.ENGINE_RANK_TOO_LARGE)
def rank_over_maximum(traits: AdapterTraits, profile: EngineProfile, _: EngineRule) -> Match | None:
    """The largest rank is over the node's."""
    if profile.max_lora_rank is None or traits.largest_rank <= profile.max_lora_rank:
        return None
    return Match("r", str(profile.max_lora_rank), str(traits.largest_rank))


@_condition(codes.ENGINE_MODULES_NOT_SERVED)
def modules_not_served(traits: AdapterTraits, profile: EngineProfile, _: EngineRule) -> Match | None:
    """A module has a LoRA that the node was not started for."""
    if profile.target_modules is None:
        return None
    served = {name.rpartition(".")[2] for name in profile.target_modules}
    match = _some("target_modules", traits.targets - served)
    return match and Match(match.subject, ", ".join(sorted(served)), match.actual)


@_condition(codes.ENGINE_DORA)
def dora(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """It is weight-decomposed."""
    return _flag("use_dora", traits.config.use_dora)


@_condition(codes.ENGINE_BIAS)
def bias_announced(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """adapter_config.json says that biases of the base were trained, whether or not the file holds any."""
    return None if traits.config.bias == "none" else Match("bias", "none", traits.config.bias)


@_condition(codes.ENGINE_BIAS)
def lora_bias(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """Every lora_B has a bias."""
    return _flag("lora_bias", traits.config.lora_bias)


@_condition(codes.ENGINE_BIAS)
def bias_tensors(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """The file holds trained biases."""
    return _some("bias", traits.bias_parameters)


@_condition(codes.ENGINE_SAVED_MODULES)
def saved_modules_other_than(traits: AdapterTraits, _: EngineProfile, rule: EngineRule) -> Match | None:
    """modules_to_save names others than the rule's values, whether or not the file holds any."""
    match = _some("modules_to_save", set(traits.config.modules_to_save).difference(rule.values))
    return match and Match(match.subject, ", ".join(rule.values), match.actual)


@_condition(codes.ENGINE_SAVED_MODULES)
def whole_tensors(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """The file replaces whole parameters of the base."""
    return _some("modules_to_save", traits.whole_parameters)


@_condition(codes.ENGINE_INITIALISATION)
def initialised_by(traits: AdapterTraits, _: EngineProfile, rule: EngineRule) -> Match | None:
    """init_lora_weights begins with one of the rule's values."""
    named = traits.config.init_lora_weights.lower()
    return Match("init_lora_weights", "true", named[:40]) if named.startswith(rule.values) else None


@_condition(codes.ENGINE_INITIALISATION)
def initialised_by_other_than(traits: AdapterTraits, _: EngineProfile, rule: EngineRule) -> Match | None:
    """init_lora_weights is a name, and none of the rule's values."""
    named = traits.config.init_lora_weights.lower()
    if not named or named in rule.values:
        return None
    return Match("init_lora_weights", ", ".join(("true", *rule.values)), named[:40])


@_condition(codes.ENGINE_RSLORA)
def rslora(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """It is rank-stabilised, and some rank is not 1, where both scales are equal."""
    return _flag("use_rslora", traits.config.use_rslora and (traits.largest_rank > 1))


@_condition(codes.ENGINE_RANKS_DIFFER)
def ranks_differ(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """Some module's rank is not `r`."""
    match = _some("rank_pattern", traits.other_ranks)
    return match and Match(match.subject, f"rank {traits.config.rank}", match.actual)


@_condition(codes.ENGINE_ALPHAS_DIFFER)
def alphas_differ(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """Some module's alpha is not lora_alpha."""
    return _some("alpha_pattern", traits.other_alphas)


@_condition(codes.ENGINE_RANK_PADDED)
def rank_padded(traits: AdapterTraits, profile: EngineProfile, _: EngineRule) -> Match | None:
    """The rank is neither 8 times the tensor-parallel size nor a multiple of 16 above that."""
    smallest = _SMALLEST_SHARD * profile.tensor_parallel_size
    padded = smallest if traits.config.rank <= smallest else -(-traits.config.rank // _PADDED_TO) * _PADDED_TO
    return None if padded == traits.config.rank else Match("r", str(padded), str(traits.config.rank))


@_condition(codes.ENGINE_TARGET_PARAMETERS)
def target_parameters(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """Parameters are changed that are no modules."""
    return _some("target_parameters", traits.config.target_parameters)


@_condition(codes.ENGINE_LAYERS_REPLICATED)
def layer_replication(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """Layers are replicated."""
    return Match("layer_replication") if traits.config.layer_replication else None


@_condition(codes.ENGINE_ACTIVATED_LORA)
def activated_lora(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """Tokens switch it on."""
    return Match("alora_invocation_tokens") if traits.config.alora_invocation_tokens else None


@_condition(codes.ENGINE_TRAINED_TOKENS)
def trained_tokens(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """Single rows of an embedding were trained."""
    return _some("trainable_token_indices", traits.trained_tokens)


@_condition(codes.ENGINE_EMBEDDING_LORA)
def embedding_lora(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """An embedding has a LoRA."""
    return _some("target_modules", traits.embeddings)


@_condition(codes.ENGINE_EMBEDDING_LORA)
def head_lora(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """The output head has a LoRA."""
    return _some("target_modules", traits.heads)


@_condition(codes.ENGINE_VOCABULARY_TOO_LARGE)
def head_rows_over(traits: AdapterTraits, _: EngineProfile, rule: EngineRule) -> Match | None:
    """The output head has a LoRA and more rows than the rule's limit."""
    if rule.limit is None or traits.head_rows <= rule.limit:
        return None
    return Match(traits.heads[0], f"at most {rule.limit} rows", str(traits.head_rows))


@_condition(codes.ENGINE_LAYERS_PARTIAL)
def layers_partial(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """A kind of module has a LoRA in some layers and none in others."""
    return _some("layers_to_transform", traits.partial_types)


@_condition(codes.ENGINE_ATTENTION_PARTIAL)
def q_without_v(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """q_proj has a LoRA and v_proj beside it has none."""
    return _some("target_modules", traits.q_without_v)


@_condition(codes.ENGINE_ATTENTION_PARTIAL)
def kv_without_q(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """k_proj or v_proj has a LoRA and q_proj beside it has none."""
    return _some("target_modules", traits.kv_without_q)


@_condition(codes.ENGINE_MLP_PARTIAL)
def up_without_gate(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """up_proj has a LoRA and gate_proj beside it has none."""
    return _some("target_modules", traits.up_without_gate)


@_condition(codes.ENGINE_TARGETS_PATTERN)
def targets_pattern(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """target_modules is a regular expression."""
    return Match("target_modules", "a list", traits.target_pattern[:100]) if traits.target_pattern else None


@_condition(codes.ENGINE_OVERFLOW)
def overflows_dtype(traits: AdapterTraits, profile: EngineProfile, _: EngineRule) -> Match | None:
    """A or scale·B is not finite in the dtype that the node serves in; known only where the numbers were looked at."""
    dtype = profile.served_dtype(traits.base_dtype)
    return Match("dtype", "finite numbers", f"overflow in {dtype}") if dtype in traits.overflows else None


@_condition(codes.ENGINE_EMBEDDING_COPY)
def embedding_copy(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """The file holds a whole copy of an embedding."""
    return _some("", traits.embedding_copies)


@_condition(codes.ENGINE_OTHER_WEIGHTS)
def other_weights(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """Other *.safetensors lie beside the adapter's."""
    return _some("", (name for name in traits.other_files if name.endswith(".safetensors") and "/" not in name))


@_condition(codes.ENGINE_OWN_TOKENIZER)
def own_tokenizer(traits: AdapterTraits, _: EngineProfile, __: EngineRule) -> Match | None:
    """Tokenizer files lie beside the adapter's."""
    return _some("", _TOKENIZER_FILES.intersection(traits.other_files))
