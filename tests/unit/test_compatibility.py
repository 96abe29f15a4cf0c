from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.adapters import (
    PAYLOADS,
    PREFIX,
    Adapter,
    codes_of,
    errors_of,
    header_of,
    llama_shapes,
    make_adapter,
    make_base,
    make_gpt2,
    make_mixture,
)

from lora_registry import compatibility
from lora_registry.adapter_config import ConfigError, parse_adapter_config
from lora_registry.all_codes import CODES
from lora_registry.base_profile import BaseProfile
from lora_registry.compatibility import check_compatibility
from lora_workers.linear_patterns import linear_time_patterns

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Q0 = f"{PREFIX}model.layers.0.self_attn.q_proj"


def test_fitting_adapters_have_no_findings() -> None:
    """An adapter on every projection of the base it was made for fits, without a warning."""
    assert make_adapter(targets=ALL).check() == []
    assert make_adapter(rank=1, targets=["lm_head"]).check() == []
    assert make_adapter(targets=["embed_tokens"], dtype="BF16").check() == []


@pytest.mark.parametrize(
    ("folder", "codes"),
    [
        ("lora_qv", []),
        ("all_linear", []),
        ("bias_all", []),
        ("dora", []),
        ("lora_bias", []),
        ("modules_to_save", []),
        ("no_task_type", []),
        ("rank_pattern", []),
        ("trainable_tokens", []),
        ("embed_target", ["EMBEDDING_COPY", "EMBEDDING_COPY"]),
        ("pissa", ["NEEDS_CHANGED_BASE"]),
        ("regex_target", []),
        ("layer_replication", []),
        (
            "target_params_moe",
            ["BASE_NAME_DIFFERS", "EXPERTS_UNSUPPORTED", "EXPERTS_UNSUPPORTED", "TARGETS_WITHOUT_TENSORS"],
        ),
    ],
)
def test_adapters_that_peft_wrote(folder: str, codes: list[str]) -> None:
    """What PEFT saves for the tiny base fits it; what it saved for another base does not."""
    raw = (PAYLOADS / folder / "adapter_config.json").read_bytes()
    patterns = linear_time_patterns()
    if folder == "regex_target" and patterns is None:
        pytest.skip("google-re2 is not installed")
    config = parse_adapter_config(raw, compile_pattern=patterns)
    header = header_of((PAYLOADS / folder / "adapter_model.safetensors").read_bytes())
    assert codes_of(check_compatibility(config, header, make_base())) == codes


@pytest.mark.parametrize(
    "change",
    [{"hidden": 64}, {"hidden": 16}, {"intermediate": 64}, {"intermediate": 24}, {"kv": 32}, {"kv": 8}],
)
def test_every_size_is_compared_in_both_directions(change: dict[str, int]) -> None:
    """An adapter from a base larger or smaller in any dimension is refused, and the shapes are shown."""
    other = make_base(llama_shapes(**change), name="acme/tiny-llama")
    findings = make_adapter(targets=ALL, base=other).check()
    assert set(errors_of(findings)) == {"SHAPE_MISMATCH"}
    assert all(finding.expected != finding.actual for finding in findings)


def test_shape_finding_names_tensor_and_shapes() -> None:
    """A shape that does not fit is told with the tensor's name, both shapes and what to do."""
    adapter = make_adapter(rank=8).with_tensors({f"{Q0}.lora_A.weight": (8, 64)})
    (finding,) = adapter.check()
    assert (finding.code, finding.subject) == ("SHAPE_MISMATCH", f"{Q0}.lora_A.weight")
    assert (finding.expected, finding.actual) == ("[8, 32]", "[8, 64]")
    assert finding.remedy


def test_vocabulary_is_compared() -> None:
    """An embedding's LoRA must have exactly the base's rows."""
    other = make_base(llama_shapes(vocab=72))
    assert errors_of(make_adapter(targets=["embed_tokens"], base=other).check()) == ["SHAPE_MISMATCH"]
    assert errors_of(make_adapter(targets=["lm_head"], base=other).check()) == ["SHAPE_MISMATCH"]


def test_rank_of_the_tensors_must_be_the_configured_one() -> None:
    """A rank that the configuration does not give would be scaled wrongly, so it is refused."""
    assert errors_of(make_adapter(rank=8, r=16).check()) == ["RANK_MISMATCH"] * 4
    assert errors_of(make_adapter(rank=8, r=16, rank_pattern={"q_proj": 8, "v_proj": 8}).check()) == []
    assert errors_of(make_adapter(rank=8, rank_pattern={"v_proj": 4}).check()) == ["RANK_MISMATCH"] * 2


def test_both_halves_must_have_one_rank() -> None:
    """Halves of different ranks cannot be multiplied."""
    adapter = make_adapter().with_tensors({f"{Q0}.lora_B.weight": (32, 4)})
    assert errors_of(adapter.check()) == ["RANK_HALVES_DIFFER"]


def test_scaling_variants_are_legal() -> None:
    """rsLoRA and alpha_pattern change the scale, not the structure."""
    assert make_adapter(use_rslora=True, alpha_pattern={"q_proj": 32}).check() == []


@pytest.mark.parametrize("half", ["lora_A.weight", "lora_B.weight"])
def test_missing_half_is_refused(half: str) -> None:
    """One half without the other is refused and the missing one is named."""
    (finding,) = make_adapter().without(f"layers.0.self_attn.q_proj.{half}").check()
    assert finding.code == "PAIR_INCOMPLETE"
    assert half.partition(".")[0] in finding.expected


@pytest.mark.parametrize("shape", [(8,), (8, 32, 1), ()])
def test_matrices_have_two_dimensions(shape: tuple[int, ...]) -> None:
    """A flattened or stacked matrix is refused."""
    assert errors_of(make_adapter().with_tensors({f"{Q0}.lora_A.weight": shape}).check()) == ["TENSOR_DIMENSIONS"]


@pytest.mark.parametrize("dtype", ["I8", "F8_E4M3", "BOOL", "C64"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    """Engines cast integers and bytes without a word; only floating-point weights pass."""
    assert set(errors_of(make_adapter(dtype=dtype).check())) == {"TENSOR_DTYPE"}


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("base_model.model.", "", "TENSOR_PREFIX_MISSING"),
        ("base_model.model.", "base_model.model.base_model.model.", "TENSOR_PREFIX_DOUBLED"),
        ("base_model.model.", "module.base_model.model.", "TENSOR_PREFIX_WRAPPER"),
        ("base_model.model.", "_orig_mod.base_model.model.", "TENSOR_PREFIX_WRAPPER"),
        ("base_model.model.", "base_model.model._orig_mod.", "TENSOR_PREFIX_WRAPPER"),
        ("base_model.model.", "base_model.model.module.", "TENSOR_PREFIX_WRAPPER"),
        ("self_attn.", "_checkpoint_wrapped_module.self_attn.", "TENSOR_PREFIX_WRAPPER"),
        ("lora_A.weight", "lora_A.default.weight", "TENSOR_ADAPTER_NAME"),
        ("lora_B.weight", "lora_B.mine.weight", "TENSOR_ADAPTER_NAME"),
        ("lora_A.weight", "lora_A", "TENSOR_UNRECOGNIZED"),
        ("lora_A.weight", "lora_C.weight", "TENSOR_UNRECOGNIZED"),
        ("model.layers", "language_model.layers", "MODULE_UNKNOWN"),
        ("layers.1.", "layers.7.", "LAYER_OUT_OF_RANGE"),
        ("layers.1.", "layers.999999999.", "LAYER_OUT_OF_RANGE"),
        ("layers.1.", "layers.-1.", "LAYER_OUT_OF_RANGE"),
    ],
)
def test_names_that_would_not_apply_are_refused(old: str, new: str, code: str) -> None:
    """Names that engines skip, so that the base model answers, are each refused with their own code."""
    assert code in errors_of(make_adapter().renamed(old, new).check())


def test_adapter_name_finding_says_the_right_name() -> None:
    """A tensor whose name still holds the adapter's name comes with the name it should have."""
    findings = make_adapter().renamed("lora_A.weight", "lora_A.default.weight").check()
    assert f"{Q0}.lora_A.weight" in {finding.expected for finding in findings}


def test_at_least_one_module_must_change() -> None:
    """An adapter of which nothing applies is refused, even if nothing else is wrong with it."""
    assert errors_of(Adapter(make_adapter().config, {}).check()) == ["NO_MODULE_APPLIED"]


def test_modules_that_are_not_targeted_are_refused() -> None:
    """A LoRA for a module that the configuration leaves out is refused: PEFT would drop it."""
    assert errors_of(make_adapter(target_modules=["q_proj"]).check()) == ["MODULE_NOT_TARGETED"] * 2
    assert errors_of(make_adapter(exclude_modules=["v_proj"]).check()) == ["MODULE_NOT_TARGETED"] * 2
    assert errors_of(make_adapter(layers_to_transform=[1]).check()) == ["MODULE_NOT_TARGETED"] * 2


def test_all_linear_leaves_the_head_out() -> None:
    """ "all-linear" takes every projection but the output head, as in PEFT."""
    assert make_adapter(targets=ALL, target_modules="all-linear").check() == []
    adapter = make_adapter(targets=[*ALL, "lm_head"], target_modules="all-linear")
    assert errors_of(adapter.check()) == ["MODULE_NOT_TARGETED"]


def test_targets_without_tensors_are_told() -> None:
    """Modules that are targeted and absent stay as in the base; that is a warning with their number."""
    (finding,) = make_adapter(targets=["q_proj"], target_modules=["q_proj", "v_proj"]).check()
    assert (finding.code, finding.severity) == ("TARGETS_WITHOUT_TENSORS", "warning")
    assert finding.actual.startswith("2 modules")


def test_conv1d_has_the_shapes_of_the_function() -> None:
    """On GPT-2, whose weights are stored transposed, A is [rank, in] and B is [out, rank] all the same."""
    base = make_gpt2()
    adapter = make_adapter(targets=["c_attn", "c_fc", "c_proj", "wte", "lm_head"], base=base)
    assert adapter.check(base) == []
    at = f"{PREFIX}transformer.h.0.attn.c_attn"
    swapped = adapter.with_tensors({f"{at}.lora_A.weight": (8, 96), f"{at}.lora_B.weight": (32, 8)})
    assert errors_of(swapped.check(base)) == ["SHAPE_MISMATCH", "SHAPE_MISMATCH"]


def test_embedding_and_linear_tensors_are_not_exchanged() -> None:
    """An embedding has its own pair of tensors, and a projection has not."""
    renamed = make_adapter(targets=["embed_tokens"]).renamed("lora_embedding_A", "lora_A.weight")
    assert errors_of(renamed.renamed("lora_embedding_B", "lora_B.weight").check()) == ["TENSOR_KIND"]
    extra = make_adapter().with_tensors({f"{Q0}.lora_embedding_A": (8, 32)})
    assert errors_of(extra.check()) == ["TENSOR_KIND"]


@pytest.mark.parametrize(
    ("config", "tail"), [({"use_dora": True}, "lora_magnitude_vector"), ({"lora_bias": True}, "lora_B.bias")]
)
def test_vectors_are_announced_whole_and_fit(config: dict[str, Any], tail: str) -> None:
    """DoRA's magnitudes and the biases of B are there exactly if announced, one number for each output."""
    plain = make_adapter(targets=["q_proj"])
    vectors = {name.replace("lora_B.weight", tail): (32,) for name in plain.shapes if "lora_B" in name}
    assert plain.with_config(**config).with_tensors(vectors).check() == []
    assert errors_of(plain.with_config(**config).check()) == ["TENSOR_MISSING"] * 2
    assert errors_of(plain.with_tensors(vectors).check()) == ["TENSOR_UNANNOUNCED"] * 2
    wrong = plain.with_config(**config).with_tensors(dict.fromkeys(vectors, (1, 32)))
    assert errors_of(wrong.check()) == ["SHAPE_MISMATCH"] * 2


@pytest.mark.parametrize(
    "parameter",
    [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.norm.weight",
        "model.layers.0.self_attn.q_proj.base_layer.weight",
        "lm_head.base_layer.weight",
    ],
)
def test_base_weights_are_not_replaced_unannounced(parameter: str) -> None:
    """A tensor with the name of one of the base's own parameters is refused unless it is announced."""
    adapter = make_adapter().with_tensors({PREFIX + parameter: (64, 32)})
    assert errors_of(adapter.check()) == ["TENSOR_UNANNOUNCED"]


@pytest.mark.parametrize(
    ("saved", "parameter", "shape", "codes"),
    [
        ("lm_head", "lm_head.weight", (64, 32), []),
        ("layers.0.input_layernorm", "model.layers.0.input_layernorm.weight", (32,), []),
        ("layernorm", "model.layers.0.input_layernorm.weight", (32,), ["SAVED_MODULE_WITHOUT_TENSORS"]),
        ("0.mlp.up_proj", "model.layers.0.mlp.up_proj.weight", (48, 32), []),
        ("0.mlp", "model.layers.0.mlp.up_proj.weight", (48, 32), ["SAVED_MODULE_WITHOUT_TENSORS"]),
        ("lm_head", "lm_head.weight", (72, 32), ["SHAPE_MISMATCH"]),
        ("lm_head", "lm_head.weight", (32, 64), ["SHAPE_MISMATCH"]),
        ("0.norm", "model.embed_tokens.weight", (64, 32), ["TENSOR_UNANNOUNCED"]),
        ("score", "score.weight", (2, 32), ["MODULE_UNKNOWN"]),
        ("0.norm", "lm_head.bias", (64,), ["MODULE_UNKNOWN"]),
        ("5.norm", "model.layers.5.input_layernorm.weight", (32,), ["LAYER_OUT_OF_RANGE"]),
        ("5.norm", "lm_head.modules_to_save.default.weight", (64, 32), ["TENSOR_ADAPTER_NAME"]),
    ],
)
def test_saved_modules_are_announced_and_fit(
    saved: str, parameter: str, shape: tuple[int, ...], codes: list[str]
) -> None:
    """Whole modules are accepted if modules_to_save names them (PEFT asks for no dot) and the shapes are
    equal.
    """
    adapter = make_adapter(modules_to_save=[saved]).with_tensors({PREFIX + parameter: shape})
    assert errors_of(adapter.check()) == codes


def test_saved_module_of_conv1d_is_as_stored() -> None:
    """A saved module keeps the stored orientation of its weight, which is the transposed one in GPT-2."""
    base = make_gpt2()
    adapter = make_adapter(targets=["c_fc"], base=base, modules_to_save=["c_attn"])
    saved: dict[str, tuple[int, ...]] = {}
    for layer in range(2):
        at = f"{PREFIX}transformer.h.{layer}.attn.c_attn"
        saved |= {f"{at}.weight": (32, 96), f"{at}.bias": (96,)}
    assert adapter.with_tensors(saved).check(base) == []


def test_saved_module_without_tensors_is_told() -> None:
    """A name in modules_to_save for which nothing was saved is an error, if the base has such a module."""
    assert codes_of(make_adapter(modules_to_save=["lm_head"]).check()) == ["SAVED_MODULE_WITHOUT_TENSORS"]
    assert codes_of(make_adapter(modules_to_save=["classifier", "score"]).check()) == []


def test_trained_biases_are_announced() -> None:
    """The base's biases may be replaced only if the field bias says so, under the one name that PEFT looks for."""
    base, plain, wrapped = make_gpt2(), "c_attn.bias", "c_attn.base_layer.bias"
    for targets, bias, name, codes in (
        (["c_attn"], "all", wrapped, []),
        (["c_attn"], "lora_only", wrapped, []),
        (["c_fc"], "all", plain, []),
        (["c_attn"], "all", plain, ["TENSOR_WITHOUT_EFFECT"]),
        (["c_fc"], "all", wrapped, ["TENSOR_WITHOUT_EFFECT"]),
        (["c_fc"], "lora_only", plain, ["TENSOR_UNANNOUNCED"]),
        (["c_attn"], "none", wrapped, ["TENSOR_UNANNOUNCED"]),
    ):
        adapter = make_adapter(targets=targets, base=base, bias=bias)
        assert errors_of(adapter.with_tensors({f"{PREFIX}transformer.h.0.attn.{name}": (96,)}).check(base)) == codes


TOKENS = f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"


@pytest.mark.parametrize(
    ("indices", "shapes", "codes"),
    [
        ([60, 61], {TOKENS: (2, 32)}, []),
        ({"embed_tokens": [60, 61]}, {TOKENS: (2, 32)}, []),
        ([60], {TOKENS: (2, 32)}, ["SHAPE_MISMATCH"]),
        ([60, 64], {TOKENS: (2, 32)}, ["TOKEN_INDEX_OUT_OF_RANGE"]),
        ([60, 61], {}, ["TENSOR_MISSING"]),
        (None, {TOKENS: (2, 32)}, ["TENSOR_UNANNOUNCED"]),
        ({"lm_head": [60, 61]}, {TOKENS: (2, 32)}, ["TENSOR_UNANNOUNCED", "TENSOR_MISSING"]),
        (
            [60, 61],
            {TOKENS.replace("model.embed", "other.embed"): (2, 32)},
            ["MODULE_UNKNOWN", "TENSOR_MISSING"],
        ),
    ],
)
def test_trained_tokens(indices: object, shapes: dict[str, tuple[int, ...]], codes: list[str]) -> None:
    """Trained rows are announced, as many as there are indices, and every index is a row of the base."""
    assert errors_of(make_adapter(trainable_token_indices=indices).with_tensors(shapes).check()) == codes


EXPERTS = f"{PREFIX}model.layers.0.mlp.experts"


def test_stacked_experts_have_the_rank_of_all() -> None:
    """LoRA on a stack of experts has rank × experts rows, and the depth of the name tells the parameter."""
    base = make_mixture()
    both = ["experts.gate_up_proj", "experts.down_proj"]
    adapter = Adapter(
        make_adapter(target_parameters=both, target_modules=[], rank_pattern={"gate_up_proj": 4}).config,
        {
            f"{EXPERTS}.base_layer.lora_A.weight": (12, 32),
            f"{EXPERTS}.base_layer.lora_B.weight": (96, 12),
            f"{EXPERTS}.lora_A.weight": (24, 48),
            f"{EXPERTS}.lora_B.weight": (32, 24),
        },
    )
    assert codes_of(adapter.check(base)) == ["TARGETS_WITHOUT_TENSORS"]
    assert errors_of(adapter.with_tensors({f"{EXPERTS}.lora_A.weight": (8, 48)}).check(base)) == ["RANK_HALVES_DIFFER"]
    assert errors_of(adapter.with_config(rank_pattern={}).check(base)) == ["RANK_MISMATCH"]
    one = adapter.with_config(target_parameters=both[:1])
    assert set(errors_of(one.check(base))) == {"SHAPE_MISMATCH", "MODULE_NOT_TARGETED", "RANK_MISMATCH"}
    assert "MODULE_NOT_TARGETED" in errors_of(
        adapter.with_config(target_parameters=[], target_modules=["q_proj"]).check(base)
    )
    for changes in ({"use_dora": True}, {"lora_bias": True}, {"fan_in_fan_out": True}, {"lora_dropout": 0.1}):
        assert "CONFIG_FIELD_INVALID" in errors_of(adapter.with_config(**changes).check(base))


def test_single_experts_keep_their_old_names() -> None:
    """An adapter that was trained when experts were modules fits under the names of the files."""
    base = make_mixture()
    names = ("gate_proj", "up_proj", "down_proj")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in base.disk_modules.items():
        shapes[f"{PREFIX}{name}.lora_A.weight"] = (8, module.in_features)
        shapes[f"{PREFIX}{name}.lora_B.weight"] = (module.out_features, 8)
    adapter = Adapter(make_adapter(target_modules=names).config, shapes)
    assert len(shapes) == 2 * 2 * 3 * 3
    assert errors_of(adapter.check(base)) == []
    assert errors_of(adapter.with_config(target_modules=["up_proj"]).check(base)) == ["EXPERTS_HALF_FUSED"]


def test_parameters_that_cannot_be_wrapped_are_refused() -> None:
    """A vector, and a matrix whose module has a LoRA already, cannot be targeted as parameters."""
    vector = make_adapter(target_parameters=["input_layernorm.weight"])
    assert set(errors_of(vector.check())) == {"TARGET_PARAMETER_INVALID"}
    twice = make_adapter(target_parameters=["q_proj.weight"])
    assert set(errors_of(twice.check())) == {"TARGET_PARAMETER_INVALID"}
    matrix = make_adapter(target_parameters=["q_proj.weight", "v_proj.weight"], target_modules=[])
    assert errors_of(matrix.check()) == []


@pytest.mark.parametrize("change", [{"alora_invocation_tokens": [1]}, {"lora_dropout": 0.1}, {"lora_dropout": -0.1}])
def test_fields_that_peft_refuses_beside_parameters_are_refused(change: dict[str, Any]) -> None:
    """PEFT has no activated LoRA and no dropout for parameters; beside one that matches nothing they do no harm."""
    matrix = make_adapter(target_parameters=["q_proj.weight", "v_proj.weight"], target_modules=[])
    assert errors_of(matrix.with_config(**change).check()) == ["CONFIG_FIELD_INVALID"]
    assert errors_of(make_adapter(target_parameters=["x.weight"]).with_config(**change).check()) == []


def test_an_activated_lora_on_an_embedding_is_refused() -> None:
    """PEFT has none for embeddings; on projections it is fine."""
    tokens = {"alora_invocation_tokens": [1, 2]}
    assert errors_of(make_adapter(targets=("embed_tokens",)).with_config(**tokens).check()) == ["CONFIG_FIELD_INVALID"]
    assert errors_of(make_adapter().with_config(**tokens).check()) == []


@pytest.mark.parametrize("named", ["olora", "OLoRA", "pissa_niter_4", "loftq"])
def test_initialisations_that_changed_the_base_are_told(named: str) -> None:
    """However the name is written that PEFT reads, the base was changed with it."""
    adapter = make_adapter(init_lora_weights=named, loftq_config={"loftq_bits": 4})
    assert codes_of(adapter.check()) == ["NEEDS_CHANGED_BASE"]


def test_targets_that_peft_cannot_wrap_are_refused() -> None:
    """A target that is a norm or a whole block makes PEFT refuse the adapter."""
    for target in ("input_layernorm", "self_attn"):
        assert errors_of(make_adapter(target_modules=["q_proj", "v_proj", target]).check()) == [
            "TARGET_NOT_A_PROJECTION"
        ]


@pytest.mark.parametrize("named", ["olora", "pissa", "pissa_niter_4", "corda", "orthogonal", "lora_ga", "mica"])
def test_initialisations_that_peft_cannot_repeat_are_refused(named: str) -> None:
    """PEFT initialises before it loads: for stacked experts, which have no weight of their own, it fails."""
    mixture = make_mixture()
    parameter = next(iter(mixture.experts)).rpartition(".")[2]
    plain = make_adapter(init_lora_weights=named)
    assert errors_of(plain.check()) == (["CONFIG_FIELD_INVALID"] if named == "corda" else [])
    experts = make_adapter(base=mixture, init_lora_weights=named, target_parameters=[parameter])
    assert "CONFIG_FIELD_INVALID" in errors_of(experts.check(mixture))
    assert "CONFIG_FIELD_INVALID" not in errors_of(
        make_adapter(base=mixture, init_lora_weights="gaussian", target_parameters=[parameter]).check(mixture)
    )


def test_initialisations_that_do_not_go_with_other_options_are_refused() -> None:
    """OLoRA on a Conv1D gets halves of the wrong shape from PEFT, and MiCA does not go with DoRA."""
    gpt2 = make_gpt2()
    turned = make_adapter(base=gpt2, targets=("c_attn",), fan_in_fan_out=True, init_lora_weights="olora")
    assert errors_of(turned.check(gpt2)) == ["CONFIG_FIELD_INVALID"]
    assert "CONFIG_FIELD_INVALID" in errors_of(make_adapter(use_dora=True, init_lora_weights="mica").check())


def test_what_is_kept_of_a_base_is_not_mistaken_for_anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bases judged in turn, one deeper and one with other norms, more than are kept: each has its own containers."""
    monkeypatch.setattr(compatibility, "_MOST_CONTAINERS", 2)
    bases = [make_base(), make_base(llama_shapes(layers=4), num_hidden_layers=4)]
    renamed = {name.replace("input_layernorm", "first_norm"): shape for name, shape in bases[0].parameters.items()}
    bases.append(bases[0].model_copy(update={"parameters": renamed}))
    for _ in range(2):
        for base, norm in zip(bases, ("input_layernorm", "input_layernorm", "first_norm"), strict=True):
            for target in ("input_layernorm", "first_norm", "layers.3.self_attn"):
                adapter = make_adapter(target_modules=["q_proj", "v_proj", target], base=base)
                wrong = target == norm or (target.startswith("layers") and base.num_layers == 4)
                assert errors_of(adapter.check(base)) == ["TARGET_NOT_A_PROJECTION"] * wrong


@pytest.mark.parametrize(
    ("ranges", "codes"),
    [
        ([[0, 2], [0, 2]], ["LAYER_OUT_OF_RANGE"]),
        ([[0, 3]], ["LAYER_REPLICATION_INVALID"]),
        ([[0, 2]] * 100_000, ["CONFIG_FIELD_INVALID"]),
        ([[0, 2]] * 1000, ["LAYER_REPLICATION_INVALID"]),
        ([[1, 2]], ["LAYER_OUT_OF_RANGE"]),
    ],
)
def test_replicated_layers_are_those_of_the_base(ranges: list[list[int]], codes: list[str]) -> None:
    """Layers are numbered in the deeper model, and come from layers that the base has."""
    adapter = make_adapter(layer_replication=ranges)
    if codes == ["LAYER_OUT_OF_RANGE"]:
        adapter = adapter.renamed("layers.1.", "layers.5.")
    try:
        assert set(errors_of(adapter.check())) == set(codes)
    except ConfigError as error:
        assert [finding.code for finding in error.findings] == codes  # noqa: PT017 - one of two ways to refuse


def test_quantised_base_is_judged_by_its_unpacked_shapes() -> None:
    """A profile of a quantised base has the shapes of the plain one."""
    base = make_base().model_copy(update={"quantization": "gptq"})
    assert errors_of(make_adapter().check(base)) == []


@pytest.mark.parametrize(
    ("declared", "codes"),
    [
        ("acme/tiny-llama", []),
        ("acme/tiny-llama-hub", []),
        ("/models/tiny", []),
        ("acme/tiny-mistral", ["BASE_NAME_DIFFERS"]),
        (None, ["BASE_NAME_ABSENT"]),
        ("", ["BASE_NAME_ABSENT"]),
    ],
)
def test_declared_base_is_compared(declared: str | None, codes: list[str]) -> None:
    """Another declared base is a warning: families with equal shapes can be told apart by name only."""
    update = {"source": "hf://acme/tiny-llama-hub@0123", "also_known_as": ("/models/tiny",)}
    base = make_base().model_copy(update=update)
    findings = make_adapter(base_model_name_or_path=declared).check(base)
    assert codes_of(findings) == codes
    assert errors_of(findings) == []


def test_odd_scales_and_fields_are_told() -> None:
    """A scale of zero, a negative one, and fields that nobody judged are warnings."""
    findings = make_adapter(lora_alpha=0, alpha_pattern={"q_proj": -1}, shiny=True).check()
    assert codes_of(findings) == ["ALPHA_NOT_POSITIVE", "ALPHA_NOT_POSITIVE", "CONFIG_FIELD_UNKNOWN"]
    assert errors_of(findings) == []


def test_findings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with very many faults gives a bounded list that says so."""
    monkeypatch.setattr(compatibility, "MAX_FINDINGS", 3)
    assert codes_of(make_adapter(targets=ALL, r=4).check()) == ["RANK_MISMATCH"] * 3 + ["TOO_MANY_FINDINGS"]
    names: dict[str, tuple[int, ...]] = {f"x{n}": (1,) for n in range(9)}
    assert codes_of(Adapter(make_adapter().config, names).check())[-1] == "TOO_MANY_FINDINGS"


_SEGMENTS = [
    "base_model",
    "model",
    "layers",
    "0",
    "1",
    "9",
    "self_attn",
    "q_proj",
    "lora_A",
    "lora_B",
    "weight",
    "bias",
    "default",
    "lm_head",
    "embed_tokens",
    "base_layer",
    "lora_embedding_A",
    "modules_to_save",
    "token_adapter",
    "trainable_tokens_delta",
    "lora_magnitude_vector",
    "_orig_mod",
    "experts",
    "norm",
]
_names = st.lists(st.sampled_from(_SEGMENTS), min_size=1, max_size=8).map(".".join)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(_names, _names.map(PREFIX.__add__), _names.map(f"{PREFIX}model.layers.0.".__add__)),
    st.sampled_from([(32,), (8, 32), (64, 32), (32, 8)]),
)
def test_no_further_tensor_slips_in(name: str, shape: tuple[int, ...]) -> None:
    """Any tensor added to a complete adapter, whatever its name, is refused, with a listed code."""
    adapter = make_adapter(targets=["q_proj"], base=TINY)
    if name in adapter.shapes:
        return
    findings = adapter.with_tensors({name: shape}).check(TINY)
    assert errors_of(findings), name
    assert set(codes_of(findings)) <= CODES.keys()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_other_shape_slips_in(data: st.DataObject) -> None:
    """Changing the shape of any one tensor of a fitting adapter always gets it refused."""
    adapter = make_adapter(targets=("q_proj", "k_proj", "embed_tokens"), base=TINY)
    name = data.draw(st.sampled_from(sorted(adapter.shapes)))
    shape = tuple(data.draw(st.lists(st.integers(1, 70), max_size=3)))
    if shape != adapter.shapes[name]:
        assert errors_of(adapter.with_tensors({name: shape}).check(TINY))


TINY: BaseProfile = make_base()


def test_a_copy_of_the_embedding_is_refused_with_the_way_to_leave_it_out() -> None:
    """A whole embedding that nothing announces is refused; the remedy names the argument that leaves it out."""
    shapes = {f"{PREFIX}model.embed_tokens.weight": (64, 32), f"{PREFIX}model.norm.weight": (32,)}
    findings = [
        each for each in make_adapter().with_tensors(shapes).check(make_base()) if each.code == "TENSOR_UNANNOUNCED"
    ]
    assert ["save_embedding_layers=False" in each.remedy for each in findings] == [True, False]


def test_initialisations_that_change_the_base_are_known_however_they_are_written() -> None:
    """PEFT takes OLoRA in capitals too; the warning that the base must be changed alike comes all the same."""
    for name in ("olora", "OLoRA"):
        codes = [each.code for each in make_adapter().with_config(init_lora_weights=name).check()]
        assert codes == ["NEEDS_CHANGED_BASE"]
