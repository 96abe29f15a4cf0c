"""Tiny models, with random weights, of the architectures that adapters are made for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf

VOCABULARY = 96
_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = _SMALL | {"num_key_value_heads": 2}
_UNTIED = _GROUPED | {"tie_word_embeddings": False}


def _llava() -> Any:
    vision = tf.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        projection_dim=16,
    )
    return tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(vision_config=vision, text_config=tf.LlamaConfig(**_UNTIED), image_token_index=90)
    )


def _gemma3_images() -> Any:
    """A composite model without a head of its own in the files, and with a convolution."""
    vision = tf.SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    text = tf.Gemma3TextConfig(**_GROUPED, head_dim=8)
    config = tf.Gemma3Config(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        mm_tokens_per_image=4,
        image_token_index=90,
        boi_token_index=91,
        eoi_token_index=92,
    )
    return tf.Gemma3ForConditionalGeneration(config)


def _gpt2() -> Any:
    config = tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=64, bos_token_id=1)
    return tf.GPT2LMHeadModel(config)


def _opt() -> Any:
    sizes = _SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32}
    del sizes["intermediate_size"]
    return tf.OPTForCausalLM(tf.OPTConfig(**sizes))


def _glm4_moe() -> Any:
    """A first layer without experts, a second one with routed and shared ones."""
    experts = _EXPERTS | {"n_routed_experts": 3, "n_shared_experts": 1, "first_k_dense_replace": 1}
    return tf.Glm4MoeForCausalLM(tf.Glm4MoeConfig(**_UNTIED | experts))


_LLAMA = tf.LlamaForCausalLM, tf.LlamaConfig
_EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
_SHARED = {"shared_expert_intermediate_size": 20}
BASES: dict[str, Callable[[], Any]] = {
    "llama": lambda: _LLAMA[0](_LLAMA[1](**_UNTIED)),
    "llama-tied": lambda: _LLAMA[0](_LLAMA[1](**_GROUPED, tie_word_embeddings=True)),
    "llama-wide": lambda: _LLAMA[0](_LLAMA[1](**_UNTIED | {"hidden_size": 64})),
    "llama-narrow": lambda: _LLAMA[0](_LLAMA[1](**_UNTIED | {"hidden_size": 16})),
    "llama-deep": lambda: _LLAMA[0](_LLAMA[1](**_UNTIED | {"num_hidden_layers": 3})),
    "llama-fat": lambda: _LLAMA[0](_LLAMA[1](**_UNTIED | {"intermediate_size": 64})),
    "llama-lean": lambda: _LLAMA[0](_LLAMA[1](**_UNTIED | {"intermediate_size": 40})),
    "llama-one-kv": lambda: _LLAMA[0](_LLAMA[1](**_UNTIED | {"num_key_value_heads": 1})),
    "llama-all-kv": lambda: _LLAMA[0](_LLAMA[1](**_UNTIED | {"num_key_value_heads": 4})),
    "llama-words": lambda: _LLAMA[0](_LLAMA[1](**_UNTIED | {"vocab_size": 128})),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**_UNTIED, sliding_window=16)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**_UNTIED)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**_UNTIED, head_dim=16)),
    "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**_GROUPED, head_dim=8)),
    "gemma3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**_GROUPED, head_dim=8)),
    "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**_UNTIED)),
    "gpt-neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**_SMALL, rotary_pct=0.5)),
    "gpt2": _gpt2,
    "opt": _opt,
    "phi": lambda: tf.PhiForCausalLM(tf.PhiConfig(**_GROUPED)),
    "roberta": lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**_SMALL, num_labels=2)),
    "classifier": lambda: tf.LlamaForSequenceClassification(tf.LlamaConfig(**_UNTIED, num_labels=3)),
    "bert": lambda: tf.BertForSequenceClassification(tf.BertConfig(**_SMALL, num_labels=2)),
    "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**_UNTIED, num_local_experts=3)),
    "qwen3-moe": lambda: tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**_UNTIED | _EXPERTS)),
    "qwen2-moe": lambda: tf.Qwen2MoeForCausalLM(tf.Qwen2MoeConfig(**_UNTIED | _EXPERTS | _SHARED)),
    "glm4-moe": _glm4_moe,
    "llava": _llava,
    "gemma3-images": _gemma3_images,
}
"""Every base by name. Those called llama-… differ from llama in one size each."""


def make_model(name: str) -> Any:
    """The model, always with the same random weights, ready for inference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(7)
        return BASES[name]().eval()


def save_base(name: str, directory: Path) -> None:
    """Write the model as transformers writes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_model(name).save_pretrained(directory)


def logits(model: Any) -> torch.Tensor:
    """The model's answer to one fixed input."""
    torch.manual_seed(0)
    tokens = torch.arange(3, 11).reshape(1, 8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(input_ids=tokens).logits
