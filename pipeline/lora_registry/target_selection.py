"""Which modules and parameters adapter_config.json selects, as PEFT does it.

Source: `check_target_module_exists`, `_maybe_include_all_linear_layers` and `_inject_parameters` in
    peft/tuners/tuners_utils.py, `_convert_peft_config_moe` in peft/utils/transformers_weight_conversion.py
    (PEFT 0.21.2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from lora_registry.adapter_config import ALL_LINEAR, AdapterConfig
from lora_registry.base_profile import BaseProfile, ModuleKind, modules_around
from lora_registry.module_patterns import Matcher, compile_expression, ends_with_any, is_literal_name
from lora_registry.stacked_experts import CONVERTED_TARGETS

_CLASSIFIERS = ("classifier", "score")
_TASK_HEADS = {"SEQ_CLS": _CLASSIFIERS, "TOKEN_CLS": _CLASSIFIERS, "QUESTION_ANS": ("qa_outputs",)}
"""Modules that PEFT saves whole for a task without being told. Source: peft/peft_model.py (PEFT 0.21.2)."""
_EMBEDDING_NAMES = ("embed_tokens", "lm_head")
"""Source: EMBEDDING_LAYER_NAMES in peft/utils/constants.py."""


def saved_names(config: AdapterConfig, base: BaseProfile) -> tuple[str, ...]:
    """The endings of the modules that are saved whole, those of the task and of tied embeddings included."""
    names = config.modules_to_save + _TASK_HEADS.get(config.task_type, ())
    if _ties_saved(config, base):
        return (*names, base.input_embedding, base.output_embedding)
    return names


def _ties_saved(config: AdapterConfig, base: BaseProfile) -> bool:
    return config.ensure_weight_tying and base.tied and _names_embedding(config.modules_to_save)


def _kept_from_targets(config: AdapterConfig, base: BaseProfile) -> Iterable[str]:
    """The saved names that keep modules out of the targets; a tied head does not, because PEFT ties it by itself.

    Source: `_add_modules_to_save_to_tie` in peft/tuners/lora/model.py (PEFT 0.21.2).
    """
    names = saved_names(config, base)
    if not _ties_saved(config, base):
        return names
    return [name for name in names if not f".{base.output_embedding}".endswith(f".{name}")]


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
        names = tuple(saved)
        self._saved = tuple(f".{name}." for name in names if "." not in name)
        # PEFT reads these as regular expressions, in which a dot is any one character. There is nothing else in them.
        self._saved_loosely = tuple(re.compile(rf"(?:.*\.)?{name}(?:\..*)?") for name in names if "." in name)
        self._layers = frozenset(layers)
        self._layer_parents = tuple(layer_parents)
        self._may_exclude = bool(names or self._excluded) or self._is_excluded is not None

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
        if self._saved_loosely and any(pattern.fullmatch(module) for pattern in self._saved_loosely):
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
    return TargetNames(
        _with_tied_embedding(_named_targets(config, base), config, base),
        excluded=excluded,
        saved=_kept_from_targets(config, base),
        layers=config.layers_to_transform,
        layer_parents=config.layers_pattern,
    )


def _named_targets(config: AdapterConfig, base: BaseProfile) -> tuple[str, ...] | Matcher:
    if not isinstance(config.target_modules, str):
        return config.target_modules
    return _all_linear(config, base) if config.target_modules == ALL_LINEAR else _matcher(config.target_modules, config)


def _with_tied_embedding(
    targets: tuple[str, ...] | Matcher, config: AdapterConfig, base: BaseProfile
) -> tuple[str, ...] | Matcher:
    """The targets, with the embedding and the head if one adapter on the embedding is to be shared with the head.

    Source: `_check_tied_modules` in peft/tuners/tuners_utils.py (PEFT 0.21.2), which asks an expression for the bare
        names of the embedding and the head.
    """
    if not (config.ensure_weight_tying and base.tied) or _names_embedding(config.modules_to_save):
        return targets
    tied = (base.input_embedding, base.output_embedding)
    if not callable(targets):
        return (*targets, *tied) if _names_embedding(targets) else targets
    matches = targets
    return (lambda name: name in tied or matches(name)) if any(map(matches, _EMBEDDING_NAMES)) else matches


def _names_embedding(targets: Iterable[str]) -> bool:
    return any(name.rpartition(".")[2] in _EMBEDDING_NAMES for name in targets)


def _matcher(pattern: str, config: AdapterConfig) -> Matcher:
    if is_literal_name(pattern) and "." not in pattern:
        return pattern.__eq__
    return compile_expression(pattern, config.compile_pattern)


def _all_linear(config: AdapterConfig, base: BaseProfile) -> tuple[str, ...]:
    """Every projection but the output head; in a classifier, PEFT leaves out the first head that it knows."""
    left_out = {base.output_embedding}
    if not base.output_embedding and config.task_type == "SEQ_CLS":
        left_out = {next((head for head in ("score", "classifier") if base.module(head) is not None), "")}
    names = {**base.modules, **base.disk_modules}
    return tuple(
        name for name, shape in names.items() if shape.kind is not ModuleKind.EMBEDDING and name not in left_out
    )


def with_fused_experts(config: AdapterConfig, base: BaseProfile) -> AdapterConfig | None:
    """The configuration as PEFT converts it for a family whose experts were single modules once and are stacked now.

    PEFT goes by the family alone: the names of an expert's projections are taken out of target_modules even where
    dense layers have modules of these names too.

    Returns:
        None if PEFT refuses it: it names one of two projections that are one parameter now.
    """
    stacks = CONVERTED_TARGETS.get(base.model_type)
    if stacks is None:
        return config
    names = config.target_modules if isinstance(config.target_modules, tuple) else _resolved(config, base, stacks)
    if names is None:
        return config
    converted = {name: old for name in names if (old := _ending_among(name, stacks)) is not None}
    halves = [old for old, parameter in stacks.items() if parameter == "gate_up_proj"]
    there = set(halves).intersection(converted.values())
    if 0 < len(there) < len(halves):
        return None
    parameters = [*config.target_parameters, *sorted({stacks[old] for old in converted.values()})]
    ranks, alphas = dict(config.rank_pattern), dict(config.alpha_pattern)
    if there:
        ranks[r".*\.gate_up_proj"] = len(halves) * config.rank
        alphas[r".*\.gate_up_proj"] = len(halves) * config.lora_alpha
    return replace(
        config,
        target_modules=tuple(name for name in names if name not in converted),
        target_parameters=tuple(dict.fromkeys(parameters)),
        rank_pattern=ranks,
        alpha_pattern=alphas,
    )


def _ending_among(name: str, names: Iterable[str]) -> str | None:
    return next((old for old in names if name == old or name.endswith(f".{old}")), None)


def _resolved(config: AdapterConfig, base: BaseProfile, stacks: Mapping[str, str]) -> tuple[str, ...] | None:
    """The last segments of what an expression or "all-linear" selects; None if that is nothing.

    Source: `_resolve_string_target_modules` in peft/utils/transformers_weight_conversion.py (PEFT 0.21.2).
    """
    if config.target_modules == ALL_LINEAR:
        linear = {name.rpartition(".")[2] for name in _all_linear(config, base) if name in base.modules}
        return tuple(sorted(linear | stacks.keys()))
    targets, parameters = select_targets(config, base), list(base.parameter_names())
    found = {
        name.rpartition(".")[2]
        for name in (*modules_around(parameters), *base.bare_modules, *parameters)
        if name in targets
    }
    for old, stack in stacks.items():
        holders = (name.rpartition(".")[0] for name in parameters if name.endswith(f".{stack}"))
        if old not in found and any(f"{holder}.{old}" in targets for holder in holders):
            found.add(old)
    return tuple(sorted(found)) or None
