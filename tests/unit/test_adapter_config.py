from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.adapters import PAYLOADS, codes_of, make_adapter, make_config

from lora_registry.adapter_config import MAX_CONFIG_BYTES, ConfigError, canonical_config, parse_adapter_config
from lora_registry.module_patterns import MAX_PATTERN_SHAPES, PatternTable
from lora_registry.target_selection import TargetNames


def refused(raw: bytes) -> list[str]:
    """The codes with which a configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        parse_adapter_config(raw)
    return codes_of(caught.value.findings)


def refused_with(**changes: Any) -> list[str]:
    """The codes with which a good configuration is refused after these changes."""
    return refused(make_adapter().with_config(**changes).config_bytes)


def test_reads_what_peft_writes() -> None:
    """Every field that decides the adapter's effect is read from a configuration that PEFT wrote."""
    config = parse_adapter_config((PAYLOADS / "rank_pattern" / "adapter_config.json").read_bytes())
    assert (config.rank, config.lora_alpha, config.use_rslora) == (4, 8, True)
    assert config.rank_pattern == {"layers.1.self_attn.v_proj": 16}
    assert set(config.target_modules) == {"q_proj", "v_proj"}
    assert config.base_model_name_or_path == "acme/tiny-llama"
    assert config.unknown_fields == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", True),
        ("r", 8.0),
        ("r", "8"),
        ("r", 0),
        ("r", -1),
        ("r", [8]),
        ("lora_alpha", "16"),
        ("lora_alpha", True),
        ("lora_alpha", [1]),
        ("use_rslora", 1),
        ("use_dora", "true"),
        ("bias", "some"),
        ("bias", ["all"]),
        ("target_modules", [1]),
        ("target_modules", {"q_proj": 1}),
        ("target_modules", [""]),
        ("modules_to_save", ["m"] * 101),
        ("modules_to_save", 3),
        ("rank_pattern", ["q_proj"]),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", {"q_proj": 4.0}),
        ("alpha_pattern", {"q_proj": "4"}),
        ("alpha_pattern", {"q_proj": True}),
        ("layers_to_transform", [-1]),
        ("layers_to_transform", ["0"]),
        ("layers_to_transform", 1.5),
        ("trainable_token_indices", [1, 1]),
        ("trainable_token_indices", [-1]),
        ("trainable_token_indices", {"e": 1}),
        ("layer_replication", [[0]]),
        ("layer_replication", "x"),
        ("init_lora_weights", 3),
        ("base_model_name_or_path", "a\nb"),
        ("base_model_name_or_path", "https://x/y"),
        ("base_model_name_or_path", "a/../b"),
        ("base_model_name_or_path", 3),
        ("task_type", 1),
        ("lora_alpha", 1e39),
        ("lora_alpha", -1e300),
        ("alpha_pattern", {"q_proj": 1e39}),
        ("lora_dropout", None),
        ("lora_dropout", 1.5),
        ("bias", None),
        ("rank_pattern", None),
        ("rank_pattern", []),
        ("alpha_pattern", ""),
        ("layers_pattern", 0),
        ("trainable_token_indices", []),
        ("trainable_token_indices", 0),
        ("trainable_token_indices", {"e": []}),
        ("alora_invocation_tokens", 1),
        ("init_lora_weights", "PISSA"),
        ("target_parameters", ""),
        ("corda_config", []),
        ("eva_config", False),
        ("eva_config", {"rho": 0.5}),
        ("lora_ga_config", "x"),
        ("use_bdlora", False),
        ("arrow_config", 0),
        ("kasa_config", ""),
        ("velora_config", []),
    ],
)
def test_wrong_types_are_refused(field: str, value: object) -> None:
    """A field of another type is refused, even where Python would take it for the right one (a bool is an
    int).
    """
    with pytest.raises(ConfigError) as caught:
        parse_adapter_config(make_adapter().with_config(**{field: value}).config_bytes)
    assert [finding.code for finding in caught.value.findings] == ["CONFIG_FIELD_INVALID"]
    assert caught.value.findings[0].subject.startswith(field)


def test_all_faults_are_told_at_once() -> None:
    """A configuration with several faults gives a finding for each."""
    assert refused_with(r=0, bias="x", use_dora=1) == ["CONFIG_FIELD_INVALID"] * 3


@pytest.mark.parametrize("field", ["r", "lora_alpha", "target_modules"])
def test_fields_that_engines_need_are_required(field: str) -> None:
    """r, lora_alpha and target_modules must be there: PEFT's defaults are not the engines'."""
    assert refused_with(**{field: None}) == ["CONFIG_FIELD_MISSING"]


@pytest.mark.parametrize("kind", [None, "lora", "IA3", "ADALORA", ["LORA"], 1])
def test_other_kinds_of_adapter_are_refused(kind: object) -> None:
    """Only peft_type LORA, spelled so, is a LoRA; engines do not look and would serve nonsense."""
    assert refused_with(peft_type=kind) == ["PEFT_TYPE_UNSUPPORTED"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'\xef\xbb\xbf{"r":1}',
        b'{"r":1,"r":2}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":' + b"1" * 21 + b"}",
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\uD800"}',
        b'{"a":' + b"[" * 100_000 + b"}",
        '{"a":1}'.encode("utf-16"),
        b'{"a":{"b":1,"b":1}}',
    ],
)
def test_only_strict_json_is_read(raw: bytes) -> None:
    """Repeated keys, numbers that are none, byte-order marks and deep nesting are refused by both readers."""
    assert refused(raw) == ["CONFIG_NOT_JSON"]
    with pytest.raises(ConfigError):
        canonical_config(raw)


def test_large_configuration_is_refused() -> None:
    """A configuration above the limit is refused before it is parsed."""
    assert refused(b" " * (MAX_CONFIG_BYTES + 1)) == ["CONFIG_TOO_LARGE"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("megatron_config", {"x": 1}),
        ("megatron_core", "evil.module"),
        ("auto_mapping", {"parent_library": "evil.module", "base_model_class": "X"}),
        ("auto_mapping", {"parent_library": "transformers.models.../evil", "base_model_class": "X"}),
        ("auto_mapping", ["x"]),
    ],
)
def test_foreign_imports_are_refused(field: str, value: object) -> None:
    """Fields from which PEFT would import a module that the adapter names are refused."""
    assert refused_with(**{field: value}) == ["CONFIG_FOREIGN_IMPORT"]


def test_auto_mapping_of_transformers_is_accepted() -> None:
    """PEFT itself writes auto_mapping when no task type was given; a class of transformers' models is no
    danger.
    """
    parse_adapter_config((PAYLOADS / "no_task_type" / "adapter_config.json").read_bytes())


@pytest.mark.parametrize("field", ["use_qalora", "use_bdlora", "arrow_config", "kasa_config"])
def test_variants_that_are_not_judged_are_refused(field: str) -> None:
    """Variants of LoRA with other shapes or another mathematics are refused, not waved through."""
    assert refused_with(**{field: {"x": 1}}) == ["VARIANT_UNSUPPORTED"]


@pytest.mark.parametrize("field", ["use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config"])
def test_settings_of_a_variant_ask_for_it_even_when_they_are_empty(field: str) -> None:
    """PEFT makes default settings of an empty object, and with them the variant."""
    assert refused_with(**{field: {}}) == ["VARIANT_UNSUPPORTED"]


@pytest.mark.parametrize("pattern", ["q[_]proj", "(q_proj", "q_proj|v_proj", "a\\d", ""])
def test_regular_expressions_in_pattern_tables_are_refused(pattern: str) -> None:
    """Without a linear-time matcher, the keys of rank_pattern and alpha_pattern must be literal names."""
    assert refused_with(rank_pattern={pattern: 4}) == ["PATTERN_NOT_LITERAL"]
    assert refused_with(alpha_pattern={pattern: 4}) == ["PATTERN_NOT_LITERAL"]


def test_pattern_tables_of_many_shapes_are_refused() -> None:
    """A table whose patterns put their dots in very many places is refused: each costs time per module."""
    table = {f"{'a' * n}.b": 4 for n in range(1, MAX_PATTERN_SHAPES + 2)}
    assert refused_with(rank_pattern=table) == ["PATTERN_NOT_LITERAL"]


def test_repeated_groups_in_target_modules_are_refused() -> None:
    """An expression that repeats a group can occupy a PEFT process for ever, so it goes no further."""
    assert refused_with(target_modules="(a|aa)+$") == ["PATTERN_HAZARDOUS"]
    assert refused_with(target_modules=".*" * 7) == ["PATTERN_HAZARDOUS"]
    assert refused_with(rank_pattern={"(a|b)+": 4}) == ["PATTERN_HAZARDOUS"]
    assert refused_with(rank_pattern={"a*b*c*": 4}) == ["PATTERN_HAZARDOUS"]


def test_an_expression_needs_a_matcher() -> None:
    """An expression is refused unless a linear-time matcher is given, which is then asked to compile it."""
    assert refused_with(target_modules=r".*\.(q|v)_proj") == ["PATTERN_NOT_LITERAL"]
    raw = make_adapter(target_modules=r".*\.(q|v)_proj").config_bytes
    config = parse_adapter_config(raw, compile_pattern=lambda pattern: lambda text: text == "x")
    assert config.target_modules == r".*\.(q|v)_proj"


@pytest.mark.parametrize("pattern", [r"(?=a)b", r"b(?!a)", r"(a)\1", r"(?<=a)b", r"a\Qb", r"[[:alpha:]]", r"(?P<n>a)"])
def test_syntax_that_engines_read_differently_is_refused(pattern: str) -> None:
    """Look-around, back references and classes that only some engines know are refused whatever the matcher says."""
    raw = make_adapter(target_modules=pattern).config_bytes
    with pytest.raises(ConfigError) as caught:
        parse_adapter_config(raw, compile_pattern=lambda _: lambda _: True)
    assert [finding.code for finding in caught.value.findings] == ["PATTERN_NOT_LITERAL"]


def test_names_that_peft_reads_as_patterns_are_plain() -> None:
    """modules_to_save and target_parameters are lists of plain names: PEFT puts them into regular expressions."""
    for field in ("modules_to_save", "target_parameters"):
        assert refused_with(**{field: ["(a|b)+"]}) == ["CONFIG_FIELD_INVALID"]
        assert refused_with(**{field: "score"}) == ["CONFIG_FIELD_INVALID"]


@pytest.mark.parametrize(
    "changes",
    [
        {"layers_pattern": ["layers"]},
        {"lora_bias": True, "use_dora": True},
        {"lora_bias": True, "init_lora_weights": "gaussian"},
        {"init_lora_weights": "magic"},
        {"init_lora_weights": "orthogonal", "r": 3},
        {"init_lora_weights": "loftq"},
        {"alora_invocation_tokens": [1], "use_dora": True},
        {"alora_invocation_tokens": [1], "init_lora_weights": "MiCA"},
        {"task_type": "MAGIC"},
        {"trainable_token_indices": {"embed_tokens": [1]}, "modules_to_save": ["embed_tokens"]},
    ],
)
def test_combinations_that_peft_refuses_are_refused(changes: dict[str, Any]) -> None:
    """What LoraConfig or the loading raises an error for goes no further."""
    assert refused_with(**changes) == ["CONFIG_FIELD_INVALID"]


def test_layers_to_transform_needs_a_list_of_targets() -> None:
    """layers_to_transform beside an expression is refused, as PEFT does."""
    assert refused_with(target_modules="all-linear", layers_to_transform=[0]) == ["CONFIG_FIELD_INVALID"]
    assert refused_with(target_modules="all-linear", layers_pattern=[]) == ["CONFIG_FIELD_INVALID"]
    assert refused_with(layers_to_transform=[0], layers_pattern=["a|b"]) == ["PATTERN_NOT_LITERAL"]


def test_unknown_fields_are_named() -> None:
    """A field that PEFT is not known to have is kept for a warning, if it says anything."""
    assert make_config(shiny=True, dull=None, empty=[]).unknown_fields == ("shiny",)


def test_scale_follows_the_formula() -> None:
    """The scale is alpha/rank, with rsLoRA alpha/√rank."""
    assert make_config().scale(alpha=16, rank=4) == 4
    assert make_config(use_rslora=True).scale(alpha=16, rank=4) == 8


def test_canonical_form_sorts_the_target_sets_only() -> None:
    """Lists of target and excluded modules are sorted; every other list and the order of keys stay."""
    raw = b'{"z": 1, "target_modules": ["v", "q"], "rank_pattern": {"b": 1, "a": 2},'
    raw += b' "modules_to_save": ["y", "x"], "exclude_modules": ["d", "c"]}'
    assert canonical_config(raw) == (
        b'{"z":1,"target_modules":["q","v"],"rank_pattern":{"b":1,"a":2},"modules_to_save":["y","x"],'
        b'"exclude_modules":["c","d"]}\n'
    )


def test_canonical_form_keeps_numbers_and_texts() -> None:
    """Integers, doubles and texts read back the same; a target given as a text is left alone."""
    numbers = '"i":12345678901234567890,"f":0.1,"e":1e-7,"one":1.0,"m":-0.0'
    raw = f'{{{numbers},"t":"é😀","target_modules":"q"}}'.encode()
    again = canonical_config(raw)
    assert json.loads(again) == json.loads(raw)
    assert b'"one":1.0' in again
    assert b'"m":-0.0' in again


_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**18), 10**18),
        st.text(max_size=5),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.text(max_size=5), _values, max_size=4),
    st.lists(st.text(max_size=4), max_size=4),
    st.randoms(),
)
def test_canonical_form_is_stable(fields: dict[str, Any], targets: list[str], random: Any) -> None:
    """The canonical form does not depend on the order of targets or on spacing, and is its own canonical
    form.
    """
    shuffled = random.sample(targets, len(targets))
    one = canonical_config(json.dumps(fields | {"target_modules": targets}).encode())
    other = canonical_config(json.dumps(fields | {"target_modules": shuffled}, indent=2, ensure_ascii=False).encode())
    assert one == other == canonical_config(one)
    assert json.loads(one) == fields | {"target_modules": sorted(targets)}


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted(json.loads((PAYLOADS / "lora_qv" / "adapter_config.json").read_text()))),
        _values,
        max_size=4,
    )
)
def test_any_values_give_a_config_or_a_config_error(changes: dict[str, Any]) -> None:
    """No value of any field makes the reader raise anything but ConfigError."""
    try:
        parse_adapter_config(make_adapter().with_config(**changes).config_bytes)
    except ConfigError:
        return


def test_error_survives_pickling() -> None:
    """A ConfigError keeps its findings when it travels between processes."""
    with pytest.raises(ConfigError) as caught:
        parse_adapter_config(b"{}")
    assert pickle.loads(pickle.dumps(caught.value)).findings == caught.value.findings


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({"q_proj": 2}, 2),
        ({"roj": 2}, 1),
        ({"layers.1.self_attn.q_proj": 2}, 2),
        ({"^model.layers.1.self_attn.q_proj": 2}, 2),
        ({"^layers.1.self_attn.q_proj": 2}, 1),
        ({r"layers\.1\.self_attn\.q_proj$": 2}, 2),
        ({"v_proj": 3, "self_attn.q_proj": 4, "q_proj": 5}, 4),
        ({"q.proj": 6, "q_proj": 5}, 6),
        ({r"q\.proj": 6, "q_proj": 5}, 5),
        ({r".*\.q_proj": 7}, 7),
        ({r".*\.model.layers.1.self_attn.q_proj": 7}, 1),
        ({".*roj": 8}, 8),
    ],
)
def test_first_matching_pattern_counts(patterns: dict[str, int], expected: int) -> None:
    """As in PEFT, the first pattern that matches a dotted ending counts, and a bare dot stands for any
    character.
    """
    assert PatternTable(patterns, default=1).of("model.layers.1.self_attn.q_proj") == expected


@pytest.mark.parametrize(
    ("targets", "options", "module", "inside"),
    [
        (["q_proj"], {}, "model.layers.0.self_attn.q_proj", True),
        (["proj"], {}, "model.layers.0.self_attn.q_proj", False),
        (["q_proj"], {"excluded": ["layers.0.self_attn.q_proj"]}, "model.layers.0.self_attn.q_proj", False),
        (["q_proj"], {"layers": [1]}, "model.layers.0.self_attn.q_proj", False),
        (["q_proj"], {"layers": [1]}, "model.layers.1.self_attn.q_proj", True),
        (["q_proj"], {"layers": [1], "layer_parents": ["h"]}, "model.layers.1.self_attn.q_proj", False),
        (["lm_head"], {"layers": [1]}, "lm_head", True),
        (["q"], {"layers": [1]}, "model.q", False),
        (["w1"], {"layers": [0]}, "model.layers.1.experts.0.w1", False),
        (["w1"], {"layers": [1]}, "model.layers.1.experts.0.w1", True),
        (["q"], {"layers": [1], "layer_parents": ["model.layers"]}, "model.layers.1.q", True),
        (["q"], {"layers": [1]}, "layers.1.q", False),
        (["q"], {"layers": [1], "layer_parents": ["layers"]}, "layers.1.q", True),
        (["q"], {"saved": ["attn"]}, "model.attn.q", False),
        (["q"], {"saved": ["attn"]}, "model.self_attn.q", True),
    ],
)
def test_targets_are_selected_as_in_peft(
    targets: list[str], options: dict[str, list[Any]], module: str, inside: bool
) -> None:
    """Targets are dotted endings, exclusions win, and layer numbers limit all but names given in full."""
    assert (module in TargetNames(targets, **options)) is inside
