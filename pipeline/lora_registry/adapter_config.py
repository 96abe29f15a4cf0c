"""adapter_config.json, read strictly: the fields that decide what a LoRA adapter changes and by how much.

Source: LoraConfig in peft/tuners/lora/config.py (PEFT 0.21.2).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from lora_registry import file_codes
from lora_registry.artifacts import CONFIG_FILE
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

MAX_CONFIG_BYTES = 1_048_576
"""A configuration that lists every projection of a model of 126 layers in full has about 60 kB."""
MAX_LIST_ENTRIES = 20_000
"""Entries of one list or pattern table; a mixture model with all experts listed in full stays below it."""
MAX_SAVED_MODULES = 100
"""Entries of modules_to_save: its match knows no dots and is paid for by every full tensor."""
ALL_LINEAR = "all-linear"

_JUDGED = {
    "peft_type", "r", "lora_alpha", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern",
    "use_rslora", "use_dora", "lora_bias", "bias", "modules_to_save", "layers_to_transform", "layers_pattern",
    "fan_in_fan_out", "base_model_name_or_path", "target_parameters", "trainable_token_indices",
    "layer_replication", "init_lora_weights", "alora_invocation_tokens", "task_type", "auto_mapping",
    "megatron_config", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "velora_config",
    "monteclora_config", "lora_dropout", "ensure_weight_tying",
}  # fmt: skip
_WITHOUT_EFFECT = {
    "inference_mode", "peft_version", "revision", "megatron_core", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "qalora_group_size",
}  # fmt: skip
_TASKS = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
_INITIALISATIONS = re.compile(
    r"|gaussian|eva|olora|pissa|pissa_niter_\d{1,4}|corda|loftq|orthogonal|lora_ga|mica", re.IGNORECASE
)
_VARIANTS = ("use_qalora", "use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config")


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
        peft_type: always "LORA".
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
    peft_type: str = "LORA"
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
            [file_codes.PEFT_TYPE_UNSUPPORTED.finding("peft_type", expected="LORA", actual=_short(kind))]
        )
    reader = _FieldReader(fields, compile_pattern)
    config = _config(reader, fields)
    findings = (
        reader.findings + _missing(fields) + _contradictions(config, fields) + _foreign(fields) + _variants(fields)
    )
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
                raise ConfigError.of([_invalid(name, "a list of names", value)])
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


def _config(reader: _FieldReader, fields: dict[str, Any]) -> AdapterConfig:
    return AdapterConfig(
        rank=reader.positive("r"),
        lora_alpha=reader.number("lora_alpha"),
        target_modules=reader.names_or_text("target_modules"),
        exclude_modules=reader.names_or_text("exclude_modules"),
        rank_pattern=reader.pattern_table("rank_pattern", integers=True),
        alpha_pattern=reader.pattern_table("alpha_pattern", integers=False),
        use_rslora=reader.flag("use_rslora"),
        use_dora=reader.flag("use_dora"),
        lora_bias=reader.flag("lora_bias"),
        bias=reader.choice("bias", ("none", "all", "lora_only"), default="none"),
        modules_to_save=reader.literal_names("modules_to_save", at_most=MAX_SAVED_MODULES),
        layers_to_transform=reader.integers("layers_to_transform"),
        layers_pattern=reader.names("layers_pattern"),
        fan_in_fan_out=reader.flag("fan_in_fan_out"),
        base_model_name_or_path=reader.base_name("base_model_name_or_path"),
        target_parameters=reader.literal_names("target_parameters"),
        trainable_token_indices=reader.token_indices("trainable_token_indices"),
        layer_replication=reader.ranges("layer_replication"),
        init_lora_weights=reader.initialisation("init_lora_weights"),
        alora_invocation_tokens=reader.integers("alora_invocation_tokens"),
        task_type=reader.choice("task_type", _TASKS, default=""),
        lora_dropout=reader.optional_number("lora_dropout"),
        ensure_weight_tying=reader.flag("ensure_weight_tying"),
        unknown_fields=tuple(sorted(name for name in fields.keys() - _JUDGED - _WITHOUT_EFFECT if fields[name])),
        compile_pattern=reader.compile_pattern,
    )


def _missing(fields: dict[str, Any]) -> list[Finding]:
    absent = [name for name in ("r", "lora_alpha") if fields.get(name) is None]
    if not fields.get("target_modules") and not fields.get("target_parameters"):
        absent.append("target_modules")
    return [file_codes.CONFIG_FIELD_MISSING.finding(name) for name in absent]


def _contradictions(config: AdapterConfig, fields: dict[str, Any]) -> list[Finding]:
    """Combinations that PEFT refuses. Source: LoraConfig.__post_init__ (PEFT 0.21.2)."""
    findings = []
    foreign = next((parent for parent in config.layers_pattern if not is_literal_name(parent)), None)
    if foreign is not None:
        findings.append(file_codes.PATTERN_NOT_LITERAL.finding("layers_pattern", actual=foreign[:100]))
    for name in ("layers_to_transform", "layers_pattern"):
        if isinstance(config.target_modules, str) and fields.get(name) is not None:
            message = f"{name} counts only when target_modules is a list; PEFT refuses the combination."
            findings.append(file_codes.CONFIG_FIELD_INVALID.finding(name, message))
    if config.layers_pattern and fields.get("layers_to_transform") is None:
        message = "PEFT refuses layers_pattern without layers_to_transform."
        findings.append(file_codes.CONFIG_FIELD_INVALID.finding("layers_pattern", message))
    if config.lora_bias and (config.use_dora or type(fields.get("init_lora_weights", True)) is not bool):
        message = "PEFT refuses lora_bias together with use_dora or a named init_lora_weights."
        findings.append(file_codes.CONFIG_FIELD_INVALID.finding("lora_bias", message))
    both = config.trainable_token_indices.keys() & set(config.modules_to_save)
    if both:
        message = "PEFT refuses to train rows of an embedding that is saved whole."
        findings.append(file_codes.CONFIG_FIELD_INVALID.finding("trainable_token_indices", message, actual=min(both)))
    odd = any(rank % 2 for rank in (config.rank, *config.rank_pattern.values()))
    if config.init_lora_weights == "orthogonal" and odd:
        message = "PEFT refuses to initialise an odd rank orthogonally."
        findings.append(file_codes.CONFIG_FIELD_INVALID.finding("init_lora_weights", message))
    return findings


def _foreign(fields: dict[str, Any]) -> list[Finding]:
    """Fields that make PEFT import what the adapter names; only transformers' own models may be named."""
    findings = []
    if fields.get("megatron_config"):
        findings.append(file_codes.CONFIG_FOREIGN_IMPORT.finding("megatron_config"))
    if fields.get("megatron_core") not in (None, "megatron.core"):
        findings.append(
            file_codes.CONFIG_FOREIGN_IMPORT.finding("megatron_core", actual=_short(fields["megatron_core"]))
        )
    mapping = fields.get("auto_mapping")
    if mapping:
        library = mapping.get("parent_library") if isinstance(mapping, dict) else None
        own = isinstance(library, str) and library.startswith("transformers.models.")
        if not own or not all(part.isidentifier() for part in str(library).split(".")):
            findings.append(file_codes.CONFIG_FOREIGN_IMPORT.finding("auto_mapping", actual=_short(mapping)))
    return findings


def _variants(fields: dict[str, Any]) -> list[Finding]:
    return [
        file_codes.VARIANT_UNSUPPORTED.finding(name, actual=_short(fields[name]))
        for name in _VARIANTS
        if fields.get(name)
    ]


def _invalid(name: str, expected: str, value: object) -> Finding:
    return file_codes.CONFIG_FIELD_INVALID.finding(name, expected=expected, actual=_short(value))


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, (list, dict)) else f"{type(value).__name__} of {len(value)}"
    return text[:100]


class _FieldReader:
    """Reads typed fields; notes what is wrong and gives a harmless value instead."""

    def __init__(self, fields: dict[str, Any], compile_pattern: CompilePattern | None) -> None:
        self._fields = fields
        self.compile_pattern = compile_pattern
        self.findings: list[Finding] = []

    def positive(self, name: str) -> int:
        value = self._fields.get(name)
        if type(value) is int and value > 0:
            return value
        if value is not None:
            self._note(name, "an integer of at least 1", value)
        return 1

    def number(self, name: str) -> float:
        value = self._fields.get(name)
        if _is_number(value):
            return value
        if value is not None:
            self._note(name, "a finite number", value)
        return 1

    def optional_number(self, name: str) -> float:
        value = self._fields.get(name)
        return 0.0 if value is None else self.number(name)

    def flag(self, name: str) -> bool:
        value = self._fields.get(name)
        if value is not None and type(value) is not bool:
            self._note(name, "true or false", value)
        return value is True

    def text(self, name: str) -> str:
        value = self._fields.get(name)
        if value is None or isinstance(value, str):
            return value or ""
        self._note(name, "a text", value)
        return ""

    def choice(self, name: str, allowed: tuple[str, ...], *, default: str) -> str:
        value = self._fields.get(name)
        if isinstance(value, str) and value in allowed:
            return value
        if value is not None:
            self._note(name, " or ".join(allowed), value)
        return default

    def names(self, name: str, *, at_most: int = MAX_LIST_ENTRIES) -> tuple[str, ...]:
        value = self._fields.get(name)
        listed = [value] if isinstance(value, str) else value
        if not listed:
            return ()
        if not isinstance(listed, list) or not all(isinstance(entry, str) and entry for entry in listed):
            self._note(name, "a list of names", value)
        elif len(listed) > at_most:
            self._note(name, f"at most {at_most} names", value)
        else:
            return tuple(listed)
        return ()

    def literal_names(self, name: str, *, at_most: int = MAX_LIST_ENTRIES) -> tuple[str, ...]:
        """Names that must be in a list; PEFT would take a text letter by letter, and each name as a pattern."""
        value = self._fields.get(name)
        names = self.names(name, at_most=at_most)
        if isinstance(value, str) or not all(map(is_literal_name, names)):
            self._note(name, "a list of plain names", value)
            return ()
        return names

    def names_or_text(self, name: str) -> tuple[str, ...] | str:
        value = self._fields.get(name)
        if not isinstance(value, str):
            return self.names(name)
        if name == "target_modules" and value.lower() == ALL_LINEAR:
            return ALL_LINEAR
        if value and not (is_literal_name(value) and "." not in value):
            self._check_expression(name, value)
        return value

    def _check_expression(self, name: str, pattern: str) -> None:
        if is_hazardous(pattern):
            self.findings.append(file_codes.PATTERN_HAZARDOUS.finding(name, actual=pattern[:100]))
            return
        try:
            compile_expression(pattern, self.compile_pattern)
        except PatternNotLiteral as exc:
            self.findings.append(file_codes.PATTERN_NOT_LITERAL.finding(name, str(exc), actual=pattern[:100]))

    def integers(self, name: str) -> tuple[int, ...]:
        value = self._fields.get(name)
        listed = [value] if type(value) is int else value
        if listed is None:
            return ()
        if isinstance(listed, list) and len(listed) <= MAX_LIST_ENTRIES and all(_is_index(entry) for entry in listed):
            return tuple(listed)
        self._note(name, "integers of at least 0", value)
        return ()

    def ranges(self, name: str) -> tuple[tuple[int, int], ...]:
        value = self._fields.get(name)
        if value is None:
            return ()
        if isinstance(value, list) and len(value) <= MAX_LIST_ENTRIES and all(_is_range(entry) for entry in value):
            return tuple((begin, end) for begin, end in value)
        self._note(name, "pairs of layer numbers", value)
        return ()

    def token_indices(self, name: str) -> dict[str, tuple[int, ...]]:
        value = self._fields.get(name)
        if not value:
            return {}
        by_name = value if isinstance(value, dict) else {"": value}
        for indices in by_name.values():
            if not isinstance(indices, list) or len(set(map(str, indices))) != len(indices):
                self._note(name, "a list of different token indices", value)
                return {}
            if not all(_is_index(index) for index in indices):
                self._note(name, "integers of at least 0", value)
                return {}
        return {module: tuple(indices) for module, indices in by_name.items()}

    def pattern_table(self, name: str, *, integers: bool) -> dict[str, Any]:
        value = self._fields.get(name)
        if not value:
            return {}
        if not isinstance(value, dict) or len(value) > MAX_LIST_ENTRIES:
            self._note(name, f"an object with at most {MAX_LIST_ENTRIES} entries", value)
            return {}
        for pattern, number in value.items():
            if not is_literal(pattern) and is_hazardous(pattern, repeats=MAX_TABLE_REPEATS):
                self.findings.append(file_codes.PATTERN_HAZARDOUS.finding(name, actual=pattern[:100]))
                return {}
            if not (type(number) is int and number > 0 if integers else _is_number(number)):
                self._note(f"{name}.{pattern[:100]}", "an integer of at least 1" if integers else "a number", number)
                return {}
        try:
            PatternTable(value, default=1, compile_pattern=self.compile_pattern)
        except PatternNotLiteral as exc:
            self.findings.append(file_codes.PATTERN_NOT_LITERAL.finding(name, str(exc)))
            return {}
        return value

    def base_name(self, name: str) -> str:
        text = self.text(name)
        if not text.isprintable() or "://" in text or ".." in text.replace("\\", "/").split("/") or len(text) > 4096:
            self._note(name, "a hub name or a path without '..'", text)
            return ""
        return text

    def initialisation(self, name: str) -> str:
        value = self._fields.get(name)
        if value is None or type(value) is bool:
            return ""
        text = self.text(name)
        if _INITIALISATIONS.fullmatch(text) is None:
            self._note(name, "a way of initialising that PEFT knows", value)
        return text

    def _note(self, name: str, expected: str, value: object) -> None:
        self.findings.append(_invalid(name, expected, value))


def _is_number(value: object) -> TypeGuard[float]:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _is_index(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_range(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_index(entry) for entry in value)
