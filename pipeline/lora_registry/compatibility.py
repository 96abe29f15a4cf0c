"""Whether an adapter fits its base model, decided from names and shapes alone.

Every tensor must have a role, be announced by adapter_config.json and have exactly the shape that the base
model's module prescribes, in both directions: engines copy a smaller matrix into a larger buffer without a
word.

Modules are judged under both of their names: that of the running model and that of the base's files, which adapters
carry that were trained with an older transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from lora_registry import file_codes, fit_codes
from lora_registry.adapter_config import AdapterConfig
from lora_registry.base_profile import BaseProfile, BuiltFrom, ModuleKind, ModuleShape, modules_around
from lora_registry.changed_parts import ChangedParts, changed_parts
from lora_registry.findings import Finding
from lora_registry.module_patterns import PatternTable, endings
from lora_registry.renamed_modules import renamed_module, running_name
from lora_registry.safetensors_header import Header, TensorEntry
from lora_registry.saved_tensors import check_saved
from lora_registry.stacked_experts import CONVERTED_TARGETS, PROJECTIONS_OF, stack_of
from lora_registry.target_parameters import WrappedParameter
from lora_registry.target_selection import TargetNames
from lora_registry.tensor_roles import PREFIX, Role, SortedTensors, sort_tensors, unknown_name

MAX_FINDINGS = 1000
"""Findings after which a comparison stops; a hostile file could give one for each of 200,000 tensors."""

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_MAMBA = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
_MAMBA_MODULES = ("out_proj", "conv1d")
"""Source: `_check_lora_target_modules_mamba` in peft/tuners/tuners_utils.py (PEFT 0.21.2)."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""Source:

`LoraLayer.update_layer` in peft/tuners/lora/layer.py (PEFT 0.21.2): these subtract from the base's weight.
"""
_READS_BASE = ("pissa", "olora", "orthogonal", "lora_ga", "mica")
"""Ways of initialising that look for the module's own weight."""
_CONTAINERS: dict[tuple[int, int], tuple[BaseProfile, Sequence[str], frozenset[str]]] = {}
"""What every comparison with a base asks for, kept by the identity of its modules and parameters, which live as long
as the entry does."""
_MOST_CONTAINERS = 16
_LINEAR_PAIR = (Role.A, Role.B)
_EMBEDDING_PAIR = (Role.EMBEDDING_A, Role.EMBEDDING_B)


def check_compatibility(config: AdapterConfig, header: Header, base: BaseProfile) -> list[Finding]:
    """Compare an adapter with the base model it is registered for.

    Returns:
        What is wrong or noteworthy, at most `MAX_FINDINGS` and one that says so; no error among them means
        that the adapter fits. The subject of a finding is a tensor's name or a field of adapter_config.json.
    """
    findings = [*_noteworthy(config, base)]
    parts = changed_parts(config, base)
    if isinstance(parts, Finding):
        return [*findings, parts]
    tensors = sort_tensors(header.tensors.values(), at_most=MAX_FINDINGS)
    findings += islice(_all_of(parts, header, tensors), MAX_FINDINGS + 1)
    if len(findings) > MAX_FINDINGS:
        findings[MAX_FINDINGS:] = [fit_codes.TOO_MANY_FINDINGS.finding()]
    return findings


def _all_of(parts: ChangedParts, header: Header, tensors: SortedTensors) -> Iterator[Finding]:
    yield from tensors.findings
    for entry in header.tensors.values():
        if entry.dtype not in _FLOATS:
            yield fit_codes.TENSOR_DTYPE.finding(entry.name, expected="F32, F16 or BF16", actual=entry.dtype)
    yield from _check_modules(parts, tensors)
    yield from check_saved(parts, tensors)


def _noteworthy(config: AdapterConfig, base: BaseProfile) -> Iterator[Finding]:
    declared = config.base_model_name_or_path
    if not declared:
        yield fit_codes.BASE_NAME_ABSENT.finding("base_model_name_or_path", expected=base.name)
    elif declared not in base.names:
        yield fit_codes.BASE_NAME_DIFFERS.finding("base_model_name_or_path", expected=base.name, actual=declared[:200])
    if config.task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM") and not base.output_embedding:
        message = "PEFT loads an adapter of this task on a model that generates text only."
        yield file_codes.CONFIG_FIELD_INVALID.finding("task_type", message, actual=config.task_type)
    if config.lora_alpha <= 0:
        yield file_codes.ALPHA_NOT_POSITIVE.finding("lora_alpha", actual=config.lora_alpha)
    for pattern, alpha in config.alpha_pattern.items():
        if alpha <= 0:
            yield file_codes.ALPHA_NOT_POSITIVE.finding(f"alpha_pattern.{pattern[:100]}", actual=alpha)
            break
    if config.init_lora_weights.lower().startswith(_CHANGES_BASE):
        yield file_codes.NEEDS_CHANGED_BASE.finding("init_lora_weights", actual=config.init_lora_weights[:40])
    for name in config.unknown_fields[:20]:
        yield file_codes.CONFIG_FIELD_UNKNOWN.finding(name[:100])


def _check_modules(parts: ChangedParts, tensors: SortedTensors) -> Iterator[Finding]:
    base, targets, saved, wrapped = parts.base, parts.targets, parts.saved, parts.wrapped
    yield from wrapped.findings
    yield from _check_initialisation(parts.config, base, wrapped.by_name, tensors)
    if parts.config.alora_invocation_tokens and any(Role.EMBEDDING_A in roles for roles in tensors.lora.values()):
        message = "PEFT refuses an activated LoRA on an embedding."
        yield file_codes.CONFIG_FIELD_INVALID.finding("alora_invocation_tokens", message)
    applied = 0
    for name, roles in tensors.lora.items():
        parameter = wrapped.by_name.get(name)
        if parameter is not None:
            applied += 1
            yield from _check_parameter(name, roles, parameter, parts.ranks)
            continue
        shape = base.modules.get(name)
        if shape is None:
            applied += name in base.disk_modules
            yield from _check_other_name(parts, name, roles)
            continue
        applied += 1
        if saved and name.endswith(saved):
            yield fit_codes.SAVED_MODULE_INVALID.finding(_first(roles), actual=name)
        elif name not in targets:
            yield fit_codes.MODULE_NOT_TARGETED.finding(_first(roles), actual=name)
        elif base.model_type in _MAMBA and name.endswith(_MAMBA_MODULES):
            yield file_codes.TARGET_NOT_A_PROJECTION.finding(
                _first(roles), "PEFT puts no LoRA on this module of a Mamba model."
            )
        else:
            yield from _check_module(parts.config, name, roles, shape, parts.ranks.of(name))
    if not applied:
        yield fit_codes.NO_MODULE_APPLIED.finding(expected="at least 1 module", actual="0 modules")
    yield from _check_targets(base, targets, tensors)
    stacks = {stack_of(name) for name in tensors.lora if name in base.disk_modules}
    yield from _absent_experts(parts, tensors, stacks)
    yield from _absent_parameters(wrapped.by_name, tensors, stacks)


def _check_other_name(parts: ChangedParts, name: str, roles: dict[Role, TensorEntry]) -> Iterable[Finding]:
    """A module that the running model does not have, or has under another name."""
    shape = parts.base.disk_modules.get(name)
    if shape is None:
        return [_unknown(_first(roles), name, parts.config, parts.base)]
    stack = stack_of(name)
    if stack is not None:
        return _check_expert(parts, name, roles, shape, stack)
    parameter = parts.wrapped.by_name.get(renamed_module(name))
    if parameter is not None:
        return _check_parameter(name, roles, parameter, parts.ranks)
    if running_name(name, parts.base.modules) not in parts.targets:
        return [fit_codes.MODULE_NOT_TARGETED.finding(_first(roles), actual=name)]
    return _check_module(parts.config, name, roles, shape, parts.ranks.of(name))


def _check_expert(
    parts: ChangedParts, name: str, roles: dict[Role, TensorEntry], shape: ModuleShape, stack: str
) -> Iterable[Finding]:
    """A single expert's projection: PEFT puts it into the stack's tensors if it converts adapters of this family."""
    if parts.base.model_type not in CONVERTED_TARGETS:
        return [file_codes.EXPERTS_NOT_CONVERTED.finding(_first(roles), actual=name)]
    if stack not in parts.wrapped.parameters:
        return [fit_codes.MODULE_NOT_TARGETED.finding(_first(roles), actual=name)]
    rank = parts.ranks.of(stack) // PROJECTIONS_OF[stack.rpartition(".")[2]]
    return _check_module(parts.config, name, roles, shape, rank)


def _check_initialisation(
    config: AdapterConfig, base: BaseProfile, wrapped: dict[str, WrappedParameter], tensors: SortedTensors
) -> Iterator[Finding]:
    """Ways of initialising that PEFT cannot repeat when it loads the adapter, as it does before it reads the weights.

    Source: the `…_init` methods of LoraLayer in peft/tuners/lora/layer.py (PEFT 0.21.2).
    """
    named, ranks = config.init_lora_weights.lower(), config.ranks()
    if named == "corda":
        message = "PEFT loads it only onto a model that was prepared for CorDA."
    elif named == "mica" and config.use_dora:
        message = "PEFT refuses it together with use_dora."
    elif named == "mica" and any(_is_narrower(base, name, ranks.of(name)) for name in tensors.lora):
        message = "PEFT refuses it for a rank above a projection's smaller side."
    elif named == "mica" and wrapped:
        message = "PEFT takes it for modules only, not for parameters."
    elif named.startswith(_READS_BASE) and any(_holder(found) not in base.modules for found in wrapped.values()):
        message = "PEFT takes it for projections only, not for parameters such as stacked experts."
    elif named == "olora" and any(_is_conv1d(base, name) for name in tensors.lora):
        message = "PEFT gives the halves the wrong shapes on a Conv1D."
    else:
        return
    remedy = "Set init_lora_weights to true in adapter_config.json: the weights are trained, and it counts no more."
    yield file_codes.CONFIG_FIELD_INVALID.finding("init_lora_weights", message, actual=named[:40], remedy=remedy)


def _is_narrower(base: BaseProfile, name: str, rank: int) -> bool:
    shape = base.module(name)
    return shape is not None and min(shape.in_features, shape.out_features) < rank


def _holder(found: WrappedParameter) -> str:
    return found.parameter.rpartition(".")[0]


def _is_conv1d(base: BaseProfile, name: str) -> bool:
    shape = base.module(name)
    return shape is not None and shape.kind is ModuleKind.CONV1D


def _first(roles: dict[Role, TensorEntry]) -> str:
    """The name of a module's first tensor, by which findings call it."""
    return next(iter(roles.values())).name


def _unknown(subject: str, name: str, config: AdapterConfig, base: BaseProfile) -> Finding:
    if base.is_convolution(name):
        return fit_codes.CONVOLUTION_UNSUPPORTED.finding(subject, actual=name)
    holder = name.replace(".base_layer", "")
    if f"{name}.weight" in base.parameters:
        return fit_codes.MODULE_NOT_TARGETED.finding(subject, expected="its weight in target_parameters", actual=name)
    if any(parameter.rpartition(".")[0] == holder for parameter in base.experts):
        return fit_codes.MODULE_NOT_TARGETED.finding(
            subject, expected="its parameters in target_parameters", actual=name
        )
    if config.target_parameters and "experts" in name.split(".") and base.built_from is BuiltFrom.HEADERS:
        return file_codes.EXPERTS_UNSUPPORTED.finding(subject)
    return unknown_name(subject, name, base.module, num_layers=base.num_layers)


def _check_targets(base: BaseProfile, targets: TargetNames, tensors: SortedTensors) -> Iterator[Finding]:
    """What is targeted beside the modules that have tensors."""
    absent = [name for name in base.modules if name not in tensors.lora and name in targets]
    if absent and base.disk_modules:
        renamed = {running_name(name, base.modules) for name in tensors.lora if name in base.disk_modules}
        absent = [name for name in absent if name not in renamed]
    if absent:
        shown = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
        yield fit_codes.TARGETS_WITHOUT_TENSORS.finding("target_modules", actual=f"{len(absent)} modules: {shown}")
    containers, named = _containers(base)
    wrong = next((name for name in containers if name in targets), None) if targets.may_hold(named) else None
    if wrong is not None:
        yield file_codes.TARGET_NOT_A_PROJECTION.finding("target_modules", actual=wrong)


def _containers(base: BaseProfile) -> tuple[Sequence[str], frozenset[str]]:
    """All modules that no LoRA can replace, those that hold others and those without a parameter; all their endings."""
    key = id(base.modules), id(base.parameters)
    kept = _CONTAINERS.get(key)
    if kept is None:
        if len(_CONTAINERS) >= _MOST_CONTAINERS:
            _CONTAINERS.clear()
        others = modules_around(base.parameter_names()).union(base.bare_modules) - base.modules.keys()
        containers = sorted(name for name in others if not base.is_convolution(name))
        kept = _CONTAINERS[key] = base, containers, frozenset(part for name in containers for part in endings(name))
    return kept[1:]


def _absent_experts(parts: ChangedParts, tensors: SortedTensors, stacks: set[str | None]) -> Iterator[Finding]:
    """Single experts without tensors beside others of their stack, of which PEFT then makes tensors of wrong shapes.

    Source: `convert_peft_adapter_state_dict_for_transformers` in peft/utils/transformers_weight_conversion.py
        (PEFT 0.21.2): the whole stack is loaded or nothing.
    """
    changed = stacks & parts.wrapped.parameters
    for name in parts.base.disk_modules if changed else ():
        if name not in tensors.lora and stack_of(name) in changed:
            yield fit_codes.TENSOR_MISSING.finding(f"{PREFIX}{name}.lora_A.weight")


def _absent_parameters(
    wrapped: dict[str, WrappedParameter], tensors: SortedTensors, stacks: set[str | None]
) -> Iterator[Finding]:
    absent = [
        found.parameter for name, found in wrapped.items() if name not in tensors.lora and found.parameter not in stacks
    ]
    if absent:
        shown = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
        yield fit_codes.TARGETS_WITHOUT_TENSORS.finding(
            "target_parameters", actual=f"{len(absent)} parameters: {shown}"
        )


def _check_parameter(
    name: str, roles: dict[Role, TensorEntry], wrapped: WrappedParameter, ranks: PatternTable[int]
) -> Iterable[Finding]:
    """A wrapped parameter's tensors: `lora_A: [rank × experts, in]`, `lora_B: [out, rank × experts]`."""
    first, second = roles.get(Role.A), roles.get(Role.B)
    if first is None or second is None:
        return [_incomplete(name, roles, _LINEAR_PAIR)]
    rank = ranks.of(wrapped.parameter) * wrapped.experts
    findings = [*_check_pair(first, second, wrapped.shape, rank)]
    others = [entry for role, entry in roles.items() if role not in _LINEAR_PAIR]
    return findings + [fit_codes.TENSOR_UNANNOUNCED.finding(entry.name) for entry in others]


def _check_module(
    config: AdapterConfig,
    name: str,
    roles: dict[Role, TensorEntry],
    shape: ModuleShape,
    rank: int,
) -> Iterable[Finding]:
    pair = _EMBEDDING_PAIR if shape.kind is ModuleKind.EMBEDDING else _LINEAR_PAIR
    first, second = roles.get(pair[0]), roles.get(pair[1])
    if first is None or second is None:
        return [_incomplete(name, roles, pair)]
    findings: list[Finding] = []
    if first.shape != (rank, shape.in_features) or second.shape != (shape.out_features, rank):
        findings += _check_pair(first, second, shape, rank)
    if len(roles) > 2 or config.use_dora or config.lora_bias:
        findings += _check_vectors(config, name, roles, shape, pair)
    return findings


def _incomplete(name: str, roles: dict[Role, TensorEntry], pair: tuple[Role, Role]) -> Finding:
    there = next(iter(roles.values())).name
    crossed = _LINEAR_PAIR if pair is _EMBEDDING_PAIR else _EMBEDDING_PAIR
    if not roles.keys().isdisjoint(crossed):
        return fit_codes.TENSOR_KIND.finding(there, expected=" and ".join(pair))
    absent = " and ".join(role for role in pair if role not in roles)
    return fit_codes.PAIR_INCOMPLETE.finding(there, expected=f"{absent} of {name}", actual="missing")


def _check_pair(first: TensorEntry, second: TensorEntry, shape: ModuleShape, rank: int) -> Iterator[Finding]:
    flat = [entry for entry in (first, second) if len(entry.shape) != 2]
    for entry in flat:
        yield fit_codes.TENSOR_DIMENSIONS.finding(entry.name, expected="2 dimensions", actual=list(entry.shape))
    if flat:
        return
    if first.shape[0] != second.shape[1]:
        yield fit_codes.RANK_HALVES_DIFFER.finding(
            second.name, expected=[second.shape[0], first.shape[0]], actual=list(second.shape)
        )
    elif first.shape[0] != rank:
        yield fit_codes.RANK_MISMATCH.finding(first.name, expected=[rank, first.shape[1]], actual=list(first.shape))
    if first.shape[1] != shape.in_features:
        yield fit_codes.SHAPE_MISMATCH.finding(
            first.name, expected=[first.shape[0], shape.in_features], actual=list(first.shape)
        )
    if second.shape[0] != shape.out_features:
        yield fit_codes.SHAPE_MISMATCH.finding(
            second.name, expected=[shape.out_features, second.shape[1]], actual=list(second.shape)
        )


def _check_vectors(
    config: AdapterConfig,
    name: str,
    roles: dict[Role, TensorEntry],
    shape: ModuleShape,
    pair: tuple[Role, Role],
) -> Iterator[Finding]:
    biased = config.lora_bias and pair is _LINEAR_PAIR
    if config.lora_bias and not biased:
        message = "PEFT refuses lora_bias for an embedding."
        yield file_codes.CONFIG_FIELD_INVALID.finding("lora_bias", message, actual=name)
    for role, announced, tail in (
        (Role.MAGNITUDE, config.use_dora, "lora_magnitude_vector"),
        (Role.B_BIAS, biased, "lora_B.bias"),
    ):
        entry = roles.get(role)
        if entry is None:
            if announced:
                yield fit_codes.TENSOR_MISSING.finding(f"{PREFIX}{name}.{tail}", expected=[shape.out_features])
        elif not announced:
            yield fit_codes.TENSOR_UNANNOUNCED.finding(entry.name, expected="use_dora or lora_bias", actual="false")
        elif entry.shape != (shape.out_features,):
            yield fit_codes.SHAPE_MISMATCH.finding(entry.name, expected=[shape.out_features], actual=list(entry.shape))
    for role, entry in roles.items():
        if role not in pair and role not in (Role.MAGNITUDE, Role.B_BIAS):
            yield fit_codes.TENSOR_KIND.finding(entry.name, expected=" and ".join(pair))
