"""Builders of tiny adapters and base models: safetensors bytes written by hand, without the library."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_registry.adapter_config import AdapterConfig, parse_adapter_config
from lora_registry.base_headers import profile_from_headers
from lora_registry.base_profile import BaseProfile
from lora_registry.compatibility import check_compatibility
from lora_registry.findings import Finding, Severity
from lora_registry.safetensors_header import DTYPE_BYTES, Header, read_header

PREFIX = "base_model.model."
PAYLOADS = Path(__file__).parents[1] / "payloads" / "peft"

Shapes = Mapping[str, tuple[int, ...]]


def safetensors_bytes(shapes: Shapes, *, dtype: str = "F32", metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file with these tensors, all zero."""
    fields: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    offset = 0
    for name, shape in shapes.items():
        size = DTYPE_BYTES[dtype]
        for length in shape:
            size *= length
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    return with_header(json.dumps(fields).encode(), data=bytes(offset))


def with_header(header_json: bytes, *, data: bytes = b"") -> bytes:
    """A file with exactly this header, right or wrong."""
    return struct.pack("<Q", len(header_json)) + header_json + data


def reader(raw: bytes) -> Callable[[int, int], bytes]:
    """Ranged reads from bytes."""
    return lambda offset, length: raw[offset : offset + length]


def header_of(raw: bytes) -> Header:
    """The header of a file's bytes."""
    return read_header(reader(raw), file_size_bytes=len(raw))


def make_base_config(**changes: Any) -> dict[str, Any]:
    """config.json of the tiny Llama of `llama_shapes`."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 2,
        "tie_word_embeddings": False,
    } | changes


def llama_shapes(
    *,
    hidden: int = 32,
    kv: int = 16,
    intermediate: int = 48,
    vocab: int = 64,
    layers: int = 2,
    head: int = True,
) -> dict[str, tuple[int, ...]]:
    """The tensors of a tiny Llama as it lies on disk."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.self_attn.q_proj.weight": (hidden, hidden),
            f"{at}.self_attn.k_proj.weight": (kv, hidden),
            f"{at}.self_attn.v_proj.weight": (kv, hidden),
            f"{at}.self_attn.o_proj.weight": (hidden, hidden),
            f"{at}.mlp.gate_proj.weight": (intermediate, hidden),
            f"{at}.mlp.up_proj.weight": (intermediate, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, intermediate),
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.post_attention_layernorm.weight": (hidden,),
        }
    shapes["model.norm.weight"] = (hidden,)
    if head:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def gpt2_shapes(*, hidden: int = 32, vocab: int = 64, layers: int = 2) -> dict[str, tuple[int, ...]]:
    """The tensors of a tiny GPT-2 as its hub repository stores them: no outer segment, masks, [in, out]
    weights.
    """
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (vocab, hidden), "wpe.weight": (16, hidden)}
    for layer in range(layers):
        at = f"h.{layer}"
        shapes |= {
            f"{at}.attn.bias": (1, 1, 16, 16),
            f"{at}.attn.c_attn.weight": (hidden, 3 * hidden),
            f"{at}.attn.c_attn.bias": (3 * hidden,),
            f"{at}.attn.c_proj.weight": (hidden, hidden),
            f"{at}.attn.c_proj.bias": (hidden,),
            f"{at}.mlp.c_fc.weight": (hidden, 4 * hidden),
            f"{at}.mlp.c_fc.bias": (4 * hidden,),
            f"{at}.ln_1.weight": (hidden,),
            f"{at}.ln_1.bias": (hidden,),
        }
    return shapes


def make_base(shapes: Shapes | None = None, *, name: str = "acme/tiny-llama", **config: Any) -> BaseProfile:
    """The profile of a base model; by default of the tiny Llama that the recorded PEFT adapters belong to."""
    raw = safetensors_bytes(llama_shapes() if shapes is None else shapes, dtype="BF16")
    return profile_from_headers(name, make_base_config(**config), [header_of(raw)])


def make_gpt2(**config: Any) -> BaseProfile:
    """The profile of the tiny GPT-2 of `gpt2_shapes`."""
    family = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "tie_word_embeddings": True}
    return make_base(gpt2_shapes(), name="tiny-gpt2", **(family | config))


def make_mixture(names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> BaseProfile:
    """A base with three experts in each layer, as its files have them."""
    first, second, third = names
    shapes = {name: shape for name, shape in llama_shapes().items() if ".mlp." not in name}
    for layer in range(2):
        shapes[f"model.layers.{layer}.mlp.gate.weight"] = (3, 32)
        for expert in range(3):
            at = f"model.layers.{layer}.mlp.experts.{expert}"
            shapes |= {f"{at}.{first}.weight": (48, 32), f"{at}.{second}.weight": (48, 32)}
            shapes[f"{at}.{third}.weight"] = (32, 48)
    return make_base(shapes, model_type="mixtral" if "w1" in names else "qwen3_moe")


@dataclass(frozen=True)
class Adapter:
    """An adapter's two files."""

    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    dtype: str = "F32"

    @property
    def config_bytes(self) -> bytes:
        """adapter_config.json."""
        return json.dumps(self.config).encode()

    @property
    def weights_bytes(self) -> bytes:
        """adapter_model.safetensors."""
        return safetensors_bytes(self.shapes, dtype=self.dtype, metadata={"format": "pt"})

    def with_config(self, **changes: Any) -> Adapter:
        """The same with other fields."""
        return Adapter(self.config | changes, self.shapes, self.dtype)

    def with_tensors(self, shapes: Shapes) -> Adapter:
        """The same with tensors added or replaced."""
        return Adapter(self.config, self.shapes | dict(shapes), self.dtype)

    def without(self, ending: str) -> Adapter:
        """The same without the tensors whose names end so."""
        kept = {name: shape for name, shape in self.shapes.items() if not name.endswith(ending)}
        return Adapter(self.config, kept, self.dtype)

    def renamed(self, old: str, new: str) -> Adapter:
        """The same with a part of every tensor's name replaced."""
        return Adapter(self.config, {name.replace(old, new): shape for name, shape in self.shapes.items()}, self.dtype)

    def check(self, base: BaseProfile | None = None) -> list[Finding]:
        """What a comparison with the base (the tiny Llama) finds."""
        parsed = parse_adapter_config(self.config_bytes)
        return check_compatibility(parsed, header_of(self.weights_bytes), base or make_base())


def make_adapter(
    *,
    rank: int = 8,
    targets: Iterable[str] = ("q_proj", "v_proj"),
    base: BaseProfile | None = None,
    dtype: str = "F32",
    **config: Any,
) -> Adapter:
    """An adapter that fits the base (the tiny Llama) on every module with one of the endings."""
    base = base or make_base()
    endings = tuple(targets)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in base.modules.items():
        if name.rpartition(".")[2] in endings:
            embedding = module.kind == "embedding"
            first, second = (
                ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
            )
            shapes[f"{PREFIX}{name}.{first}"] = (rank, module.in_features)
            shapes[f"{PREFIX}{name}.{second}"] = (module.out_features, rank)
    fields = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(endings),
        "base_model_name_or_path": base.name,
    }
    return Adapter(fields | config, shapes, dtype)


def make_config(**changes: Any) -> AdapterConfig:
    """A parsed configuration."""
    return parse_adapter_config(make_adapter(**changes).config_bytes)


def codes_of(findings: Iterable[Finding], *, severity: Severity | None = None) -> list[str]:
    """The codes of findings in order, of one severity if it is given."""
    return [finding.code for finding in findings if severity in (None, finding.severity)]


def errors_of(findings: Iterable[Finding]) -> list[str]:
    """The codes of the findings that reject."""
    return codes_of(findings, severity=Severity.ERROR)
