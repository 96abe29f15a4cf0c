"""The broken and hostile variants: a valid adapter each, what spoils it, and the codes with which it is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.corpus.spoiling import (
    CONFIG,
    PREFIX,
    Q0,
    WEIGHTS,
    Spoil,
    added,
    both,
    folder,
    linked_to,
    moved_weights,
    pipe,
    renamed,
    with_config,
    with_config_bytes,
    with_config_text,
    with_header,
    with_raw_header,
    with_tensors,
    with_weights,
    without,
    without_field,
    without_file,
)


@dataclass(frozen=True)
class Broken:
    """One adapter that must be refused.

    Attributes:
        name: unique name of the case.
        valid: name of the valid variant that it is made from.
        codes: codes that must be among its errors.
        spoil: changes a copy of the valid variant's directory.
        base: base that it is registered for, "" for the one that it was made for.
    """

    name: str
    valid: str
    codes: tuple[str, ...]
    spoil: Spoil
    base: str = ""


def _wrong_bases() -> Iterator[Broken]:
    same: Spoil = lambda directory: None  # noqa: E731 - the one case that spoils nothing
    for base in ("wide", "narrow", "fat", "lean", "one-kv", "all-kv"):
        yield Broken(f"base-llama-{base}", "llama-dense", ("SHAPE_MISMATCH",), same, f"llama-{base}")
    yield Broken("base-llama-words", "llama-head", ("SHAPE_MISMATCH",), same, "llama-words")
    yield Broken("base-llama-words-embedding", "llama-embedding", ("SHAPE_MISMATCH",), same, "llama-words")
    yield Broken("base-llama-words-saved", "llama-saved-both", ("SHAPE_MISMATCH",), same, "llama-words")
    for base, code in (
        ("gpt2", "MODULE_UNKNOWN"),
        ("opt", "MODULE_UNKNOWN"),
        ("phi3", "MODULE_UNKNOWN"),
        ("gpt-neox", "NO_MODULE_APPLIED"),
        ("qwen3", "SHAPE_MISMATCH"),
        ("mixtral", "MODULE_UNKNOWN"),
        ("llava", "MODULE_UNKNOWN"),
        ("bert", "NO_MODULE_APPLIED"),
    ):
        yield Broken(f"base-{base}", "llama-dense", (code,), same, base)
    yield Broken("base-classifier", "classifier-task", ("MODULE_UNKNOWN",), same, "llama")
    yield Broken("base-for-tied", "llama-tied-tying-saved", ("TENSOR_UNANNOUNCED",), same, "llama")
    yield Broken("base-mixtures-exchanged", "mixtral-parameters", ("SHAPE_MISMATCH",), same, "qwen3-moe")


_NAMES = (
    ("no-prefix", PREFIX, "", "TENSOR_PREFIX_MISSING"),
    ("half-prefix", PREFIX, "base_model.", "MODULE_UNKNOWN"),
    ("double-prefix", PREFIX, PREFIX * 2, "TENSOR_PREFIX_DOUBLED"),
    ("ddp", PREFIX, f"module.{PREFIX}", "TENSOR_PREFIX_WRAPPER"),
    ("compiled", PREFIX, f"_orig_mod.{PREFIX}", "TENSOR_PREFIX_WRAPPER"),
    ("compiled-inner", PREFIX, f"{PREFIX}_orig_mod.", "TENSOR_PREFIX_WRAPPER"),
    ("fsdp", "self_attn.", "_fsdp_wrapped_module.self_attn.", "TENSOR_PREFIX_WRAPPER"),
    ("adapter-name", "lora_A.weight", "lora_A.default.weight", "TENSOR_ADAPTER_NAME"),
    ("other-adapter-name", "lora_B.weight", "lora_B.mine.weight", "TENSOR_ADAPTER_NAME"),
    ("third-matrix", "lora_A.weight", "lora_C.weight", "TENSOR_UNRECOGNIZED"),
    ("no-weight", "lora_A.weight", "lora_A", "TENSOR_UNRECOGNIZED"),
    ("composite", "model.layers", "language_model.model.layers", "MODULE_UNKNOWN"),
    ("other-projection", "q_proj", "query", "MODULE_UNKNOWN"),
    ("layer-9", "layers.1.", "layers.9.", "LAYER_OUT_OF_RANGE"),
    ("layer-999999999", "layers.1.", "layers.999999999.", "LAYER_OUT_OF_RANGE"),
    ("layer-minus-1", "layers.1.", "layers.-1.", "LAYER_OUT_OF_RANGE"),
    ("layer-leading-zero", "layers.1.", "layers.01.", "LAYER_OUT_OF_RANGE"),
    ("path", "layers.1.", "layers..1.", "TENSOR_NAME_INVALID"),
    ("slash", "layers.1.", "layers/1.", "TENSOR_NAME_INVALID"),
    ("newline", "q_proj", "q_proj\\n", "TENSOR_NAME_INVALID"),
    ("letters", "q_proj", "q_prοj", "TENSOR_NAME_INVALID"),
    ("embedding-pair", "lora_A.weight", "lora_embedding_A", "TENSOR_KIND"),
)


def _names() -> Iterator[Broken]:
    for name, old, new, code in _NAMES:
        yield Broken(f"name-{name}", "llama-q-v", (code,), renamed(old, new))


_TENSORS = (
    ("one-half-a", "llama-q-v", "PAIR_INCOMPLETE", without("layers.0.self_attn.q_proj.lora_A.weight")),
    ("one-half-b", "llama-q-v", "PAIR_INCOMPLETE", without("layers.0.self_attn.q_proj.lora_B.weight")),
    ("none", "llama-q-v", "NO_MODULE_APPLIED", with_tensors(lambda tensors: {})),
    ("halves-differ", "llama-q-v", "RANK_HALVES_DIFFER", added(f"{Q0}.lora_B.weight", 32, 2)),
    ("swapped", "llama-q-v", "SHAPE_MISMATCH", added(f"{Q0}.lora_A.weight", 32, 4)),
    ("flat", "llama-q-v", "TENSOR_DIMENSIONS", added(f"{Q0}.lora_A.weight", 128)),
    ("stacked", "llama-q-v", "TENSOR_DIMENSIONS", added(f"{Q0}.lora_A.weight", 1, 4, 32)),
    ("int8", "llama-q-v", "TENSOR_DTYPE", added(f"{Q0}.lora_A.weight", 4, 32, dtype="I8", width=1)),
    ("fp8", "llama-q-v", "TENSOR_DTYPE", added(f"{Q0}.lora_A.weight", 4, 32, dtype="F8_E4M3", width=1)),
    ("empty", "llama-q-v", "TENSOR_EMPTY", added(f"{Q0}.lora_A.weight", 0, 32)),
    ("overwrites-head", "llama-q-v", "TENSOR_UNANNOUNCED", added(f"{PREFIX}lm_head.weight", 96, 32)),
    ("overwrites-rows", "llama-q-v", "TENSOR_UNANNOUNCED", added(f"{PREFIX}model.embed_tokens.weight", 96, 32)),
    ("overwrites-norm", "llama-q-v", "TENSOR_UNANNOUNCED", added(f"{PREFIX}model.norm.weight", 32)),
    ("overwrites-layer", "llama-q-v", "TENSOR_UNANNOUNCED", added(f"{Q0}.base_layer.weight", 32, 32)),
    ("overwrites-expert", "mixtral-attention", "TENSOR_UNANNOUNCED",
     added(f"{PREFIX}model.layers.0.mlp.experts.down_proj", 3, 32, 48)),
    ("bias-unannounced", "qwen2-all-linear", "TENSOR_UNANNOUNCED", added(f"{Q0}.base_layer.bias", 32)),
    ("bias-elsewhere", "qwen2-bias-lora-only", "TENSOR_UNANNOUNCED",
     added(f"{PREFIX}model.layers.0.self_attn.k_proj.bias", 16)),
    ("bias-old-name", "qwen2-bias-all", "TENSOR_WITHOUT_EFFECT",
     renamed("q_proj.base_layer.bias", "q_proj.bias")),
    ("bias-of-parameter-old-name", "gpt2-parameters-bias-all", "TENSOR_WITHOUT_EFFECT",
     renamed("c_attn.base_layer.bias", "c_attn.bias")),
    ("bias-of-head-unannounced", "phi-head", "TENSOR_UNANNOUNCED",
     renamed("lm_head.base_layer.bias", "lm_head.bias")),
    ("bias-of-head-length", "phi-head", "SHAPE_MISMATCH", added(f"{PREFIX}lm_head.base_layer.bias", 95)),
    ("bias-length", "qwen2-bias-all", "SHAPE_MISMATCH", added(f"{Q0}.base_layer.bias", 16)),
    ("magnitude-unannounced", "llama-q-v", "TENSOR_UNANNOUNCED", added(f"{Q0}.lora_magnitude_vector", 32)),
    ("magnitude-missing", "llama-dora", "TENSOR_MISSING", without("0.self_attn.q_proj.lora_magnitude_vector")),
    ("magnitude-length", "llama-dora", "SHAPE_MISMATCH", added(f"{Q0}.lora_magnitude_vector", 16)),
    ("magnitude-row", "llama-dora", "SHAPE_MISMATCH", added(f"{Q0}.lora_magnitude_vector", 1, 32)),
    ("magnitude-of-conv1d", "gpt2-dora", "SHAPE_MISMATCH",
     added(f"{PREFIX}transformer.h.0.attn.c_attn.lora_magnitude_vector", 32)),
    ("lora-bias-missing", "llama-lora-bias", "TENSOR_MISSING", without("layers.0.self_attn.q_proj.lora_B.bias")),
    ("lora-bias-unannounced", "llama-q-v", "TENSOR_UNANNOUNCED", added(f"{Q0}.lora_B.bias", 32)),
    ("saved-missing", "llama-saved-head", "SAVED_MODULE_WITHOUT_TENSORS", without("lm_head.weight")),
    ("saved-in-part", "llama-saved-block", "SAVED_MODULE_WITHOUT_TENSORS", without("up_proj.weight")),
    ("saved-rows", "llama-saved-head", "SHAPE_MISMATCH", added(f"{PREFIX}lm_head.weight", 97, 32)),
    ("saved-adapter-name", "llama-saved-head", "TENSOR_ADAPTER_NAME",
     renamed("lm_head.weight", "lm_head.modules_to_save.default.weight")),
    ("score-missing", "classifier-task", "SAVED_MODULE_WITHOUT_TENSORS", without("score.weight")),
    ("score-labels", "classifier-task", "SHAPE_MISMATCH", added(f"{PREFIX}score.weight", 5, 32)),
    ("tokens-missing", "llama-tokens", "TENSOR_MISSING", without("trainable_tokens_delta")),
    ("tokens-rows", "llama-tokens", "SHAPE_MISMATCH",
     added(f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta", 2, 32)),
    ("embedding-rows", "llama-embedding", "SHAPE_MISMATCH",
     added(f"{PREFIX}model.embed_tokens.lora_embedding_A", 4, 97)),
    ("embedding-as-linear", "llama-embedding", "TENSOR_KIND", both(
        renamed("lora_embedding_A", "lora_A.weight"), renamed("lora_embedding_B", "lora_B.weight"))),
    ("conv1d-swapped", "gpt2-conv1d", "SHAPE_MISMATCH",
     added(f"{PREFIX}transformer.h.0.attn.c_attn.lora_A.weight", 4, 96)),
    ("experts-plain-rank", "mixtral-parameters", "RANK_HALVES_DIFFER",
     added(f"{PREFIX}model.layers.0.mlp.experts.lora_A.weight", 4, 48)),
    ("experts-exchanged", "mixtral-parameters", "SHAPE_MISMATCH", both(
        renamed("experts.base_layer.lora_", "experts.inner.lora_"),
        renamed("experts.lora_", "experts.base_layer.lora_"),
        renamed("experts.inner.lora_", "experts.lora_"))),
    ("experts-too-deep", "mixtral-parameters", "MODULE_NOT_TARGETED",
     renamed("experts.base_layer.lora_", "experts.base_layer.base_layer.lora_")),
    ("copy-without-target", "llama-q-v", "TENSOR_UNANNOUNCED", added(f"{PREFIX}lm_head.base_layer.weight", 96, 32)),
    ("free-text", "llama-q-v", "TENSOR_UNRECOGNIZED", added(f"{PREFIX}x", 1)),
    ("original-module", "llama-saved-head", "TENSOR_ADAPTER_NAME",
     added(f"{PREFIX}lm_head.original_module.bias", 96)),
)  # fmt: skip


def _tensors() -> Iterator[Broken]:
    for name, valid, code, spoil in _TENSORS:
        yield Broken(f"tensor-{name}", valid, (code,), spoil)


_BACKTRACKING = "([a-z._0-9]|[a-z._0-9]{2}|[a-z._0-9]{3})+[!?]"


invalid = "CONFIG_FIELD_INVALID"
_CONFIGS = (
    ("rank-doubled", "RANK_MISMATCH", {"r": 8}),
    ("rank-zero", invalid, {"r": 0}),
    ("rank-negative", invalid, {"r": -4}),
    ("rank-text", invalid, {"r": "4"}),
    ("rank-fraction", invalid, {"r": 4.5}),
    ("rank-true", invalid, {"r": True}),
    ("rank-huge", "RANK_MISMATCH", {"r": 2**62}),
    ("rank-pattern-wrong", "RANK_MISMATCH", {"rank_pattern": {"q_proj": 2}}),
    ("rank-pattern-zero", invalid, {"rank_pattern": {"q_proj": 0}}),
    ("rank-pattern-hangs-re", "PATTERN_HAZARDOUS", {"rank_pattern": {"(a+)+$": 4}}),
    ("rank-pattern-hangs-regex", "PATTERN_HAZARDOUS", {"rank_pattern": {_BACKTRACKING: 4}}),
    ("alpha-pattern-hangs", "PATTERN_HAZARDOUS", {"alpha_pattern": {_BACKTRACKING: 4}}),
    ("targets-hang", "PATTERN_HAZARDOUS", {"target_modules": _BACKTRACKING}),
    ("targets-many-repeats", "PATTERN_HAZARDOUS", {"target_modules": ".*" * 12 + "!"}),
    ("excluded-hang", "PATTERN_HAZARDOUS", {"exclude_modules": _BACKTRACKING}),
    ("targets-back-reference", "PATTERN_NOT_LITERAL", {"target_modules": r"(.*)\1"}),
    ("targets-not-ahead", "MODULE_NOT_TARGETED", {"target_modules": r"(?!.*layers\.1)(?!.*v_).*(q|v)_proj"}),
    ("targets-not-ahead-of-half", "PATTERN_NOT_LITERAL", {"target_modules": r"(?!.*visual).*q_proj|.*v_proj"}),
    ("targets-not-ahead-without-end", "PATTERN_NOT_LITERAL", {"target_modules": r"(?!.*visual.*(q|v)_proj"}),
    ("targets-not-ahead-endless", "PATTERN_NOT_LITERAL", {"target_modules": "(?!x)" * 800 + "q_proj"}),
    ("targets-not-ahead-later", "PATTERN_NOT_LITERAL", {"target_modules": r"model(?!.*lm_head).*(q|v)_proj"}),
    ("targets-look-ahead", "PATTERN_NOT_LITERAL", {"target_modules": "(?=.*q)x"}),
    ("targets-not-an-expression", "PATTERN_NOT_LITERAL", {"target_modules": "(q_proj"}),
    ("saved-pattern-hangs", invalid, {"modules_to_save": [_BACKTRACKING]}),
    ("alpha-text", invalid, {"lora_alpha": "8"}),
    ("kind-ia3", "PEFT_TYPE_UNSUPPORTED", {"peft_type": "IA3"}),
    ("kind-lower-case", "PEFT_TYPE_UNSUPPORTED", {"peft_type": "lora"}),
    ("kind-unknown", "PEFT_TYPE_UNSUPPORTED", {"peft_type": "SUPERLORA9000"}),
    ("kind-absent", "PEFT_TYPE_UNSUPPORTED", {"peft_type": None}),
    ("init-corda", invalid, {"init_lora_weights": "corda"}),
    ("task-unknown", invalid, {"task_type": "MAGIC"}),
    ("megatron", "CONFIG_FOREIGN_IMPORT", {"megatron_config": {"x": 1}, "megatron_core": "os"}),
    ("import", "CONFIG_FOREIGN_IMPORT", {"auto_mapping": {"parent_library": "os", "base_model_class": "system"}}),
    ("targets-fewer", "MODULE_NOT_TARGETED", {"target_modules": ["q_proj"]}),
    ("targets-elsewhere", "MODULE_NOT_TARGETED", {"target_modules": ["k_proj"]}),
    ("targets-text", "MODULE_NOT_TARGETED", {"target_modules": "q_proj"}),
    ("targets-none", "CONFIG_FIELD_MISSING", {"target_modules": None}),
    ("targets-block", "TARGET_NOT_A_PROJECTION", {"target_modules": ["q_proj", "v_proj", "self_attn"]}),
    ("targets-activation", "TARGET_NOT_A_PROJECTION", {"target_modules": ["q_proj", "v_proj", "act_fn"]}),
    ("targets-norm", "TARGET_NOT_A_PROJECTION", {"target_modules": ["q_proj", "v_proj", "norm"]}),
    ("excluded", "MODULE_NOT_TARGETED", {"exclude_modules": ["v_proj"]}),
    ("layers", "MODULE_NOT_TARGETED", {"layers_to_transform": [0]}),
    ("layers-negative", invalid, {"layers_to_transform": [-1]}),
    ("layers-parent-alone", invalid, {"layers_pattern": ["layers"]}),
    ("layers-and-text", invalid, {"target_modules": "all-linear", "layers_to_transform": [0]}),
    ("replication-beyond", "LAYER_REPLICATION_INVALID", {"layer_replication": [[0, 3]]}),
    ("replication-endless", invalid, {"layer_replication": [[0, 2]] * 100_000}),
    ("replication-long", "LAYER_REPLICATION_INVALID", {"layer_replication": [[0, 10**15]]}),
    ("replication-nothing", "NO_MODULE_APPLIED", {"layer_replication": [[0, 0]]}),
    ("dora-announced", "TENSOR_MISSING", {"use_dora": True}),
    ("lora-bias-announced", "TENSOR_MISSING", {"lora_bias": True}),
    ("dora-and-bias", invalid, {"use_dora": True, "lora_bias": True}),
    ("bias-unknown", invalid, {"bias": "some"}),
    ("saved-announced", "SAVED_MODULE_WITHOUT_TENSORS", {"modules_to_save": ["lm_head"]}),
    ("saved-list", "SAVED_MODULE_INVALID", {"modules_to_save": ["layers"]}),
    ("saved-target", "SAVED_MODULE_INVALID", {"modules_to_save": ["q_proj"]}),
    ("saved-nothing-but-a-dot", "MODULE_NOT_TARGETED", {"modules_to_save": ["."]}),
    ("saved-dot-for-any-sign", "MODULE_NOT_TARGETED", {"modules_to_save": ["q.proj"]}),
    ("saved-without-a-dot", "SAVED_MODULE_INVALID",
     {"modules_to_save": ["m_head"], "target_modules": ["q_proj", "v_proj", "lm_head"]}),
    ("saved-parameter", "SAVED_MODULE_INVALID",
     {"modules_to_save": ["layers.1.mlp"], "target_parameters": ["up_proj.weight"]}),
    ("rows-of-head-target", invalid,
     {"trainable_token_indices": {"lm_head": [1]}, "target_modules": ["q_proj", "v_proj", "lm_head"]}),
    ("rows-of-embedding-target", invalid,
     {"trainable_token_indices": [1], "target_modules": ["q_proj", "v_proj", "embed_tokens"]}),
    ("saved-text", invalid, {"modules_to_save": "lm_head"}),
    ("parameters-announced-vector", "TARGET_PARAMETER_INVALID", {"target_parameters": ["norm.weight"]}),
    ("parameters-twice", "TARGET_PARAMETER_INVALID", {"target_parameters": ["q_proj.weight"]}),
    ("parameters-text", invalid, {"target_parameters": "q_proj.weight"}),
    ("initialisation-unknown", invalid, {"init_lora_weights": "magic"}),
    ("qalora", "VARIANT_UNSUPPORTED", {"use_qalora": True}),
    ("arrow", "VARIANT_UNSUPPORTED", {"arrow_config": {"top_k": 2}}),
    ("monteclora", "VARIANT_UNSUPPORTED", {"monteclora_config": {"num_samples": 4}}),
    ("base-name-url", invalid, {"base_model_name_or_path": "https://example.org/x"}),
    ("base-name-path", invalid, {"base_model_name_or_path": "../../secret"}),
    ("targets-endless", invalid, {"target_modules": [f"m{number}" for number in range(30_000)]}),
)  # fmt: skip


def _configs() -> Iterator[Broken]:
    for name, code, changes in _CONFIGS:
        yield Broken(f"config-{name}", "llama-q-v", (code,), with_config(**changes))
    yield Broken(
        "config-token-beyond",
        "llama-tokens",
        ("TOKEN_INDEX_OUT_OF_RANGE",),
        with_config(trainable_token_indices=[3, 5, 96]),
    )
    yield Broken("config-token-twice", "llama-tokens", (invalid,), with_config(trainable_token_indices=[3, 3, 5]))
    yield Broken(
        "config-half-fused", "mixtral-attention", ("EXPERTS_HALF_FUSED",), with_config(target_modules=["w1", "q_proj"])
    )
    yield Broken("config-experts-and-dora", "mixtral-parameters", (invalid,), with_config(use_dora=True))
    experts = with_config(init_lora_weights="orthogonal")
    yield Broken("config-experts-and-orthogonal", "mixtral-parameters", (invalid,), experts)
    yield Broken("config-parameters-and-mica", "llama-parameters", (invalid,), with_config(init_lora_weights="mica"))
    mica = with_config(init_lora_weights="mica")
    yield Broken("config-rank-above-width-and-mica", "llama-rank-above-width", (invalid,), mica)
    yield Broken("config-experts-and-dropout", "mixtral-parameters", (invalid,), with_config(lora_dropout=0.5))
    yield Broken("config-embedding-and-bias", "llama-embedding-only", (invalid,), with_config(lora_bias=True))
    patches = f"{PREFIX}model.vision_tower.embeddings.patch_embedding"
    yield Broken(
        "config-convolution",
        "gemma3-images-everything",
        ("CONVOLUTION_UNSUPPORTED",),
        both(
            with_config(target_modules=["q_proj", "v_proj", "patch_embedding"]),
            added(f"{patches}.lora_A.weight", 4, 3, 4, 4),
            added(f"{patches}.lora_B.weight", 16, 4, 1, 1),
        ),
    )
    yield Broken(
        "config-saved-nested",
        "llama-saved-block",
        ("SAVED_MODULE_INVALID",),
        both(
            without("up_proj.lora_A.weight"),
            without("up_proj.lora_B.weight"),
            with_config(modules_to_save=["layers.1.mlp", "layers.1.mlp.up_proj"], target_modules=["q_proj"]),
        ),
    )
    yield Broken(
        "config-tying-saved-and-head",
        "llama-tied-tying-saved",
        ("SAVED_MODULE_INVALID",),
        with_config(target_modules=["q_proj", "lm_head"]),
    )
    ranks = {"q_proj": 6, "self_attn.q_proj": 2}
    yield Broken("config-pattern-order", "llama-q-v", ("RANK_MISMATCH",), with_config(rank_pattern=ranks))
    yield Broken("config-no-rank", "llama-q-v", ("CONFIG_FIELD_MISSING",), without_field("r"))
    for name, old, new in (
        ("alpha-nan", '"lora_alpha": 8', '"lora_alpha": NaN'),
        ("alpha-infinite", '"lora_alpha": 8', '"lora_alpha": 1e999'),
        ("rank-digits", '"r": 4', '"r": ' + "4" * 30),
        ("twice", '"r": 4', '"r": 4, "r": 8'),
        ("surrogate", '"bias": "none"', '"bias": "\\ud800"'),
    ):
        yield Broken(f"config-{name}", "llama-q-v", ("CONFIG_NOT_JSON",), with_config_text(old, new))
    for name, raw in (
        ("empty", b""),
        ("list", b"[]"),
        ("mark", b"\xef\xbb\xbf{}"),
        ("utf-16", '{"r": 1}'.encode("utf-16")),
        ("deep", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    ):
        yield Broken(f"config-{name}", "llama-q-v", ("CONFIG_NOT_JSON",), with_config_bytes(raw))
    yield Broken("config-large", "llama-q-v", ("CONFIG_TOO_LARGE",), with_config_bytes(b"{" + b" " * (1 << 20) + b"}"))


def _offsets(begin: int, end: int) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[f"{Q0}.lora_A.weight"].update(data_offsets=[begin, end])


def _of_first(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[f"{Q0}.lora_A.weight"].update(changes)


malformed, layout = "WEIGHTS_HEADER_MALFORMED", "WEIGHTS_OFFSETS_INVALID"
one = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
_HEADERS = (
    ("truncated", "WEIGHTS_TRUNCATED", with_weights(lambda raw: raw[:-1])),
    ("half", "WEIGHTS_TRUNCATED", with_weights(lambda raw: raw[: len(raw) // 2])),
    ("in-header", "WEIGHTS_TRUNCATED", with_weights(lambda raw: raw[:100])),
    ("empty", "WEIGHTS_TRUNCATED", with_weights(lambda raw: b"")),
    ("trailing", "WEIGHTS_TRAILING_BYTES", with_weights(lambda raw: raw + b"x")),
    ("pickle", "WEIGHTS_NOT_SAFETENSORS", with_weights(lambda raw: b"\x80\x02}q\x00." + bytes(64))),
    ("zip", "WEIGHTS_NOT_SAFETENSORS", with_weights(lambda raw: b"PK\x03\x04" + bytes(64))),
    ("pointer", "WEIGHTS_LFS_POINTER", with_weights(lambda raw: b"version https://git-lfs.github.com/spec/v1\n")),
    ("length-huge", "WEIGHTS_HEADER_TOO_LARGE", with_raw_header(b"{}", length=2**63)),
    ("length-100-mb", "WEIGHTS_HEADER_TOO_LARGE", with_raw_header(b"{}", length=100_000_001)),
    ("length-beyond", "WEIGHTS_TRUNCATED", with_raw_header(b"{}", length=3)),
    ("not-json", malformed, with_raw_header(b"{]")),
    ("list", "WEIGHTS_NOT_SAFETENSORS", with_raw_header(b"[1]")),
    ("twice", malformed, with_raw_header(one[:-1] + b"," + one[1:], bytes(4))),
    ("deep", malformed, with_raw_header(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)),
    ("nan", malformed, with_raw_header(b'{"a":NaN}')),
    ("metadata-number", malformed, with_raw_header(b'{"__metadata__":{"a":1}}')),
    ("not-utf-8", malformed, with_raw_header(b'{"\xff":1}')),
    ("extra-field", malformed, with_header(_of_first(extra=1))),
    ("offset-fraction", malformed, with_header(_of_first(data_offsets=[0.0, 512.0]))),
    ("offset-negative", malformed, with_raw_header(one.replace(b"[0,4]", b"[-4,0]"), bytes(4))),
    ("offset-text", malformed, with_header(_of_first(data_offsets=["0", "512"]))),
    ("shape-true", malformed, with_raw_header(one.replace(b"[1]", b"[true]"), bytes(4))),
    ("shape-overflow", layout, with_raw_header(one.replace(b"[1]", b"[4294967296,4294967297]"), bytes(4))),
    ("shape-larger", layout, with_header(_of_first(shape=[400, 32]))),
    ("overlap", layout, with_header(_offsets(4, 516))),
    ("gap", layout, with_raw_header(one.replace(b"[0,4]", b"[4,8]"), bytes(8))),
    ("backwards", layout, with_header(_offsets(512, 0))),
    ("dtype", "TENSOR_DTYPE_UNKNOWN", with_header(_of_first(dtype="Q4"))),
    ("dimensions", malformed, with_raw_header(one.replace(b"[1]", b"[" + b",".join([b"1"] * 9) + b"]"), bytes(4))),
)


def _headers() -> Iterator[Broken]:
    for name, code, spoil in _HEADERS:
        yield Broken(f"header-{name}", "llama-q-v", (code,), spoil)


_FILES = (
    ("no-config", "FILE_MISSING", without_file(CONFIG)),
    ("no-weights", "FILE_MISSING", without_file(WEIGHTS)),
    ("pickle", "FORMAT_PICKLE", moved_weights("adapter_model.bin")),
    ("sharded", "FORMAT_SHARDED", moved_weights("adapter_model-00001-of-00002.safetensors")),
    ("mlx", "FORMAT_MLX", moved_weights("adapters.safetensors")),
    ("diffusers", "FORMAT_DIFFUSERS", moved_weights("pytorch_lora_weights.safetensors")),
    ("gguf", "FORMAT_GGUF", moved_weights("adapter.gguf")),
    ("whole-model", "FORMAT_FULL_MODEL", moved_weights("model.safetensors")),
    ("kohya", "FORMAT_KOHYA", both(moved_weights("x.safetensors"), without_file(CONFIG))),
    ("pipe", "FILE_NOT_REGULAR", pipe(WEIGHTS)),
    ("pipe-as-config", "FILE_NOT_REGULAR", pipe(CONFIG)),
    ("folder", "FILE_NOT_REGULAR", folder),
    ("device", "SOURCE_OUTSIDE_ROOTS", linked_to("/dev/zero", WEIGHTS)),
    ("link-out", "SOURCE_OUTSIDE_ROOTS", linked_to("/etc/hostname", WEIGHTS)),
    ("link-up", "SOURCE_OUTSIDE_ROOTS", linked_to("../../../../../../../../etc/hostname", CONFIG)),
    ("link-loop", "FILE_NOT_REGULAR", linked_to(WEIGHTS, WEIGHTS)),
    ("link-to-nothing", "SOURCE_NOT_FOUND", linked_to("nothing", WEIGHTS)),
)  # fmt: skip


def _files() -> Iterator[Broken]:
    for name, code, spoil in _FILES:
        yield Broken(f"file-{name}", "llama-q-v", (code,), spoil)


BROKEN: tuple[Broken, ...] = (*_wrong_bases(), *_names(), *_tensors(), *_configs(), *_headers(), *_files())
