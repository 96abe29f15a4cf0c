"""The valid variants: what PEFT is told for each, and on which base."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
DENSE = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Valid:
    """One adapter that PEFT makes.

    Attributes:
        name: unique name of the case.
        base: name of its base.
        lora: fields of LoraConfig.
        is_seen: whether it changes the answer to a text.
    """

    name: str
    base: str
    lora: dict[str, Any] = field(default_factory=dict)
    is_seen: bool = True


_LLAMA: dict[str, dict[str, Any]] = {
    "q-v": {"target_modules": ["q_proj", "v_proj"]},
    "dense": {"target_modules": DENSE},
    "all-linear": {"target_modules": "all-linear"},
    "rank-1": {"target_modules": ["q_proj"], "r": 1},
    "rank-above-width": {"target_modules": ["k_proj"], "r": 48},
    "rslora": {"target_modules": ATTENTION, "use_rslora": True},
    "rank-pattern": {"target_modules": DENSE, "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}},
    "rank-pattern-order": {"target_modules": ATTENTION, "rank_pattern": {"k_proj": 2, "self_attn.k_proj": 6}},
    "rank-pattern-anchored": {"target_modules": ATTENTION, "rank_pattern": {"^model.layers.0.self_attn.q_proj": 6}},
    "rank-pattern-expression": {
        "target_modules": ATTENTION,
        "rank_pattern": {r"layers\.[0-9]\.self_attn\.[qk]_proj": 6},
    },
    "rank-pattern-loose": {"target_modules": ATTENTION, "rank_pattern": {r".*\.q_proj": 6, ".*v_proj": 2}},
    "alpha-pattern": {"target_modules": ATTENTION, "alpha_pattern": {"v_proj": 32, "layers.0.self_attn.q_proj": 1}},
    "dora": {"target_modules": DENSE, "use_dora": True},
    "dora-rank-pattern": {"target_modules": ATTENTION, "use_dora": True, "rank_pattern": {"o_proj": 2}},
    "dora-embedding": {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
    "lora-bias": {"target_modules": ATTENTION, "lora_bias": True},
    "expression": {"target_modules": r".*\.layers\.\d+\.self_attn\.(q|v)_proj"},
    "expression-not-ahead": {"target_modules": r"^(?!.*(?:layers\.0|lm_head)).*(?:o_proj|up_proj|v_proj|q_proj).*"},
    "expression-one-layer": {"target_modules": r"model\.layers\.1\..*(up|down)_proj"},
    "expression-excluded": {"target_modules": DENSE, "exclude_modules": r".*\.layers\.0\..*"},
    "excluded": {"target_modules": ATTENTION, "exclude_modules": ["layers.0.self_attn.k_proj"]},
    "layers": {"target_modules": ATTENTION, "layers_to_transform": [1]},
    "layers-one-number": {"target_modules": ATTENTION, "layers_to_transform": 0},
    "layers-parent": {"target_modules": ATTENTION, "layers_to_transform": [1], "layers_pattern": ["layers"]},
    "layers-parent-text": {"target_modules": ATTENTION, "layers_to_transform": [0], "layers_pattern": "layers"},
    "layers-and-head": {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [1]},
    "full-names": {"target_modules": ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "embedding-only": {"target_modules": ["embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "head-and-embedding": {"target_modules": ["lm_head", "embed_tokens"]},
    "saved-head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved-both": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "saved-norm": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    "saved-block": {"target_modules": ["q_proj", "up_proj"], "modules_to_save": ["layers.1.mlp"]},
    "saved-dotted": {"target_modules": ["q_proj", "up_proj"], "modules_to_save": ["mlp.up_proj"]},
    "saved-absent": {"target_modules": ["q_proj"], "modules_to_save": ["score", "classifier"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5, 95]},
    "tokens-by-name": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 4]}},
    "tokens-of-projection": {"target_modules": ["q_proj"], "trainable_token_indices": {"v_proj": [3, 4]}},
    "tokens-of-head": {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [3, 4]}},
    "replication": {"target_modules": ATTENTION, "layer_replication": [[0, 2], [0, 1], [1, 2]]},
    "parameters": {"target_modules": [], "target_parameters": ["q_proj.weight", "mlp.up_proj.weight"]},
    "parameters-orthogonal": {
        "target_modules": [],
        "target_parameters": ["q_proj.weight"],
        "init_lora_weights": "orthogonal",
    },
    "dropout": {"target_modules": ["q_proj"], "lora_dropout": 0.1},
    "gaussian": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    "orthogonal": {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
    "no-task": {"target_modules": ["q_proj"], "task_type": None},
    "feature-extraction": {"target_modules": ["q_proj"], "task_type": "FEATURE_EXTRACTION"},
    "alora": {"target_modules": ["q_proj"], "alora_invocation_tokens": [3, 4]},
    "transposed-flag": {"target_modules": ["q_proj"], "fan_in_fan_out": True},
}


_TIED: dict[str, dict[str, Any]] = {
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "saved-head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved-embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]},
    "tokens-both": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [3, 5]},
    },
    "tying-embedding": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "tying-saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tying-expression": {"target_modules": ".*(q_proj|embed_tokens)", "ensure_weight_tying": True},
    "tying-expression-head": {"target_modules": ".*(q_proj|lm_head)", "ensure_weight_tying": True},
    "tying-expression-full": {"target_modules": r".*\.(q_proj|embed_tokens)", "ensure_weight_tying": True},
    "all-linear": {"target_modules": "all-linear"},
}


def _others() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for base in ("mistral", "qwen3", "gemma2", "gemma3"):
        yield base, "dense", {"target_modules": DENSE}
        yield base, "all-linear", {"target_modules": "all-linear"}
    yield "qwen2", "all-linear", {"target_modules": "all-linear"}
    yield "qwen2", "bias-all", {"target_modules": ["q_proj", "up_proj"], "bias": "all"}
    yield "qwen2", "bias-lora-only", {"target_modules": ["q_proj", "up_proj"], "bias": "lora_only"}
    yield "qwen3", "saved-norms", {"target_modules": ["q_proj"], "modules_to_save": ["q_norm", "k_norm"]}
    for name, fields in _TIED.items():
        yield "llama-tied", name, fields
    yield "gemma3", "embedding", {"target_modules": ["embed_tokens", "q_proj"]}
    yield "phi3", "fused", {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj", "down_proj"]}
    yield "phi3", "dora", {"target_modules": ["qkv_proj", "gate_up_proj"], "use_dora": True}
    yield "gpt-neox", "fused", {"target_modules": ["query_key_value", "dense_h_to_4h", "dense"]}
    yield "gpt-neox", "bias-all", {"target_modules": ["query_key_value"], "bias": "all"}
    yield "gpt-neox", "head", {"target_modules": ["lm_head", "embed_in"]}
    yield "gpt-neox", "all-linear", {"target_modules": "all-linear"}
    yield "gpt2", "conv1d", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
    yield "gpt2", "conv1d-flag-off", {"target_modules": ["c_attn"]}
    yield "gpt2", "dora", {"target_modules": ["c_attn", "c_fc"], "use_dora": True}
    yield "gpt2", "bias-lora-only", {"target_modules": ["c_attn"], "bias": "lora_only"}
    yield "gpt2", "lora-bias", {"target_modules": ["c_attn"], "lora_bias": True}
    yield "gpt2", "embedding", {"target_modules": ["wte", "c_attn"]}
    yield "gpt2", "saved", {"target_modules": ["c_attn"], "modules_to_save": ["c_fc"]}
    yield "gpt2", "all-linear", {"target_modules": "all-linear"}
    yield "opt", "dense", {"target_modules": ["q_proj", "v_proj", "out_proj", "fc1", "fc2"]}
    yield "opt", "bias-all", {"target_modules": ["q_proj", "fc1"], "bias": "all"}
    yield "opt", "positions", {"target_modules": ["q_proj"], "modules_to_save": ["final_layer_norm"]}
    for base, targets in (("classifier", ["q_proj", "v_proj"]), ("bert", ["query", "value"])):
        yield base, "task", {"target_modules": targets, "task_type": "SEQ_CLS"}
        yield base, "all-linear", {"target_modules": "all-linear", "task_type": "SEQ_CLS"}
    yield "classifier", "saved", {"target_modules": ["q_proj"], "modules_to_save": ["score"], "task_type": None}
    yield "classifier", "head", {"target_modules": ["q_proj", "score"], "task_type": None}
    yield "bert", "bias-all", {"target_modules": ["query"], "task_type": "SEQ_CLS", "bias": "all"}
    yield "bert", "dense", {"target_modules": ["attention.output.dense", "query"], "task_type": "SEQ_CLS"}
    yield "phi", "head", {"target_modules": ["q_proj", "lm_head"]}
    yield "phi", "head-bias-all", {"target_modules": ["q_proj", "lm_head"], "bias": "all"}
    for bias in ("all", "lora_only"):
        fields = {"target_modules": [], "target_parameters": ["c_attn.weight"], "bias": bias}
        yield "gpt2", f"parameters-bias-{bias}", fields
    yield "roberta", "bias-all", {"target_modules": ["query"], "task_type": "SEQ_CLS", "bias": "all"}
    yield from _mixtures()


def _mixtures() -> Iterator[tuple[str, str, dict[str, Any]]]:
    both = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    for base, single in (("mixtral", ["w1", "w2", "w3"]), ("qwen3-moe", ["gate_proj", "up_proj", "down_proj"])):
        yield base, "attention", {"target_modules": ATTENTION}
        yield base, "parameters", {"target_modules": ["q_proj"], "target_parameters": both}
        yield base, "one-parameter", {"target_modules": [], "target_parameters": both[:1]}
        yield base, "other-parameter", {"target_modules": [], "target_parameters": both[1:]}
        ranks = {"target_modules": [], "target_parameters": both, "rank_pattern": {"experts.down_proj": 2}}
        yield base, "parameters-rank-pattern", ranks
        yield base, "router", {"target_modules": ["q_proj"], "target_parameters": ["mlp.gate.weight"]}
        yield base, "all-linear", {"target_modules": "all-linear"}
        yield base, "single-names", {"target_modules": [*single, "q_proj"]}
    yield "mixtral", "expression-single-names", {"target_modules": r".*\.(w[123]|q_proj)"}
    yield "mixtral", "expression-layer", {"target_modules": r"model\.layers\.1\..*_proj"}
    yield "qwen3-moe", "expression-single-names", {"target_modules": r".*\.(gate|up|down)_proj"}
    yield "qwen3-moe", "expression-attention", {"target_modules": r".*\.self_attn\.(q|v)_proj"}
    yield from _shared_experts()
    yield "mixtral", "parameters-rslora", {"target_modules": [], "target_parameters": both, "use_rslora": True}
    yield "gemma3-images", "everything", {"target_modules": ["q_proj", "v_proj"]}
    yield "gemma3-images", "head", {"target_modules": ["q_proj", "lm_head"]}
    yield "gemma3-images", "all-linear", {"target_modules": "all-linear"}
    yield "llava", "language", {"target_modules": r".*language_model.*\.(q|v)_proj"}
    yield "llava", "everything", {"target_modules": ["q_proj", "v_proj"]}
    yield "llava", "projector", {"target_modules": ["linear_1", "linear_2"]}
    yield "llava", "all-linear", {"target_modules": "all-linear"}
    yield "llava", "saved-projector", {"target_modules": ["q_proj"], "modules_to_save": ["multi_modal_projector"]}


def _shared_experts() -> Iterator[tuple[str, str, dict[str, Any]]]:
    dense = ["gate_proj", "up_proj", "down_proj"]
    yield "qwen2-moe", "all-linear", {"target_modules": "all-linear", "lora_dropout": 0.05}
    yield "qwen2-moe", "dense", {"target_modules": [*ATTENTION, *dense], "lora_dropout": 0.05}
    yield "qwen2-moe", "dora", {"target_modules": dense, "use_dora": True}
    yield "qwen2-moe", "lora-bias", {"target_modules": dense, "lora_bias": True}
    yield "qwen2-moe", "one-half", {"target_modules": ["gate_proj"]}
    yield "qwen2-moe", "parameters", {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj"]}
    yield "glm4-moe", "all-linear", {"target_modules": "all-linear"}
    yield "glm4-moe", "single-names", {"target_modules": [*dense, "q_proj"]}
    yield "glm4-moe", "expression-dense", {"target_modules": r"model\.layers\.0\.mlp\.(gate|up|down)_proj"}
    yield "glm4-moe", "excluded", {"target_modules": ["q_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]}


def _tasked(lora: dict[str, Any]) -> dict[str, Any]:
    return {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"} | lora


VALID: tuple[Valid, ...] = tuple(
    [Valid(f"llama-{name}", "llama", _tasked(lora)) for name, lora in _LLAMA.items()]
    + [Valid(f"{base}-{name}", base, _tasked(lora), name != "projector") for base, name, lora in _others()]
)
