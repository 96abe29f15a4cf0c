"""Experts that a base's files hold one by one and the running model stacks, and for which models PEFT follows that.

transformers stacks the matrices of all experts of a layer into one parameter, for many families. PEFT converts the
adapters that were trained on single experts for some of these families only; for the others it leaves such tensors
out without a word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from lora_registry.base_profile import ExpertShape, ModuleShape
from lora_registry.renamed_modules import renamed_module

_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(w1|w2|w3|gate_proj|up_proj|down_proj)")
_STACK_OF = {
    "w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj",
    "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj",
}  # fmt: skip
PROJECTIONS_OF = {"gate_up_proj": 2, "down_proj": 1}
"""How many projections of an expert are side by side in one stack."""

_ROUTER = {"gate": "gate.weight"}
_MIXTRAL = _ROUTER | {"w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"}
_QWEN2_MOE = _ROUTER | {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}
CONVERTED_TARGETS: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2"), _MIXTRAL),
    **dict.fromkeys(
        (
            "afmoe", "beam", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe",
            "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "hunyuan_v1_moe",
            "longcat_flash", "mellum", "olmoe", "qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_omni_moe_text",
            "qwen3_omni_moe_thinker", "solar_open",
        ),
        _QWEN2_MOE,
    ),
}  # fmt: skip
"""By model_type: what PEFT makes of a target module's name, a parameter of the running model. Note what is absent:
qwen2_moe itself, phimoe and jamba.

Source: `_MODEL_TO_CONVERSION_PATTERN` and `_MOE_TARGET_MODULE_MAPPING` in peft/utils/transformers_weight_conversion.py
    (PEFT 0.21.2), with transformers/conversion_mapping.py (transformers 5.23.0).
"""


def stack_of(module: str) -> str | None:
    """The parameter of the running model that holds a single expert's projection; None for any other module."""
    if ".experts." not in module:
        return None
    match = _EXPERT.fullmatch(module)
    return None if match is None else f"{renamed_module(match[1])}.{_STACK_OF[match[3]]}"


def stack_experts(modules: Mapping[str, ModuleShape]) -> tuple[dict[str, ModuleShape], dict[str, ExpertShape]]:
    """Single experts, and the parameters into which the running model stacks them.

    Source: the conversions of mixtral and qwen2_moe in transformers/conversion_mapping.py (transformers 5.23.0).
    """
    single: dict[str, ModuleShape] = {}
    stacked: dict[str, ExpertShape] = {}
    for module, shape in modules.items():
        match = _EXPERT.fullmatch(module)
        if match is None:
            continue
        single[module] = shape
        number, stack = int(match[2]) + 1, _STACK_OF[match[3]]
        name = f"{match[1]}.{stack}"
        earlier = stacked.get(name)
        stacked[name] = ExpertShape(
            experts=max(number, earlier.experts if earlier else 0),
            out_features=PROJECTIONS_OF[stack] * shape.out_features,
            in_features=shape.in_features,
        )
    ordered = sorted(stacked, key=lambda name: (name.rpartition(".")[0], name.endswith("down_proj")))
    return single, {name: stacked[name] for name in ordered}
