"""Whether an adapter fits its base model, decided from names and shapes alone.

Every tensor must have a role, be announced by adapter_config.json and have exactly the shape that the base
model's module prescribes, in both directions: engines copy a smaller matrix into a larger buffer without a
word.

What is not judged yet is refused: fused experts, target_parameters, replicated layers, quantised bases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from lora_registry import codes
from lora_registry.adapter_config import ALL_LINEAR, AdapterConfig
from lora_registry.base_profile import BaseProfile, ModuleKind, ModuleShape
from lora_registry.findings import Finding, has_error
from lora_registry.module_patterns import PatternTable, TargetNames
from lora_registry.safetensors_header import Header, TensorEntry
from lora_registry.saved_tensors import check_saved
from lora_registry.tensor_roles import PREFIX, Role, SortedTensors, sort_tensors, unknown_name

MAX_FINDINGS = 1000
"""Findings after which a comparison stops; a hostile file could give one for each of 200,000 tensors."""

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_HEADS = frozenset({"lm_head", "embed_out"})
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""Source:

`LoraLayer.update_layer` in peft/tuners/lora/layer.py (PEFT 0.21.2): these subtract from the base's weight.
"""
_LINEAR_PAIR = (Role.A, Role.B)
_EMBEDDING_PAIR = (Role.EMBEDDING_A, Role.EMBEDDING_B)


def check_compatibility(config: AdapterConfig, header: Header, base: BaseProfile) -> list[Finding]:
    """Compare an adapter with the base model it is registered for.

    Returns:
        What is wrong or noteworthy, at most `MAX_FINDINGS` and one that says so; no error among them means
        that the adapter fits. The subject of a finding is a tensor's name or a field of adapter_config.json.
    """
    findings = [*_refused(config, base), *_noteworthy(config, base)]
    if has_error(findings):
        return findings
    tensors = sort_tensors(header.tensors.values(), at_most=MAX_FINDINGS)
    findings += islice(_all_of(config, header, base, tensors), MAX_FINDINGS + 1)
    if len(findings) > MAX_FINDINGS:
        findings[MAX_FINDINGS:] = [codes.TOO_MANY_FINDINGS.finding()]
    return findings


def _all_of(config: AdapterConfig, header: Header, base: BaseProfile, tensors: SortedTensors) -> Iterator[Finding]:
    yield from tensors.findings
    for entry in header.tensors.values():
        if entry.dtype not in _FLOATS:
            yield codes.TENSOR_DTYPE.finding(entry.name, expected="F32, F16 or BF16", actual=entry.dtype)
    yield from _check_modules(config, base, tensors)
    yield from check_saved(config, base, tensors)


def _refused(config: AdapterConfig, base: BaseProfile) -> Iterator[Finding]:
    if config.target_parameters:
        yield codes.EXPERTS_UNSUPPORTED.finding(
            "target_parameters",
            "Parameters that are changed without a module of their own are not judged yet.",
            actual=", ".join(config.target_parameters)[:200],
        )
    if config.layer_replication:
        yield codes.LAYER_REPLICATION_UNSUPPORTED.finding("layer_replication")
    if base.quantization is not None:
        yield codes.BASE_QUANTIZED_UNSUPPORTED.finding(base.name, actual=base.quantization)


def _noteworthy(config: AdapterConfig, base: BaseProfile) -> Iterator[Finding]:
    declared = config.base_model_name_or_path
    if not declared:
        yield codes.BASE_NAME_ABSENT.finding("base_model_name_or_path", expected=base.name)
    elif declared not in _names_of(base):
        yield codes.BASE_NAME_DIFFERS.finding("base_model_name_or_path", expected=base.name, actual=declared[:200])
    for name, value in (
        ("target_modules", config.target_modules),
        ("exclude_modules", config.exclude_modules),
    ):
        if isinstance(value, str) and value != ALL_LINEAR:
            yield codes.PATTERN_NOT_EVALUATED.finding(name, actual=value[:200])
    if config.lora_alpha <= 0:
        yield codes.ALPHA_NOT_POSITIVE.finding("lora_alpha", actual=config.lora_alpha)
    for pattern, alpha in config.alpha_pattern.items():
        if alpha <= 0:
            yield codes.ALPHA_NOT_POSITIVE.finding(f"alpha_pattern.{pattern[:100]}", actual=alpha)
            break
    if config.init_lora_weights.startswith(_CHANGES_BASE):
        yield codes.NEEDS_CHANGED_BASE.finding("init_lora_weights", actual=config.init_lora_weights[:40])
    for name in config.unknown_fields[:20]:
        yield codes.CONFIG_FIELD_UNKNOWN.finding(name[:100])


def _names_of(base: BaseProfile) -> set[str]:
    """Names under which adapters may know the base; a hub source counts without scheme and revision."""
    source = base.source.removeprefix("hf://").partition("@")[0].rstrip("/")
    return {base.name, base.source, source, *base.also_known_as}


def _targets(config: AdapterConfig, base: BaseProfile) -> TargetNames:
    excluded = () if isinstance(config.exclude_modules, str) else config.exclude_modules
    if isinstance(config.target_modules, str):
        every = config.target_modules != ALL_LINEAR
        return TargetNames((name for name in base.modules if every or _is_inner_linear(name, base)), excluded=excluded)
    return TargetNames(
        config.target_modules,
        excluded=excluded,
        layers=config.layers_to_transform,
        layer_parents=config.layers_pattern,
    )


def _is_inner_linear(name: str, base: BaseProfile) -> bool:
    """Whether "all-linear" takes the module: every projection but the output head."""
    return base.modules[name].kind is not ModuleKind.EMBEDDING and name not in _HEADS


def _check_modules(config: AdapterConfig, base: BaseProfile, tensors: SortedTensors) -> Iterator[Finding]:
    targets, ranks = _targets(config, base), config.ranks()
    modules, applied = base.modules, 0
    for name, roles in tensors.lora.items():
        shape = modules.get(name)
        if shape is None:
            subject = next(iter(roles.values())).name
            yield unknown_name(subject, name, modules.__contains__, num_layers=base.num_layers)
            continue
        applied += 1
        if ".experts." in name:
            yield codes.EXPERTS_UNSUPPORTED.finding(next(iter(roles.values())).name)
        elif name not in targets:
            yield codes.MODULE_NOT_TARGETED.finding(next(iter(roles.values())).name, actual=name)
        else:
            yield from _check_module(config, name, roles, shape, ranks)
    if not applied:
        yield codes.NO_MODULE_APPLIED.finding(expected="at least 1 module", actual="0 modules")
    elif not isinstance(config.target_modules, str):
        yield from _uncovered(base, targets, tensors)


def _uncovered(base: BaseProfile, targets: TargetNames, tensors: SortedTensors) -> Iterator[Finding]:
    absent = [name for name in base.modules if name not in tensors.lora and name in targets]
    if absent:
        shown = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
        yield codes.TARGETS_WITHOUT_TENSORS.finding("target_modules", actual=f"{len(absent)} modules: {shown}")


def _check_module(
    config: AdapterConfig,
    name: str,
    roles: dict[Role, TensorEntry],
    shape: ModuleShape,
    ranks: PatternTable[int],
) -> Iterable[Finding]:
    pair = _EMBEDDING_PAIR if shape.kind is ModuleKind.EMBEDDING else _LINEAR_PAIR
    first, second = roles.get(pair[0]), roles.get(pair[1])
    if first is None or second is None:
        return [_incomplete(name, roles, pair)]
    rank = ranks.of(name)
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
        return codes.TENSOR_KIND.finding(there, expected=" and ".join(pair))
    absent = " and ".join(role for role in pair if role not in roles)
    return codes.PAIR_INCOMPLETE.finding(there, expected=f"{absent} of {name}", actual="missing")


def _check_pair(first: TensorEntry, second: TensorEntry, shape: ModuleShape, rank: int) -> Iterator[Finding]:
    flat = [entry for entry in (first, second) if len(entry.shape) != 2]
    for entry in flat:
        yield codes.TENSOR_DIMENSIONS.finding(entry.name, expected="2 dimensions", actual=list(entry.shape))
    if flat:
        return
    if first.shape[0] != second.shape[1]:
        yield codes.RANK_HALVES_DIFFER.finding(
            second.name, expected=[second.shape[0], first.shape[0]], actual=list(second.shape)
        )
    elif first.shape[0] != rank:
        yield codes.RANK_MISMATCH.finding(first.name, expected=[rank, first.shape[1]], actual=list(first.shape))
    if first.shape[1] != shape.in_features:
        yield codes.SHAPE_MISMATCH.finding(
            first.name, expected=[first.shape[0], shape.in_features], actual=list(first.shape)
        )
    if second.shape[0] != shape.out_features:
        yield codes.SHAPE_MISMATCH.finding(
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
    for role, announced, tail in (
        (Role.MAGNITUDE, config.use_dora, "lora_magnitude_vector"),
        (Role.B_BIAS, biased, "lora_B.bias"),
    ):
        entry = roles.get(role)
        if entry is None:
            if announced:
                yield codes.TENSOR_MISSING.finding(f"{PREFIX}{name}.{tail}", expected=[shape.out_features])
        elif not announced:
            yield codes.TENSOR_UNANNOUNCED.finding(entry.name, expected="use_dora or lora_bias", actual="false")
        elif entry.shape != (shape.out_features,):
            yield codes.SHAPE_MISMATCH.finding(entry.name, expected=[shape.out_features], actual=list(entry.shape))
    for role, entry in roles.items():
        if role not in pair and role not in (Role.MAGNITUDE, Role.B_BIAS):
            yield codes.TENSOR_KIND.finding(entry.name, expected=" and ".join(pair))
