"""Values for the fields of adapter_config.json, of the right and of the wrong type, for tiny Llamas."""

from __future__ import annotations

import random
from typing import Any

WELL_TYPED: dict[str, list[Any]] = {
    "peft_type": ["LORA"],
    "r": [1, 2, 4, 8],
    "lora_alpha": [8, 0, -3, 1.5, 3e38],
    "target_modules": [["q_proj"], ["q_proj", "up_proj"], "all-linear", "ALL-LINEAR", r".*\.(q|v)_proj", ["lm_head"]],
    "exclude_modules": [None, [], "", ["k_proj"], "lm_head", r".*\.k_proj"],
    "target_parameters": [None, [], ["input_layernorm.missing"]],
    "rank_pattern": [{}, {"q_proj": 2}, {r".*\.up_proj": 6}],
    "alpha_pattern": [{}, {"q_proj": 2}, {"v_proj": 0.5}],
    "use_rslora": [None, True, False],
    "use_dora": [None, True, False],
    "lora_bias": [None, True, False],
    "bias": ["none", "all", "lora_only"],
    "modules_to_save": [None, [], ["norm"]],
    "layers_to_transform": [None, [], 0, 1, [0], [0, 1]],
    "layers_pattern": [None, [], "", "layers", ["layers"]],
    "layer_replication": [None, [], [[0, 2]], [[0, 1], [0, 2]]],
    "trainable_token_indices": [None, {}, [3], [3, 5], {"embed_tokens": [1]}],
    "ensure_weight_tying": [None, True, False],
    "fan_in_fan_out": [None, True, False],
    "alora_invocation_tokens": [None, [], [1], [3, 4, 5]],
    "task_type": [None, "CAUSAL_LM"],
    "base_model_name_or_path": [None, "", "tiny/llama"],
    "lora_dropout": [0, 0.5, 1, -0.5],
    "init_lora_weights": [
        None, True, False, "", "gaussian", "GAUSSIAN", "eva", "olora", "OLoRA", "pissa", "pissa_niter_2", "orthogonal",
        "lora_ga", "mica", "MiCA",
    ],
    "eva_config": [None, {}, {"rho": 1.0, "tau": 0}, {"rho": 2, "odd": "x"}],
    "corda_config": [None, {}, {"corda_method": "kpm"}],
    "lora_ga_config": [None, {}, {"direction": "ArBr"}],
    "use_qalora": [None, False],
    "use_bdlora": [None],
    "arrow_config": [None],
    "kasa_config": [None],
    "velora_config": [None],
    "monteclora_config": [None],
    "auto_mapping": [None, {}, {"parent_library": "transformers.models.llama.modeling_llama"}],
    "megatron_config": [None, {}],
    "megatron_core": [None, "megatron.core"],
    "inference_mode": [None, True, False],
    "peft_version": [None, "0.21.2"],
    "revision": [None, "main"],
    "runtime_config": [None, {}],
    "loftq_config": [None, {}, {"loftq_bits": 4}],
    "qalora_group_size": [16, 32],
}  # fmt: skip
"""What PEFT's LoraConfig declares for each field, and null where PEFT takes it."""

ANY_TYPE: list[Any] = [
    None, True, False, 0, 1, 2, -1, 0.0, 0.5, 1.0, 1.5, -0.5, 2.0, 1e300, "", "q_proj", "all", "PISSA", "1",
    [], [0], [1.5], ["q_proj"], [""], [None], [[0, 1]], {}, {"x": 1}, {"q_proj": 0}, {"q_proj": "2"},
    {"embed_tokens": []}, {"rho": 0.5}, {"tau": None},
]  # fmt: skip
"""A little of everything that JSON has, the empty and the false ones most of all."""


def any_value(rng: random.Random) -> dict[str, Any]:
    """One field with a value of any type."""
    return {rng.choice(sorted(WELL_TYPED)): rng.choice(ANY_TYPE)}


def well_typed_value(rng: random.Random) -> dict[str, Any]:
    """One field with a value of its type."""
    name = rng.choice(sorted(WELL_TYPED))
    return {name: rng.choice(WELL_TYPED[name])}
