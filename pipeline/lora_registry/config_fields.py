"""Every field of adapter_config.json with the values that it may have.

A value has exactly its type, even where Python would take another for it (a bool is an int), and null only where PEFT
takes null. What PEFT never looks at may be anything. What fields mean together is in adapter_config.py.

Source: LoraConfig in peft/tuners/lora/config.py and what reads it below peft/tuners (PEFT 0.21.2).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from lora_registry import file_codes
from lora_registry.code import Code
from lora_registry.findings import Finding
from lora_registry.module_patterns import is_literal_name

MAX_LIST_ENTRIES = 20_000
"""Entries of one list or pattern table; a mixture model with all experts listed in full stays below it."""
MAX_SAVED_MODULES = 100
"""Entries of modules_to_save: its match knows no dots and is paid for by every full tensor."""
MAX_ALPHA = (2 - 2**-23) * 2.0**127
"""The largest float32: a scale above it is infinite wherever the adapter is computed with."""
ALL_LINEAR = "all-linear"

Reader = Callable[[Any], Any]
"""Gives a field's value as AdapterConfig holds it. Raises Unfit."""
_BIASES = ("none", "all", "lora_only")
_TASKS = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
_INITIALISATIONS = re.compile(
    r"|(?i:gaussian|olora|mica)|eva|pissa|pissa_niter_\d{1,4}|corda|loftq|orthogonal|lora_ga", re.ASCII
)
"""Only three names are compared without regard to case. Source: `update_layer` in peft/tuners/lora/layer.py."""


class Unfit(Exception):
    """The value is not one that the field may have.

    Attributes:
        expected: what it may be.
        code: what is wrong.
        place: where within the field, if the value is a part of it.
        part: that part.
    """

    def __init__(
        self, expected: str = "", *, code: Code = file_codes.CONFIG_FIELD_INVALID, place: str = "", part: object = None
    ) -> None:
        super().__init__(expected)
        self.expected = expected
        self.code = code
        self.place = place
        self.part = part

    def finding(self, name: str, value: object) -> Finding:
        """The finding about field `name`, which has this value."""
        if self.place:
            name, value = f"{name}.{self.place[:100]}", self.part
        return self.code.finding(name, expected=self.expected, actual=short(value))


def read_fields(fields: Mapping[str, object]) -> tuple[dict[str, Any], list[Finding]]:
    """The values of the fields that are known and fit, and a finding for each that does not."""
    values, findings = {}, []
    for name, value in fields.items():
        if name not in FIELDS:
            continue
        try:
            values[name] = FIELDS[name](value)
        except Unfit as unfit:
            findings.append(unfit.finding(name, value))
    return values, findings


def short(value: object) -> str:
    """A value as findings show it."""
    text = repr(value) if not isinstance(value, (list, dict)) else f"{type(value).__name__} of {len(value)}"
    return text[:100]


def _anything(value: object) -> object:
    return value


def _if_true(reader: Reader) -> Reader:
    """For a field of which PEFT asks only whether it is true before it looks closer: what is false says nothing."""
    return lambda value: reader(value or None)


def _nullable(reader: Reader, *, null: object) -> Reader:
    return lambda value: null if value is None else reader(value)


def _flag(value: object) -> bool:
    if value is not None and type(value) is not bool:
        raise Unfit("true or false")
    return value is True


def _choice(*allowed: str) -> Reader:
    def read(value: object) -> str:
        if isinstance(value, str) and value in allowed:
            return value
        raise Unfit(" or ".join(allowed))

    return read


def _rank(value: object) -> int:
    if type(value) is int and value > 0:
        return value
    raise Unfit("an integer of at least 1")


def _number(*, at_least: float, at_most: float) -> Reader:
    def read(value: object) -> float:
        if _is_number(value) and at_least <= value <= at_most:
            return value
        raise Unfit(f"a number from {at_least:g} to {at_most:g}")

    return read


_alpha = _number(at_least=-MAX_ALPHA, at_most=MAX_ALPHA)


def _names(value: object, *, at_most: int = MAX_LIST_ENTRIES) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) and value else value
    if listed is None or listed in ("", {}):
        return ()
    if not isinstance(listed, list) or not all(isinstance(entry, str) and entry for entry in listed):
        raise Unfit("a list of names")
    if len(listed) > at_most:
        raise Unfit(f"at most {at_most} names")
    return tuple(listed)


def _literal_names(*, at_most: int = MAX_LIST_ENTRIES) -> Reader:
    """Names that must be in a list; PEFT would take a text letter by letter, and each name as a pattern."""

    def read(value: object) -> tuple[str, ...]:
        names = _names(value, at_most=at_most)
        if isinstance(value, str) or not all(map(is_literal_name, names)):
            raise Unfit("a list of plain names")
        return names

    return read


def _parameters(value: object) -> tuple[str, ...]:
    """Of all that is false, PEFT refuses an empty text alone."""
    names: tuple[str, ...] = _literal_names()(value if value == "" else value or None)
    return names


def _names_or_pattern(value: object) -> tuple[str, ...] | str:
    return value if isinstance(value, str) else _names(value)


def _targets(value: object) -> tuple[str, ...] | str:
    named = _names_or_pattern(value)
    return ALL_LINEAR if isinstance(named, str) and named.lower() == ALL_LINEAR else named


def _indices(value: object) -> tuple[int, ...]:
    if isinstance(value, list) and len(value) <= MAX_LIST_ENTRIES and all(map(_is_index, value)):
        return tuple(value)
    raise Unfit("a list of integers of at least 0")


def _index_or_indices(value: object) -> tuple[int, ...]:
    return _indices([value] if type(value) is int else value)


def _trained_rows(value: object) -> dict[str, tuple[int, ...]]:
    """By the embedding's name; a list alone is about the input's, whose name is not said."""
    by_name = value if isinstance(value, dict) else {"": value}
    rows = {module: _indices(indices) for module, indices in by_name.items()}
    if not all(each and len(set(each)) == len(each) for each in rows.values()):
        raise Unfit("different token indices, at least one")
    return rows


def _layer_ranges(value: object) -> tuple[tuple[int, int], ...]:
    if isinstance(value, list) and len(value) <= MAX_LIST_ENTRIES and all(map(_is_range, value)):
        return tuple((begin, end) for begin, end in value)
    raise Unfit("pairs of layer numbers")


def _by_pattern(reader: Reader) -> Reader:
    """A table of values by pattern; the patterns are not read here."""

    def read(value: object) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > MAX_LIST_ENTRIES:
            raise Unfit(f"an object with at most {MAX_LIST_ENTRIES} entries")
        for pattern, each in value.items():
            try:
                reader(each)
            except Unfit as unfit:
                raise Unfit(unfit.expected, place=pattern or "''", part=each) from None
        return value

    return read


def _base_name(value: object) -> str:
    if not isinstance(value, str):
        raise Unfit("a text")
    steps = value.replace("\\", "/").split("/")
    if not value.isprintable() or "://" in value or ".." in steps or len(value) > 4096:
        raise Unfit("a hub name or a path without '..'")
    return value


def _initialisation(value: object) -> str:
    if value is None or type(value) is bool:
        return ""
    if isinstance(value, str) and _INITIALISATIONS.fullmatch(value) is not None:
        return value
    raise Unfit("a way of initialising that PEFT knows")


def _settings(**readers: Reader) -> Reader:
    """An object that PEFT makes settings of; it leaves out what it does not know."""

    def read(value: object) -> None:
        if value is None:
            return
        if not isinstance(value, dict):
            raise Unfit("an object or null")
        for name, reader in readers.items():
            try:
                if name in value:
                    reader(value[name])
            except Unfit as unfit:
                raise Unfit(unfit.expected, place=name, part=value[name]) from None

    return read


def _no_variant(value: object) -> None:
    """Even an empty object asks for the variant."""
    if isinstance(value, dict) or value is True:
        raise Unfit(code=file_codes.VARIANT_UNSUPPORTED)
    if value is not None:
        raise Unfit("null")


def _no_import(value: object) -> None:
    if value is not None:
        raise Unfit(code=file_codes.CONFIG_FOREIGN_IMPORT)


def _core(value: object) -> None:
    if value not in (None, "megatron.core"):
        raise Unfit(code=file_codes.CONFIG_FOREIGN_IMPORT)


def _model_class(value: object) -> None:
    """What PEFT may import the base model's class from: transformers' own models only."""
    if value is None:
        return
    library = value.get("parent_library") if isinstance(value, dict) else None
    own = isinstance(library, str) and library.startswith("transformers.models.")
    if not own or not all(part.isidentifier() for part in str(library).split(".")):
        raise Unfit(code=file_codes.CONFIG_FOREIGN_IMPORT)


def _is_number(value: object) -> TypeGuard[float]:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _is_index(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_range(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_index, value))


FIELDS: dict[str, Reader] = {
    # What is changed, and by how much
    "r": _rank,
    "lora_alpha": _alpha,
    "target_modules": _targets,
    "exclude_modules": _if_true(_names_or_pattern),
    "target_parameters": _parameters,
    "rank_pattern": _by_pattern(_rank),
    "alpha_pattern": _by_pattern(_alpha),
    "use_rslora": _flag,
    "use_dora": _flag,
    "lora_bias": _flag,
    "bias": _choice(*_BIASES),
    "modules_to_save": _if_true(_literal_names(at_most=MAX_SAVED_MODULES)),
    "layers_to_transform": _nullable(_index_or_indices, null=()),
    "layers_pattern": _names,
    "layer_replication": _nullable(_layer_ranges, null=()),
    "trainable_token_indices": _nullable(_trained_rows, null={}),
    "ensure_weight_tying": _flag,
    "fan_in_fan_out": _flag,
    "alora_invocation_tokens": _nullable(_indices, null=()),
    # Where it comes from
    "peft_type": _choice("LORA"),
    "task_type": _nullable(_choice(*_TASKS), null=""),
    "base_model_name_or_path": _nullable(_base_name, null=""),
    "lora_dropout": _number(at_least=-math.inf, at_most=1),
    "init_lora_weights": _initialisation,
    "eva_config": _settings(rho=_number(at_least=1, at_most=math.inf), tau=_number(at_least=0, at_most=1)),
    "corda_config": _settings(),
    "lora_ga_config": _settings(),
    # Variants with other shapes or another mathematics
    "use_qalora": _if_true(_no_variant),
    "use_bdlora": _no_variant,
    "arrow_config": _no_variant,
    "kasa_config": _no_variant,
    "velora_config": _no_variant,
    "monteclora_config": _no_variant,
    # What PEFT imports a module for
    "auto_mapping": _if_true(_model_class),
    "megatron_config": _if_true(_no_import),
    "megatron_core": _core,
    # Without effect on an adapter that is loaded
    "inference_mode": _anything,
    "peft_version": _anything,
    "revision": _anything,
    "runtime_config": _anything,
    "loftq_config": _anything,
    "qalora_group_size": _anything,
}
"""The reader of every field."""
