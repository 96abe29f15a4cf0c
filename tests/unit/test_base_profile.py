from __future__ import annotations

import pickle
from typing import Any

import pytest
from tests.helpers.adapters import (
    gpt2_shapes,
    header_of,
    llama_shapes,
    make_base,
    make_base_config,
    make_gpt2,
    safetensors_bytes,
)

from lora_registry.base_headers import profile_from_headers
from lora_registry.base_profile import BaseProfile, BaseProfileError, equal_shape


def code_of(shapes: dict[str, tuple[int, ...]], **config: Any) -> str:
    """The code with which a base model is refused."""
    with pytest.raises(BaseProfileError) as caught:
        make_base(shapes, **config)
    return caught.value.findings[0].code


def test_llama_profile() -> None:
    """A Llama's profile has every projection as [out, in], norms as parameters, and the embedding's rows."""
    base = make_base()
    k_proj = base.modules["model.layers.1.self_attn.k_proj"]
    assert (k_proj.out_features, k_proj.in_features, k_proj.kind) == (16, 32, "linear")
    assert base.modules["model.embed_tokens"].weight_shape == (64, 32)
    assert base.parameter_shape("model.norm.weight") == (32,)
    assert base.parameter_shape("lm_head.weight") == (64, 32)
    assert base.parameter_shape("lm_head.bias") is None
    assert (base.num_layers, base.embedding_rows, base.input_embedding) == (2, 64, "model.embed_tokens")
    assert (base.dtype, base.tied, base.quantization) == ("BF16", False, None)


def test_gpt2_profile() -> None:
    """GPT-2 stores weights as [in, out] and without the outer module's name; its masks are no parameters."""
    base = make_gpt2()
    c_attn = base.modules["transformer.h.0.attn.c_attn"]
    assert (c_attn.out_features, c_attn.in_features, c_attn.kind) == (96, 32, "conv1d")
    assert c_attn.weight_shape == (32, 96)
    assert base.input_embedding == "transformer.wte"
    assert base.parameter_shape("transformer.h.0.attn.c_attn.bias") == (96,)
    assert base.parameter_shape("transformer.h.0.attn.bias") is None


def test_tied_head_is_added() -> None:
    """Where the weights hold no lm_head because it shares the embedding, it is a module all the same."""
    base = make_base(llama_shapes(head=False), tie_word_embeddings=True)
    assert base.tied
    assert base.modules["lm_head"].weight_shape == base.modules["model.embed_tokens"].weight_shape
    assert make_gpt2().tied


def test_stored_head_may_still_be_tied() -> None:
    """A head that is stored but declared tied counts as tied."""
    assert make_base(tie_word_embeddings=True).tied


def test_absent_head_that_is_not_tied_is_refused() -> None:
    """A missing head without tying means that a file is missing."""
    assert code_of(llama_shapes(head=False), tie_word_embeddings=False) == "BASE_PROFILE_INVALID"


def test_shards_make_one_profile() -> None:
    """The profile of a sharded model is that of the whole one, revision included."""
    shapes = llama_shapes()
    names = list(shapes)
    parts = [{name: shapes[name] for name in names[start::2]} for start in (1, 0)]
    headers = [header_of(safetensors_bytes(part, dtype="BF16")) for part in parts]
    sharded = profile_from_headers("acme/tiny-llama", make_base_config(), headers)
    assert equal_shape(sharded, make_base())
    assert sharded.revision == make_base().revision


def test_tensor_in_two_shards_is_refused() -> None:
    """A tensor that two files hold makes the model ambiguous."""
    header = header_of(safetensors_bytes(llama_shapes()))
    with pytest.raises(BaseProfileError, match="two of the weights' files"):
        profile_from_headers("x", make_base_config(), [header, header])


def test_missing_layer_is_refused() -> None:
    """A shard that is missing shows in a layer without tensors."""
    assert code_of(llama_shapes(layers=2), num_hidden_layers=3) == "BASE_PROFILE_INVALID"


def test_layers_beyond_the_declared_ones_are_left_out() -> None:
    """Extra layers on disk, such as those for predicting several tokens, are no part of the served model."""
    base = make_base(llama_shapes(layers=3), num_hidden_layers=2)
    assert "model.layers.2.self_attn.q_proj" not in base.modules
    assert base.parameter_shape("model.layers.2.input_layernorm.weight") is None


def test_inner_model_keeps_its_names() -> None:
    """A model whose class is the inner one has no outer segment, in memory as on disk."""
    inner = {name.removeprefix("model."): shape for name, shape in llama_shapes(head=False).items()}
    assert "layers.0.mlp.up_proj" in make_base(inner, architectures=["LlamaModel"]).modules
    assert "model.layers.0.mlp.up_proj" in make_base(inner, tie_word_embeddings=True).modules


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"quantization_config": {"quant_method": "aqlm"}}, "BASE_QUANTIZED_UNSUPPORTED"),
        ({"quantization_config": {"bits": 4}}, "BASE_QUANTIZED_UNSUPPORTED"),
        ({"text_config": {"num_hidden_layers": 2}}, "BASE_ARCHITECTURE_UNSUPPORTED"),
        ({"is_encoder_decoder": True}, "BASE_ARCHITECTURE_UNSUPPORTED"),
        ({"model_type": None}, "BASE_PROFILE_INVALID"),
        ({"architectures": None}, "BASE_PROFILE_INVALID"),
        ({"num_hidden_layers": "2"}, "BASE_PROFILE_INVALID"),
        ({"num_hidden_layers": True}, "BASE_PROFILE_INVALID"),
        ({"x": float("nan")}, "BASE_PROFILE_INVALID"),
    ],
)
def test_configurations_that_are_not_read_are_refused(config: dict[str, Any], code: str) -> None:
    """Quantised, composite and incomplete configurations are refused with a code each."""
    assert code_of(llama_shapes(), **config) == code


def test_weights_that_are_not_floats_are_refused() -> None:
    """Packed integer weights do not show their shapes, so they are refused even without a configuration."""
    header = header_of(safetensors_bytes(llama_shapes(), dtype="U8"))
    with pytest.raises(BaseProfileError) as caught:
        profile_from_headers("x", make_base_config(), [header])
    assert caught.value.findings[0].code == "BASE_QUANTIZED_UNSUPPORTED"


def test_weights_without_embedding_or_tensors_are_refused() -> None:
    """Weights without the input's embedding, or without anything, are no model."""
    shapes = llama_shapes()
    del shapes["model.embed_tokens.weight"]
    assert code_of(shapes) == code_of({}) == "BASE_PROFILE_INVALID"


@pytest.mark.parametrize("change", [{"hidden": 64}, {"kv": 32}, {"intermediate": 64}, {"vocab": 128}])
def test_profiles_of_other_sizes_differ(change: dict[str, int]) -> None:
    """Any size that an adapter can notice makes two profiles unequal, and the revision another."""
    other = make_base(llama_shapes(**change))
    assert not equal_shape(make_base(), other)
    assert other.revision != make_base().revision


def test_names_do_not_make_profiles_differ() -> None:
    """Another name and another dtype of the same shapes is an equal profile."""
    header = header_of(safetensors_bytes(llama_shapes(), dtype="F16"))
    other = profile_from_headers("other", make_base_config(), [header], source="hf://a/b@1", also_known_as=["b"])
    assert equal_shape(make_base(), other)
    assert not equal_shape(make_base(), make_base(model_type="mistral"))


def test_profile_survives_json() -> None:
    """A stored profile reads back the same, and fields of a later version are ignored."""
    base = make_gpt2()
    assert BaseProfile.model_validate_json(base.model_dump_json()) == base
    assert BaseProfile.model_validate(base.model_dump(mode="json") | {"later": 1}) == base


def test_gpt2_with_outer_names_is_the_same_model() -> None:
    """Weights saved from the outer class have its segment already, and give the same shapes."""
    outer = {f"transformer.{name}": shape for name, shape in gpt2_shapes().items()}
    config: dict[str, Any] = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "tie_word_embeddings": True,
    }
    assert equal_shape(make_base(outer, **config), make_gpt2())


def test_error_survives_pickling() -> None:
    """A BaseProfileError keeps its findings when it travels between processes."""
    with pytest.raises(BaseProfileError) as caught:
        make_base({})
    assert pickle.loads(pickle.dumps(caught.value)).findings == caught.value.findings
