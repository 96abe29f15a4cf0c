from __future__ import annotations

import json
from typing import Any

import pytest
from tests.helpers.adapters import (
    PAYLOADS,
    errors_of,
    header_of,
    llama_shapes,
    make_adapter,
    make_base_config,
    with_header,
)

from lora_registry.base_headers import profile_from_headers
from lora_registry.base_profile import BaseProfile, BaseProfileError, BuiltFrom, RunningModel, equal_shape
from lora_registry.safetensors_header import DTYPE_BYTES
from lora_workers.base_models import read_base_profile

Stored = dict[str, tuple[str, tuple[int, ...]]]
PLAIN = llama_shapes(hidden=64, kv=32, intermediate=128, vocab=64)
LINEAR = [name for name, shape in PLAIN.items() if ".layers." in name and len(shape) == 2]


def build(stored: Stored, declared: dict[str, Any] | None, blobs: dict[str, bytes] | None = None) -> BaseProfile:
    """The profile of a base whose files hold these tensors."""
    fields: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in stored.items():
        size = DTYPE_BYTES[dtype]
        for length in shape:
            size *= length
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    header = header_of(with_header(json.dumps(fields).encode(), data=bytes(end)))
    config = make_base_config(**({"quantization_config": declared} if declared else {}))
    read = (lambda name: blobs[name]) if blobs is not None else None
    return profile_from_headers("tiny", config, [header], read_tensor=read)


def plain() -> Stored:
    """The unquantised model."""
    return {name: ("BF16", shape) for name, shape in PLAIN.items()}


def gptq(bits: int = 4) -> Stored:
    """Columns are packed along the inputs."""
    stored = {name: value for name, value in plain().items() if name not in LINEAR}
    for name in LINEAR:
        (out, in_), module = PLAIN[name], name.removesuffix(".weight")
        stored |= {
            f"{module}.qweight": ("I32", (in_ * bits // 32, out)),
            f"{module}.qzeros": ("I32", (in_ // 32, out * bits // 32)),
            f"{module}.scales": ("F16", (in_ // 32, out)),
            f"{module}.g_idx": ("I32", (in_,)),
        }
    return stored


def awq() -> Stored:
    """Columns are packed along the outputs."""
    stored = {name: value for name, value in plain().items() if name not in LINEAR}
    for name in LINEAR:
        (out, in_), module = PLAIN[name], name.removesuffix(".weight")
        stored |= {
            f"{module}.qweight": ("I32", (in_, out // 8)),
            f"{module}.qzeros": ("I32", (in_ // 32, out // 8)),
            f"{module}.scales": ("F16", (in_ // 32, out)),
        }
    return stored


def compressed(*, written: bool, group: int = 32) -> tuple[Stored, dict[str, bytes]]:
    """Packed along the inputs, the shape written beside it or told by the scales."""
    stored = {name: value for name, value in plain().items() if name not in LINEAR}
    blobs = {}
    for name in LINEAR:
        (out, in_), module = PLAIN[name], name.removesuffix(".weight")
        stored[f"{module}.weight_packed"] = ("I32", (out, in_ // 8))
        stored[f"{module}.weight_scale"] = ("BF16", (out, in_ // group))
        if written:
            stored[f"{module}.weight_shape"] = ("I64", (2,))
            blobs[f"{module}.weight_shape"] = out.to_bytes(8, "little") + in_.to_bytes(8, "little")
    return stored, blobs


def four_bits() -> tuple[Stored, dict[str, bytes]]:
    """bitsandbytes: all in one column, the shape in a state of its own."""
    stored = {name: value for name, value in plain().items() if name not in LINEAR}
    blobs = {}
    for name in LINEAR:
        out, in_ = PLAIN[name]
        state = f"{name}.quant_state.bitsandbytes__nf4"
        blobs[state] = json.dumps({"quant_type": "nf4", "blocksize": 64, "shape": [out, in_]}).encode()
        stored |= {
            name: ("U8", (out * in_ // 2, 1)),
            f"{name}.absmax": ("U8", (out * in_ // 64,)),
            f"{name}.quant_map": ("F32", (16,)),
            f"{name}.nested_absmax": ("F32", (1,)),
            f"{name}.nested_quant_map": ("F32", (256,)),
            state: ("U8", (len(blobs[state]),)),
        }
    return stored, blobs


GROUPS = {"quant_method": "compressed-tensors", "config_groups": {"0": {"weights": {"num_bits": 4, "group_size": 32}}}}
DYNAMIC = {"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*down_proj.*": {"bits": 8}}}
BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def fp8(suffix: str) -> Stored:
    """Weights of one byte each, with a scale."""
    scales = {f"{name.removesuffix('.weight')}.{suffix}": ("F32", (1,)) for name in LINEAR}
    return {name: ("F8_E4M3" if name in LINEAR else dtype, shape) for name, (dtype, shape) in plain().items()} | scales


def eight_bits() -> Stored:
    """bitsandbytes: weights of one byte each, with a scale for each output."""
    scales: Stored = {}
    for name in LINEAR:
        module = name.removesuffix(".weight")
        scales |= {f"{module}.SCB": ("F32", (PLAIN[name][0],)), f"{module}.weight_format": ("U8", ())}
    return {name: ("I8" if name in LINEAR else dtype, shape) for name, (dtype, shape) in plain().items()} | scales


@pytest.mark.parametrize(
    ("stored", "declared", "blobs"),
    [
        (gptq(), {"quant_method": "gptq", "bits": 4}, None),
        (gptq(8), {"quant_method": "gptq", "bits": 8}, None),
        (gptq(8), {"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*": {"bits": 8}}}, None),
        (awq(), {"quant_method": "awq", "bits": 4}, None),
        (awq(), {"quant_method": "AWQ", "w_bit": 4}, None),
        (fp8("weight_scale_inv"), {"quant_method": "fp8"}, None),
        (fp8("weight_scale"), {"quant_method": "compressed-tensors"}, None),
        (compressed(written=True)[0], GROUPS, compressed(written=True)[1]),
        (compressed(written=True)[0], {"quant_method": "compressed-tensors"}, compressed(written=True)[1]),
        (compressed(written=False)[0], GROUPS, None),
        (eight_bits(), {"quant_method": "bitsandbytes", "load_in_8bit": True}, None),
        (four_bits()[0], BNB4, four_bits()[1]),
    ],
)
def test_every_method_gives_the_shapes_of_the_plain_model(
    stored: Stored, declared: dict[str, Any], blobs: dict[str, bytes] | None
) -> None:
    """A quantised base has the modules and parameters of the plain one, so that the same adapters fit."""
    base, original = build(stored, declared, blobs), build(plain(), None)
    assert base.modules == original.modules
    assert base.parameters == original.parameters
    assert equal_shape(base, original)
    assert base.quantization == declared["quant_method"].lower()
    assert base.dtype == "BF16"


def contradicting(stored: Stored, ending: str, shape: tuple[int, ...]) -> Stored:
    """With another shape for the tensors whose names end so."""
    return {name: (dtype, shape if name.endswith(ending) else own) for name, (dtype, own) in stored.items()}


@pytest.mark.parametrize(
    ("stored", "declared", "blobs", "code"),
    [
        (gptq(), {"quant_method": "gptq"}, None, "BASE_QUANTIZED_UNSUPPORTED"),
        (gptq(), {"quant_method": "gptq", "bits": True}, None, "BASE_QUANTIZED_UNSUPPORTED"),
        (gptq(), {"quant_method": "aqlm"}, None, "BASE_QUANTIZED_UNSUPPORTED"),
        (gptq(), {"quant_method": "awq", "bits": 4}, None, "BASE_PROFILE_INVALID"),
        (awq(), {"quant_method": "gptq", "bits": 4}, None, "BASE_PROFILE_INVALID"),
        (gptq(), {"quant_method": "gptq", "bits": 8}, None, "BASE_PROFILE_INVALID"),
        (contradicting(gptq(), ".g_idx", (8,)), {"quant_method": "gptq", "bits": 4}, None, "BASE_PROFILE_INVALID"),
        (contradicting(gptq(), ".scales", (2, 8)), {"quant_method": "gptq", "bits": 4}, None, "BASE_PROFILE_INVALID"),
        (contradicting(gptq(), ".scales", ()), {"quant_method": "gptq", "bits": 4}, None, "BASE_PROFILE_INVALID"),
        (contradicting(gptq(), ".scales", ()), DYNAMIC, None, "BASE_PROFILE_INVALID"),
        (contradicting(gptq(), ".scales", (2, 8)), DYNAMIC, None, "BASE_PROFILE_INVALID"),
        (contradicting(gptq(), ".g_idx", (8,)), DYNAMIC, None, "BASE_PROFILE_INVALID"),
        (compressed(written=False)[0], {"quant_method": "compressed-tensors"}, None, "BASE_QUANTIZED_UNSUPPORTED"),
        (four_bits()[0], BNB4, None, "BASE_QUANTIZED_UNSUPPORTED"),
        (four_bits()[0], BNB4, dict.fromkeys(four_bits()[1], b"{"), "BASE_PROFILE_INVALID"),
        (four_bits()[0], BNB4, dict.fromkeys(four_bits()[1], b'{"shape":[3,5]}'), "BASE_PROFILE_INVALID"),
        (four_bits()[0], BNB4, dict.fromkeys(four_bits()[1], b'{"shape":[true,5]}'), "BASE_PROFILE_INVALID"),
        (four_bits()[0], None, None, "BASE_QUANTIZED_UNSUPPORTED"),
        (plain(), {"quant_method": 4}, None, "BASE_QUANTIZED_UNSUPPORTED"),
    ],
)
def test_what_cannot_be_told_is_refused(
    stored: Stored, declared: dict[str, Any] | None, blobs: dict[str, bytes] | None, code: str
) -> None:
    """Unknown methods, missing facts and sizes that disagree make no profile."""
    with pytest.raises(BaseProfileError) as caught:
        build(stored, declared, blobs)
    assert caught.value.findings[0].code == code


def test_the_running_model_stands_in_for_what_cannot_be_told() -> None:
    """Where the packed weights do not tell their shapes, those of the model that config.json describes count."""
    original = build(plain(), None)
    running = RunningModel(
        modules=original.modules,
        parameters=original.parameters,
        input_embedding="model.embed_tokens",
        output_embedding="lm_head",
    )
    config = make_base_config(quantization_config={"quant_method": "mxfp4"})
    header = header_of(with_header(b'{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', data=bytes(4)))
    base = profile_from_headers("tiny", config, [header], running=running)
    assert base.modules == original.modules
    assert base.built_from is BuiltFrom.MODEL
    assert equal_shape(base, original)


def test_files_that_contradict_the_configuration_are_refused() -> None:
    """Weights of another shape than config.json prescribes are not those of that model."""
    original = build(plain(), None)
    wider = RunningModel(modules=original.modules, parameters={"model.norm.weight": (65,)}, input_embedding="x")
    header = header_of(with_header(b'{"model.norm.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                                   b'"model.layers.0.a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},'
                                   b'"model.layers.1.a":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}',
                                   data=bytes(12)))  # fmt: skip
    with pytest.raises(BaseProfileError) as caught:
        profile_from_headers("tiny", make_base_config(), [header], running=wider)
    assert caught.value.findings[0].subject == "model.norm.weight"


REAL = PAYLOADS.parent / "quantized"
METHODS = {
    "bnb-nf4": "bitsandbytes",
    "bnb-fp4": "bitsandbytes",
    "bnb-int8": "bitsandbytes",
    "ct-w4a16": "compressed-tensors",
    "ct-w8a16": "compressed-tensors",
    "ct-fp8": "compressed-tensors",
    "ct-int8": "compressed-tensors",
    "gptq-w4": "gptq",
    "gptq-w8": "gptq",
    "gptq-mixed": "gptq",
    "awq-w4": "awq",
    "fp8-128": "fp8",
    "fp8": "fp8",
}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("with_model", [False, True], ids=["headers", "headers and model"])
@pytest.mark.parametrize("name", METHODS)
def test_what_the_real_libraries_write_has_the_plain_models_shapes(name: str, with_model: bool) -> None:
    """A checkpoint that a real library wrote fits the same adapters as the model it was made of."""
    profile = read_base_profile("tiny", REAL / name, with_model=with_model)
    assert profile.quantization == METHODS[name]
    assert equal_shape(profile, read_base_profile("tiny", REAL / "plain", with_model=with_model))
    assert profile.modules["model.layers.0.self_attn.k_proj"].weight_shape == (16, 32)
    assert profile.modules["model.layers.1.mlp.down_proj"].weight_shape == (32, 64)


@pytest.mark.parametrize("name", METHODS)
def test_adapters_are_judged_by_the_unpacked_shapes(name: str) -> None:
    """An adapter of the plain model fits its quantised form; one whose halves have the packed sizes does not."""
    base = read_base_profile("tiny", REAL / name)
    fitting = make_adapter(base=read_base_profile("tiny", REAL / "plain"), targets=PROJECTIONS)
    assert errors_of(fitting.check(base)) == []
    packed = {
        tensor: (out // 8, rank) for tensor, (out, rank) in fitting.shapes.items() if "down_proj.lora_B" in tensor
    }
    assert errors_of(fitting.with_tensors(packed).check(base)) == ["SHAPE_MISMATCH"] * 2
