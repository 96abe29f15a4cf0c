"""Makes tests/payloads/quantized: `python -m tests.corpus.make_quantized DIRECTORY`, one tiny Llama in many forms.

The real libraries write each of them, on the CPU. They are no dependencies of the tests; what is in the repository was
made with bitsandbytes 0.50.2, compressed-tensors 0.20.0, accelerate 1.15.0 and transformers 5.23.0, and GPTQ, AWQ and
FP8 with auto-round 0.16.1 and transformers 5.24.0:

    pip install bitsandbytes compressed-tensors accelerate loguru auto-round
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    FineGrainedFP8Config,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

BITSANDBYTES: dict[str, dict[str, Any]] = {
    "bnb-nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "bnb-fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "bnb-int8": {"load_in_8bit": True},
}
COMPRESSED = {
    "ct-w4a16": ("W4A16", "pack-quantized"),
    "ct-w8a16": ("W8A16", "pack-quantized"),
    "ct-fp8": ("FP8", "float-quantized"),
    "ct-int8": ("W8A8", "int-quantized"),
}
GROUP = 16
_MIXED = {"model.layers.0.mlp.down_proj": {"bits": 8}, "model.layers.1.self_attn.q_proj": {"bits": 2}}
AUTO_ROUND: dict[str, tuple[str, dict[str, Any]]] = {
    "gptq-w4": ("auto_gptq", {"scheme": "W4A16", "group_size": GROUP}),
    "gptq-w8": ("auto_gptq", {"scheme": "W8A16", "group_size": GROUP}),
    "gptq-mixed": ("auto_gptq", {"scheme": "W4A16", "group_size": GROUP, "layer_config": _MIXED}),
    "awq-w4": ("auto_awq", {"scheme": "W4A16", "group_size": GROUP, "sym": False}),
    "fp8-128": ("fp8", {"scheme": "FP8_BLOCK"}),
}
"""Projections whose output is no multiple of 32 stay as they are in GPTQ and AWQ."""
LARGEST_FLOAT8 = 448.0


def make_plain(directory: Path) -> None:
    """The model itself, with grouped attention and a head of its own."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)


def make_bitsandbytes(plain: Path, directory: Path, **how: Any) -> None:
    """The model as transformers quantises it while loading."""
    quantization = BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.bfloat16, **how)
    model = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=quantization, device_map="cpu", dtype=torch.bfloat16
    )
    model.save_pretrained(directory)


def make_compressed(plain: Path, directory: Path, *, scheme: str, form: str) -> None:
    """The model as llm-compressor leaves it, but for the calibration: every scale is that of the largest weight."""
    from compressed_tensors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationStatus,
        apply_quantization_config,
        preset_name_to_scheme,
    )

    model = LlamaForCausalLM.from_pretrained(plain)
    chosen = preset_name_to_scheme(scheme, ["Linear"])
    if chosen.weights.group_size:
        chosen.weights.group_size = GROUP
    config = QuantizationConfig(
        config_groups={"group_0": chosen}, ignore=["lm_head"], quantization_status="initialized"
    )
    apply_quantization_config(model, config)
    is_float = chosen.weights.type == "float"
    largest = LARGEST_FLOAT8 if is_float else 2.0 ** (chosen.weights.num_bits - 1) - 1
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            scale = module.weight_scale
            parts = module.weight.data.float().abs().reshape(scale.numel(), -1)
            scale.data.copy_((parts.amax(dim=1) / largest).reshape(scale.shape))
        if hasattr(module, "quantization_status"):
            module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format=form)
    compressor.compress_model(model)
    model.save_pretrained(directory)
    compressor.update_config(directory)


def make_auto_round(plain: Path, directory: Path, *, form: str, **how: Any) -> None:
    """The model as auto-round leaves it without calibration: every weight rounded to the nearest."""
    from auto_round import AutoRound
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    model = LlamaForCausalLM.from_pretrained(plain, dtype=torch.bfloat16)
    rounded = AutoRound(
        model, PreTrainedTokenizerFast(tokenizer_object=words), iters=0, disable_opt_rtn=True, device_map="cpu", **how
    )
    rounded.quantize_and_save(directory / "below", format=form)
    (written,) = (directory / "below").iterdir()  # it names a folder after the scheme
    for name in ("config.json", "model.safetensors"):
        shutil.move(written / name, directory / name)
    shutil.rmtree(directory / "below")


def make_fp8(plain: Path, directory: Path) -> None:
    """The model as transformers quantises it while loading, in blocks of GROUP x GROUP.

    It asks for a GPU because its kernels multiply on one; here nothing is multiplied.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
    from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

    class OnTheCpu(FineGrainedFP8HfQuantizer):
        def validate_environment(self, *_: Any, **__: Any) -> None:
            """Do without a GPU."""

    AUTO_QUANTIZER_MAPPING["fp8"] = OnTheCpu
    quantization = FineGrainedFP8Config(weight_block_size=(GROUP, GROUP))
    model = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=quantization, device_map="cpu", dtype=torch.bfloat16
    )
    model.save_pretrained(directory)


def make_quantized(directory: Path) -> None:
    """Write every form below `directory`."""
    make_plain(directory / "plain")
    for name, how in BITSANDBYTES.items():
        make_bitsandbytes(directory / "plain", directory / name, **how)
    for name, (scheme, form) in COMPRESSED.items():
        make_compressed(directory / "plain", directory / name, scheme=scheme, form=form)
    for name, (form, how) in AUTO_ROUND.items():
        make_auto_round(directory / "plain", directory / name, form=form, **how)
    make_fp8(directory / "plain", directory / "fp8")
    for extra in directory.glob("*/generation_config.json"):
        extra.unlink()


if __name__ == "__main__":
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    make_quantized(target)
