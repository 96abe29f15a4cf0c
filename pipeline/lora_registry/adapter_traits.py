"""What matters to an engine about an adapter that fits its base model, gathered once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lora_registry.adapter_config import ALL_LINEAR, AdapterConfig
from lora_registry.base_profile import BaseProfile
from lora_registry.module_patterns import PatternTable
from lora_registry.safetensors_header import Header
from lora_registry.tensor_roles import Role, SortedTensors, sort_tensors

HEADS = frozenset({"lm_head", "embed_out"})
_LAYER = re.compile(r"\.\d+\.")
_MAX_UNSORTED = 1000
Value = TypeVar("Value")


@dataclass(frozen=True)
class AdapterTraits:
    """Facts about one structurally valid adapter. Modules are named without the prefix base_model.model.

    Attributes:
        config: what adapter_config.json says.
        largest_rank: the largest among `r` and the values of rank_pattern.
        other_ranks: modules whose rank is not `r`.
        other_alphas: modules whose alpha is not lora_alpha.
        whole_parameters: parameters of the base that the file replaces, biases apart.
        bias_parameters: biases that the file replaces, and those of lora_B.
        targets: last parts of the names of the modules that have a LoRA.
        partial_types: kinds of modules that have a LoRA in some layers and none in others.
        q_without_v: attention blocks with a LoRA on q_proj and none on v_proj, although the base has both.
        kv_without_q: those with one on k_proj or v_proj and none on q_proj.
        up_without_gate: blocks with a LoRA on up_proj and none on gate_proj.
        embeddings: embeddings that have a LoRA.
        heads: output heads that have a LoRA. head_rows: rows of the largest of them.
        trained_tokens: embeddings of which single rows were trained.
        embedding_copies: embeddings that the file holds a whole copy of.
        base_dtype: the base's dtype as safetensors calls it.
        other_files: files beside the two that make an adapter; known only where the source itself is looked at.
        overflows: dtypes, as safetensors calls them, in which some A or scale·B is not finite; known only where the
            numbers were looked at.
    """

    config: AdapterConfig
    largest_rank: int
    other_ranks: tuple[str, ...] = ()
    other_alphas: tuple[str, ...] = ()
    whole_parameters: tuple[str, ...] = ()
    bias_parameters: tuple[str, ...] = ()
    targets: frozenset[str] = frozenset()
    partial_types: tuple[str, ...] = ()
    q_without_v: tuple[str, ...] = ()
    kv_without_q: tuple[str, ...] = ()
    up_without_gate: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    head_rows: int = 0
    trained_tokens: tuple[str, ...] = ()
    embedding_copies: tuple[str, ...] = ()
    base_dtype: str = "BF16"
    other_files: tuple[str, ...] = ()
    overflows: tuple[str, ...] = ()

    @property
    def target_pattern(self) -> str:
        """target_modules, if it is a regular expression; it is never run here."""
        targets = self.config.target_modules
        return targets if isinstance(targets, str) and targets != ALL_LINEAR else ""


def traits_of(
    config: AdapterConfig,
    header: Header,
    base: BaseProfile,
    *,
    other_files: Sequence[str] = (),
    overflows: Sequence[str] = (),
) -> AdapterTraits:
    """Gather the traits of an adapter that `check_compatibility` found no error in."""
    tensors = sort_tensors(header.tensors.values(), at_most=_MAX_UNSORTED)
    modules = tensors.lora
    ranks, alphas = _by_module(modules, config.ranks()), _by_module(modules, config.alphas())
    heads = tuple(name for name in modules if name in HEADS)
    biases, whole = _whole(tensors)
    q_without_v, kv_without_q, up_without_gate = _incomplete_blocks(modules, base)
    return AdapterTraits(
        config,
        largest_rank=max([config.rank, *config.rank_pattern.values()]),
        other_ranks=tuple(name for name, rank in ranks.items() if rank != config.rank),
        other_alphas=tuple(name for name, alpha in alphas.items() if alpha != config.lora_alpha),
        whole_parameters=whole,
        bias_parameters=biases,
        targets=frozenset(name[name.rfind(".") + 1 :] for name in modules),
        partial_types=_partial_types(modules, base),
        q_without_v=q_without_v,
        kv_without_q=kv_without_q,
        up_without_gate=up_without_gate,
        embeddings=tuple(name for name, roles in modules.items() if Role.EMBEDDING_A in roles),
        heads=heads,
        head_rows=max((base.modules[name].out_features for name in heads if name in base.modules), default=0),
        trained_tokens=tuple(tensors.tokens),
        embedding_copies=tuple(tensors.copies),
        base_dtype=base.dtype,
        other_files=tuple(other_files),
        overflows=tuple(overflows),
    )


def _by_module(modules: Iterable[str], table: PatternTable[Value]) -> dict[str, Value]:
    return {name: table.of(name) for name in modules}


def _whole(tensors: SortedTensors) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Biases, and the other parameters that the file replaces."""
    biases = [name for name in tensors.whole if name.endswith(".bias")]
    biases += [f"{name}.lora_B.bias" for name, roles in tensors.lora.items() if Role.B_BIAS in roles]
    return tuple(biases), tuple(name for name in tensors.whole if not name.endswith(".bias"))


def _type_of(module: str) -> str:
    """The module's name without the number of its layer: what engines keep one stack of matrices for."""
    return _LAYER.sub(".*.", module, count=1)


def _partial_types(modules: Iterable[str], base: BaseProfile) -> tuple[str, ...]:
    found = Counter(map(_type_of, modules))
    fewer = {kind for kind, count in found.items() if ".*." in kind and count != base.num_layers}
    if not fewer:
        return ()
    there = Counter(kind for kind in map(_type_of, base.modules) if kind in fewer)
    return tuple(sorted(kind for kind in fewer if found[kind] < there[kind]))


def _incomplete_blocks(
    modules: Iterable[str], base: BaseProfile
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Blocks with q_proj but no v_proj, with k_proj or v_proj but no q_proj, with up_proj but no gate_proj."""
    blocks: dict[str, set[str]] = {}
    for name in modules:
        block, _, last = name.rpartition(".")
        if last in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
            blocks.setdefault(block, set()).add(last)
    no_v, no_q, no_gate = [], [], []
    for block, lasts in blocks.items():
        if "q_proj" in lasts and "v_proj" not in lasts and f"{block}.v_proj" in base.modules:
            no_v.append(block)
        if "q_proj" not in lasts and not lasts.isdisjoint(("k_proj", "v_proj")) and f"{block}.q_proj" in base.modules:
            no_q.append(block)
        if "up_proj" in lasts and "gate_proj" not in lasts and f"{block}.gate_proj" in base.modules:
            no_gate.append(block)
    return tuple(no_v), tuple(no_q), tuple(no_gate)
