"""Adapters of real size: the shapes of a Llama-3-8B, a LoRA on every projection."""

from __future__ import annotations

import json
import random
from math import prod
from pathlib import Path

from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE
from lora_registry.base_headers import profile_from_headers
from lora_registry.base_profile import BaseProfile
from lora_registry.safetensors_header import parse_header

NAME = "meta-llama/Meta-Llama-3-8B"
LAYERS, HIDDEN, KV, INTERMEDIATE, ROWS = 32, 4096, 1024, 14336, 128256
_PROJECTIONS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
BASE_CONFIG = {
    "vocab_size": ROWS, "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip
_NUMBERS = b"".join(bytes((byte, 0x3C + 0x80 * (byte % 3 == 0))) for byte in random.Random(0).randbytes(1 << 20))
"""2 MiB of numbers of both signs in bfloat16, each of the size of 0.01."""


def base_profile() -> BaseProfile:
    """The profile of the base model, from the header that its weights would have."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (ROWS, HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.{name}.weight": shape for name, shape in _PROJECTIONS.items()}
        shapes |= {f"{at}.{norm}.weight": (HIDDEN,) for norm in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (ROWS, HIDDEN)}
    raw, end = _header(shapes)
    config = BASE_CONFIG | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    return profile_from_headers(NAME, config, [parse_header(raw, data_bytes=end)])


def write_large_adapter(directory: Path, *, rank: int) -> Path:
    """An adapter as PEFT would save it, in bfloat16; 84 MB at rank 16, 336 MB at rank 64."""
    directory.mkdir(parents=True)
    targets = [name.rpartition(".")[2] for name in _PROJECTIONS]
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": NAME, "r": rank,
        "lora_alpha": 2 * rank, "lora_dropout": 0.0, "bias": "none", "target_modules": targets,
    }  # fmt: skip
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf-8")
    raw, end = _header(_lora_shapes(rank))
    with (directory / WEIGHTS_FILE).open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for begin in range(0, end, len(_NUMBERS)):
            file.write(_NUMBERS[: end - begin])
    return directory


def _lora_shapes(rank: int) -> dict[str, tuple[int, ...]]:
    return {
        f"base_model.model.model.layers.{layer}.{name}.lora_{half}.weight": shape
        for layer in range(LAYERS)
        for name, (out, in_) in _PROJECTIONS.items()
        for half, shape in (("A", (rank, in_)), ("B", (out, rank)))
    }


def _header(shapes: dict[str, tuple[int, ...]]) -> tuple[bytes, int]:
    """The header's JSON, and the bytes of all tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    return raw + b" " * (-len(raw) % 8), end
