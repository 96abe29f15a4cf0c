"""Which modules and parameters adapter_config.json selects, as PEFT does it.

Source: `check_target_module_exists`, `_maybe_include_all_linear_layers` and `_inject_parameters` in
    peft/tuners/tuners_utils.py, `_convert_peft_config_moe` in peft/utils/transformers_weight_conversion.py
    (PEFT 0.21.2).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lora_registry.adapter_config import ALL_LINEAR, AdapterConfig
from lora_registry.base_profile import BaseProfile, ModuleKind
from lora_registry.module_patterns import Matcher, compile_expression, ends_with_any, is_literal_name

_CLASSIFIERS = ("classifier", "score")
_TASK_HEADS = {"SEQ_CLS": _CLASSIFIERS, "TOKEN_CLS": _CLASSIFIERS, "QUESTION_ANS": ("qa_outputs",)}
"""Modules that PEFT saves whole for a task without being told. Source: peft/peft_model.py (PEFT 0.21.2)."""
_EMBEDDING_NAMES = ("embed_tokens", "lm_head")
"""Source: EMBEDDING_LAYER_NAMES in peft/utils/constants.py."""
_FUSED = {"w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"}
_FUSED_QWEN = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}
_ROUTER = "gate"


def saved_names(config: AdapterConfig, base: BaseProfile) -> tuple[str, ...]:
    """The endings of the modules that are saved whole, those of the task and of tied embeddings included."""
    names = config.modules_to_save + _TASK_HEADS.get(config.task_type, ())
    if config.ensure_weight_tying and base.tied and _names_embedding(config.modules_to_save):
        return (*names, base.input_embedding, base.output_embedding)
    return names


class TargetNames:
    """The modules that target_modules and its companions (exclusions, saved modules, layers) select."""

    def __init__(
        self,
        targets: Iterable[str] | Matcher,
        *,
        excluded: Iterable[str] | Matcher = (),
        saved: Iterable[str] = (),
        layers: Iterable[int] = (),
        layer_parents: Iterable[str] = (),
    ) -> None:
        self._matches = targets if callable(targets) else None
        self._targets = frozenset() if callable(targets) else frozenset(targets)
        self._is_excluded = excluded if callable(excluded) else None
        self._excluded = frozenset() if callable(excluded) else frozenset(excluded)
        self._saved = tuple(f".{name}." for name in saved)
        self._layers = frozenset(layers)
        self._layer_parents = tuple(layer_parents)
        self._may_exclude = bool(self._saved or self._excluded) or self._is_excluded is not None

    def __contains__(self, module: str) -> bool:
        if self._may_exclude and self.excludes(module):
            return False
        if self._matches is not None:
            return self._matches(module)
        if module in self._targets:
            return True
        return ends_with_any(module, self._targets) and (not self._layers or self._layer(module) in self._layers)

    def may_hold(self, endings: frozenset[str]) -> bool:
        """Whether any module whose dotted endings, and its whole name, are among these may be selected."""
        return self._matches is not None or not self._targets.isdisjoint(endings)

    def excludes(self, module: str) -> bool:
        """Whether a module is left out although it may be targeted."""
        if self._saved and any(name in f".{module}." for name in self._saved):
            return True
        if self._is_excluded is not None:
            return self._is_excluded(module)
        return bool(self._excluded) and ends_with_any(module, self._excluded)

    def _layer(self, module: str) -> int | None:
        """The layer's number as PEFT reads it: the first that follows a fitting parent and is not the end."""
        parts = module.split(".")
        for parent in self._layer_parents or (None,):
            # Without a parent, one more segment must stand before the one that the number follows.
            for place in range(2 if parent is None else 1, len(parts) - 1):
                if parts[place].isdecimal() and len(parts[place]) < 10 and _follows(parts[:place], parent):
                    return int(parts[place])
        return None


def _follows(parts: list[str], parent: str | None) -> bool:
    return parent is None or f".{'.'.join(parts)}".endswith(f".{parent}")


def select_targets(config: AdapterConfig, base: BaseProfile) -> TargetNames:
    """The modules of the base that the configuration selects for LoRA."""
    excluded: Iterable[str] | Matcher = config.exclude_modules
    if isinstance(excluded, str):
        excluded = _matcher(excluded, config)
    targets: Iterable[str] | Matcher
    named = config.target_modules
    if isinstance(named, str):
        targets = _all_linear(config, base) if named == ALL_LINEAR else _matcher(named, config)
    elif config.ensure_weight_tying and base.tied and _names_embedding(named):
        # PEFT puts one adapter on the embedding and shares it with the head.
        targets = (*named, base.input_embedding, base.output_embedding)
    else:
        targets = named
    return TargetNames(
        targets,
        excluded=excluded,
        saved=saved_names(config, base),
        layers=config.layers_to_transform,
        layer_parents=config.layers_pattern,
    )


def _names_embedding(targets: Iterable[str]) -> bool:
    return any(name.rpartition(".")[2] in _EMBEDDING_NAMES for name in targets)


def _matcher(pattern: str, config: AdapterConfig) -> Matcher:
    if is_literal_name(pattern) and "." not in pattern:
        return pattern.__eq__
    return compile_expression(pattern, config.compile_pattern)


def _all_linear(config: AdapterConfig, base: BaseProfile) -> list[str]:
    """Every projection but the output head; in a classifier, PEFT leaves out the first head that it knows."""
    left_out = {base.output_embedding}
    if not base.output_embedding and config.task_type == "SEQ_CLS":
        left_out = {next((head for head in ("score", "classifier") if base.module(head) is not None), "")}
    names = {**base.modules, **base.disk_modules}
    return [name for name, shape in names.items() if shape.kind is not ModuleKind.EMBEDDING and name not in left_out]


def with_fused_experts(config: AdapterConfig, base: BaseProfile) -> AdapterConfig | None:
    """The configuration as PEFT converts it for a base whose experts were single modules once and are stacked now.

    Returns:
        None if PEFT refuses it: it names one of two projections that are one parameter now.
    """
    fused = _fused_names(base)
    if not fused:
        return config
    is_all = config.target_modules == ALL_LINEAR
    if isinstance(config.target_modules, str) and not is_all:
        return config
    wanted = [*fused, _ROUTER] if is_all else [name.rpartition(".")[2] for name in config.target_modules]
    stacked = {fused[name] for name in wanted if name in fused}
    if not stacked and _ROUTER not in wanted:
        return config
    halves = [name for name, parameter in fused.items() if parameter == "gate_up_proj"]
    there = [name for name in halves if name in wanted]
    if 0 < len(there) < len(halves):
        return None
    parameters = [*config.target_parameters, *sorted(stacked), *(["gate.weight"] if _ROUTER in wanted else [])]
    ranks, alphas = dict(config.rank_pattern), dict(config.alpha_pattern)
    if there:
        ranks[r".*\.gate_up_proj"] = len(halves) * config.rank
        alphas[r".*\.gate_up_proj"] = len(halves) * config.lora_alpha
    return replace(config, target_parameters=tuple(dict.fromkeys(parameters)), rank_pattern=ranks, alpha_pattern=alphas)


def _fused_names(base: BaseProfile) -> dict[str, str]:
    """The names of single experts by the parameter that they are part of now; nothing for another kind of base."""
    if not base.experts or not base.disk_modules:
        return {}
    single = {name.rpartition(".")[2] for name in base.disk_modules if ".experts." in name}
    return next((names for names in (_FUSED, _FUSED_QWEN) if names.keys() <= single), {})
