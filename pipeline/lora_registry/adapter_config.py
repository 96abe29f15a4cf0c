"""adapter_config.json, read strictly: the fields that decide what a LoRA adapter changes and by how much.

What each field may hold is in config_fields.py; here is what they say together.

Source: LoraConfig in peft/tuners/lora/config.py (PEFT 0.21.2).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lora_registry import file_codes
from lora_registry.artifacts import CONFIG_FILE
from lora_registry.config_fields import ALL_LINEAR, FIELDS, read_fields, short
from lora_registry.errors import Rejected
from lora_registry.findings import Finding
from lora_registry.module_patterns import (
    MAX_TABLE_REPEATS,
    CompilePattern,
    PatternNotLiteral,
    PatternTable,
    compile_expression,
    is_hazardous,
    is_literal,
    is_literal_name,
)
from lora_registry.strict_json import StrictJsonError, dump_compact, load_object

__all__ = ["ALL_LINEAR", "MAX_CONFIG_BYTES", "AdapterConfig", "ConfigError", "canonical_config", "parse_adapter_config"]

MAX_CONFIG_BYTES = 1_048_576
"""A configuration that lists every projection of a model of 126 layers in full has about 60 kB."""


class ConfigError(Rejected):
    """The adapter's configuration is not acceptable."""

    code = "CONFIG_INVALID"

    @classmethod
    def of(cls, findings: list[Finding]) -> ConfigError:
        """The error that carries these findings, at least one."""
        first = findings[0]
        return cls(f"{first.subject}: {first.message}", findings=tuple(findings))


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says; every field has been checked.

    Attributes:
        rank: the field `r`: rank of every module that no pattern names.
        lora_alpha: numerator of the scale of every module that no pattern names.
        target_modules: names or dotted endings; or "all-linear" or a regular expression.
        exclude_modules: as target_modules; these are left out.
        rank_pattern: rank by pattern; the first that matches counts.
        alpha_pattern: lora_alpha by pattern; the first that matches counts.
        use_rslora: the scale is alpha/√rank instead of alpha/rank.
        use_dora: every module has a magnitude vector `[out_features]`.
        lora_bias: every lora_B has a bias `[out_features]`.
        bias: "none", "all" or "lora_only": which biases of the base model were trained.
        modules_to_save: endings of the modules that are saved whole.
        layers_to_transform: numbers of the only layers that are changed; empty means all.
        layers_pattern: names of the module lists that layers_to_transform counts in; empty means any.
        fan_in_fan_out: whether PEFT takes the base's weights as stored `[in_features, out_features]`.
        base_model_name_or_path: what the adapter was trained on, in its own words; "" if it does not say.
        target_parameters: parameters that are changed without a module of their own.
        trainable_token_indices: trained rows by name of the embedding; "" stands for the input's.
        layer_replication: ranges of layers `(begin, end)` that are stacked to a deeper model.
        init_lora_weights: name of the way of initialising; "" for the default ones.
        alora_invocation_tokens: tokens that switch the adapter on (activated LoRA); empty for others.
        task_type: PEFT's name of the task, "" if there is none.
        lora_dropout: share of inputs that training dropped; it changes no answer.
        ensure_weight_tying: whether one adapter on a tied embedding is shared with the head.
        compile_pattern: what regular expressions are compiled with; None if they are refused.
        unknown_fields: fields with a value that PEFT's LoraConfig is not known to have.
    """

    rank: int
    lora_alpha: float
    target_modules: tuple[str, ...] | str
    exclude_modules: tuple[str, ...] | str = ()
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()
    layers_to_transform: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    fan_in_fan_out: bool = False
    base_model_name_or_path: str = ""
    target_parameters: tuple[str, ...] = ()
    trainable_token_indices: dict[str, tuple[int, ...]] = field(default_factory=dict)
    layer_replication: tuple[tuple[int, int], ...] = ()
    init_lora_weights: str = ""
    alora_invocation_tokens: tuple[int, ...] = ()
    task_type: str = ""
    lora_dropout: float = 0.0
    ensure_weight_tying: bool = False
    unknown_fields: tuple[str, ...] = ()
    compile_pattern: CompilePattern | None = field(default=None, repr=False, compare=False)

    def ranks(self) -> PatternTable[int]:
        """The rank of every module, by name without the prefix base_model.model."""
        return PatternTable(self.rank_pattern, default=self.rank, compile_pattern=self.compile_pattern)

    def alphas(self) -> PatternTable[float]:
        """lora_alpha of every module, by name without the prefix base_model.model."""
        return PatternTable(self.alpha_pattern, default=self.lora_alpha, compile_pattern=self.compile_pattern)

    def scale(self, *, alpha: float, rank: int) -> float:
        """The factor of B·A. Source: 2106.09685 section 4.1 (α/r), 2312.03732 (α/√r)."""
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def parse_adapter_config(raw: bytes, *, compile_pattern: CompilePattern | None = None) -> AdapterConfig:
    """Parse the bytes of adapter_config.json.

    Args:
        raw: the whole file.
        compile_pattern: a matcher with linear running time for regular expressions; without it they are refused.

    Raises:
        ConfigError: with a finding for everything that is wrong.
    """
    fields = _load(raw)
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise ConfigError.of(
            [file_codes.PEFT_TYPE_UNSUPPORTED.finding("peft_type", expected="LORA", actual=short(kind))]
        )
    absent = _absent(fields)
    values, unfit = read_fields({name: value for name, value in fields.items() if name not in absent})
    config = _config(values, fields, compile_pattern)
    findings = [file_codes.CONFIG_FIELD_MISSING.finding(name) for name in absent]
    findings += [*unfit, *_check_patterns(config), *_contradictions(config, fields)]
    if findings:
        raise ConfigError.of(findings)
    return config


def canonical_config(raw: bytes) -> bytes:
    """The one form of a configuration that digests are taken of: compact JSON with a final newline.

    target_modules and exclude_modules are sorted when they are lists, because PEFT writes them in random
    order. Everything else stays: the order of keys means something in rank_pattern, and all values read back
    the same.

    Raises:
        ConfigError: the bytes are not a strict JSON object, or those lists do not hold texts.
    """
    fields = _load(raw)
    for name in ("target_modules", "exclude_modules"):
        value = fields.get(name)
        if isinstance(value, list):
            if not all(isinstance(entry, str) for entry in value):
                finding = file_codes.CONFIG_FIELD_INVALID.finding(name, expected="a list of names", actual=short(value))
                raise ConfigError.of([finding])
            fields[name] = sorted(value)
    return dump_compact(fields)


def _load(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError.of(
            [
                file_codes.CONFIG_TOO_LARGE.finding(
                    CONFIG_FILE, expected=f"at most {MAX_CONFIG_BYTES} bytes", actual=len(raw)
                )
            ]
        )
    try:
        return load_object(raw)
    except StrictJsonError as exc:
        raise ConfigError.of([file_codes.CONFIG_NOT_JSON.finding(CONFIG_FILE, str(exc))]) from exc


def _absent(fields: dict[str, Any]) -> list[str]:
    absent = [name for name in ("r", "lora_alpha") if fields.get(name) is None]
    if not fields.get("target_modules") and not fields.get("target_parameters"):
        absent.append("target_modules")
    return absent


def _config(values: dict[str, Any], fields: dict[str, Any], compile_pattern: CompilePattern | None) -> AdapterConfig:
    """With a harmless value for each field that is absent or does not fit."""
    known = {name: value for name, value in values.items() if name in _ATTRIBUTES}
    return AdapterConfig(
        rank=values.get("r", 1),
        **{"lora_alpha": 1, "target_modules": (), **known},
        unknown_fields=tuple(sorted(name for name in fields.keys() - FIELDS.keys() if fields[name])),
        compile_pattern=compile_pattern,
    )


def _check_patterns(config: AdapterConfig) -> Iterator[Finding]:
    for name, named in (("target_modules", config.target_modules), ("exclude_modules", config.exclude_modules)):
        if isinstance(named, str) and named and not _is_plain(name, named):
            yield from _check_expression(name, named, config.compile_pattern)
    yield from _check_table("rank_pattern", config.rank_pattern, config.compile_pattern)
    yield from _check_table("alpha_pattern", config.alpha_pattern, config.compile_pattern)
    foreign = next((parent for parent in config.layers_pattern if not is_literal_name(parent)), None)
    if foreign is not None:
        yield file_codes.PATTERN_NOT_LITERAL.finding("layers_pattern", actual=foreign[:100])


def _is_plain(name: str, pattern: str) -> bool:
    if name == "target_modules" and pattern == ALL_LINEAR:
        return True
    return is_literal_name(pattern) and "." not in pattern


def _check_expression(name: str, pattern: str, compile_pattern: CompilePattern | None) -> Iterator[Finding]:
    if is_hazardous(pattern):
        yield file_codes.PATTERN_HAZARDOUS.finding(name, actual=pattern[:100])
        return
    try:
        compile_expression(pattern, compile_pattern)
    except PatternNotLiteral as exc:
        yield file_codes.PATTERN_NOT_LITERAL.finding(name, str(exc), actual=pattern[:100])


def _check_table(name: str, table: dict[str, Any], compile_pattern: CompilePattern | None) -> Iterator[Finding]:
    for pattern in table:
        if not is_literal(pattern) and is_hazardous(pattern, repeats=MAX_TABLE_REPEATS):
            yield file_codes.PATTERN_HAZARDOUS.finding(name, actual=pattern[:100])
            return
    try:
        PatternTable(table, default=1, compile_pattern=compile_pattern)
    except PatternNotLiteral as exc:
        yield file_codes.PATTERN_NOT_LITERAL.finding(name, str(exc))


def _contradictions(config: AdapterConfig, fields: dict[str, Any]) -> Iterator[Finding]:
    """Combinations that PEFT refuses, whatever the base is.

    Source: LoraConfig.__post_init__, and `resolve_lora_variant` in peft/tuners/lora/layer.py (PEFT 0.21.2).
    """
    initialised = config.init_lora_weights.lower()
    for name in ("layers_to_transform", "layers_pattern"):
        if isinstance(config.target_modules, str) and fields.get(name) is not None:
            yield _refused(name, f"{name} counts only when target_modules is a list; PEFT refuses the combination.")
    if config.layers_pattern and fields.get("layers_to_transform") is None:
        yield _refused("layers_pattern", "PEFT refuses layers_pattern without layers_to_transform.")
    if config.lora_bias and (config.use_dora or type(fields.get("init_lora_weights", True)) is not bool):
        yield _refused("lora_bias", "PEFT refuses lora_bias together with use_dora or a named init_lora_weights.")
    if config.alora_invocation_tokens and (config.use_dora or initialised == "mica"):
        yield _refused("alora_invocation_tokens", "PEFT refuses an activated LoRA together with use_dora or MiCA.")
    both = config.trainable_token_indices.keys() & set(config.modules_to_save)
    if both:
        message = "PEFT refuses to train rows of an embedding that is saved whole."
        yield _refused("trainable_token_indices", message, actual=min(both))
    if initialised == "orthogonal" and any(rank % 2 for rank in (config.rank, *config.rank_pattern.values())):
        yield _refused("init_lora_weights", "PEFT refuses to initialise an odd rank orthogonally.")
    loftq = fields.get("loftq_config")
    if initialised == "loftq" and not (loftq and isinstance(loftq, dict)):
        yield _refused("loftq_config", "PEFT refuses to initialise by LoftQ without its settings.")


def _refused(name: str, message: str, *, actual: str = "") -> Finding:
    return file_codes.CONFIG_FIELD_INVALID.finding(name, message, actual=actual)


_ATTRIBUTES = {attribute.name for attribute in dataclasses.fields(AdapterConfig)}
