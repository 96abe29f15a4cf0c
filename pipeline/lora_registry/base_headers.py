"""From the headers of a base model's weights, its config.json and, where it is known, its running model to its profile.

Nothing here reads weights. Files name some modules otherwise than the running model: without its outermost segment,
with the language model of a composite one in front, or with experts one by one. Where the running model is not known,
the usual renamings are applied; other architectures are then refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lora_registry import fit_codes
from lora_registry.base_profile import (
    BaseProfile,
    BaseProfileError,
    BuiltFrom,
    ModuleKind,
    ModuleShape,
    RunningModel,
)
from lora_registry.quantized_bases import ReadTensor, Shape, is_supported, quantization_method, unpacked_shapes
from lora_registry.renamed_modules import LANGUAGE_MODEL, composite_name, renamed_module
from lora_registry.safetensors_header import Header, TensorEntry
from lora_registry.stacked_experts import stack_experts
from lora_registry.tokenizer_maps import TokenizerMap

_CONV1D_MODEL_TYPES = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
"""Families whose projections are transformers' Conv1D.

Source: transformers/pytorch_utils.py and its users.
"""
_CONV1D_NAMES = {"c_attn", "c_proj", "c_fc", "q_attn"}
_EMBEDDING_NAMES = {
    "embed_tokens", "wte", "wpe", "embed_positions", "word_embeddings", "embed_in", "shared",
    "tok_embeddings", "tokens_embed", "positions_embed", "position_embeddings", "token_type_embeddings",
    "relative_attention_bias", "position_embedding",
}  # fmt: skip
_TOKEN_EMBEDDINGS = (
    "embed_tokens",
    "wte",
    "word_embeddings",
    "embed_in",
    "tok_embeddings",
    "shared",
    "tokens_embed",
)
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
_OUTER_NAME = {
    "h": "transformer",
    "wte": "transformer",
    "layers": "model",
    "decoder": "model",
    "embed_tokens": "model",
}
_FLOATS = {"F64", "F32", "F16", "BF16"}
_HEADS = ("lm_head", "embed_out")
_HEADED = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def profile_from_headers(
    name: str,
    config: dict[str, Any],
    headers: Sequence[Header],
    *,
    source: str = "",
    also_known_as: Sequence[str] = (),
    running: RunningModel | None = None,
    read_tensor: ReadTensor | None = None,
    tokenizer: TokenizerMap | None = None,
) -> BaseProfile:
    """Build the profile of a base model.

    Args:
        name: the base model's name in the registry. config: its config.json.
        headers: the headers of all its weight files, in any order.
        source, also_known_as: where the files are, and other names of the base.
        running: the model that config.json describes; without it, only usual architectures can be told.
        read_tensor: reads a small tensor by its name (the state of a 4-bit weight). tokenizer: the one beside them.

    Raises:
        BaseProfileError: the files are incomplete, contradictory, or of an unknown kind.
    """
    model_type, architecture = _identity(config, running)
    on_disk = _merged(headers)
    shapes = _plain_shapes(on_disk, config, running, read_tensor)
    shapes, num_layers = _declared_layers(config, shapes)
    if running is None:
        running, disk = _model_of_headers(shapes, config, model_type, architecture)
    else:
        disk = _checked(shapes, running, config)
    return BaseProfile(
        name=name,
        revision=_revision(config, on_disk),
        source=source,
        also_known_as=tuple(also_known_as),
        model_type=model_type,
        architecture=architecture,
        num_layers=num_layers,
        dtype=_usual_dtype([on_disk[key] for key in shapes if key in on_disk] or list(on_disk.values())),
        quantization=quantization_method(config),
        **_fields_of(running, disk),
    ).with_tokenizer(tokenizer)


def _fields_of(running: RunningModel, disk: dict[str, ModuleShape]) -> dict[str, Any]:
    """What a profile takes from the running model, and from the files where they have other names."""
    embedding = running.modules.get(running.input_embedding)
    if embedding is None:
        raise BaseProfileError.of(fit_codes.BASE_PROFILE_INVALID, message="The model has no embedding of input tokens.")
    return {
        "modules": running.modules,
        "disk_modules": disk,
        "parameters": running.parameters,
        "experts": running.experts,
        "bare_modules": running.bare_modules,
        "embedding_rows": embedding.in_features,
        "input_embedding": running.input_embedding,
        "output_embedding": running.output_embedding,
        "tied": running.tied,
        "built_from": BuiltFrom.HEADERS if running.built_of_headers else BuiltFrom.MODEL,
    }


def _identity(config: dict[str, Any], running: RunningModel | None) -> tuple[str, str]:
    model_type = config.get("model_type")
    architectures = config.get("architectures")
    if not isinstance(model_type, str) or not model_type:
        raise BaseProfileError.of(
            fit_codes.BASE_PROFILE_INVALID, "model_type", "config.json does not name a model_type."
        )
    if not isinstance(architectures, list) or len(architectures) != 1 or not isinstance(architectures[0], str):
        message = "config.json does not name exactly one architecture."
        raise BaseProfileError.of(fit_codes.BASE_PROFILE_INVALID, "architectures", message)
    if running is None and (config.get("is_encoder_decoder") or config.get("decoder")):
        raise BaseProfileError.of(fit_codes.BASE_ARCHITECTURE_UNSUPPORTED, "is_encoder_decoder")
    return model_type, architectures[0]


def _merged(headers: Sequence[Header]) -> dict[str, TensorEntry]:
    merged: dict[str, TensorEntry] = {}
    for header in headers:
        twice = merged.keys() & header.tensors.keys()
        if twice:
            message = "The tensor is in two of the weights' files."
            raise BaseProfileError.of(fit_codes.BASE_PROFILE_INVALID, min(twice), message)
        merged.update(header.tensors)
    if not merged:
        raise BaseProfileError.of(fit_codes.BASE_PROFILE_INVALID, message="There are no tensors in the weights' files.")
    return merged


def _plain_shapes(
    on_disk: dict[str, TensorEntry], config: dict[str, Any], running: RunningModel | None, read: ReadTensor | None
) -> dict[str, Shape]:
    """The shapes of the unpacked weights; a running model stands in for those that the files do not tell."""
    kept = {key: entry for key, entry in on_disk.items() if not _is_buffer(key, entry)}
    method = quantization_method(config)
    try:
        return unpacked_shapes(kept, config, read)
    except BaseProfileError as error:
        if running is None or method is None or error.findings[0].code != fit_codes.BASE_QUANTIZED_UNSUPPORTED.code:
            raise
    if not is_supported(method):
        return {}
    return {key: shape for key, shape in ((key, running.parameters.get(key)) for key in kept) if shape is not None}


def _is_buffer(key: str, entry: TensorEntry) -> bool:
    """Masks, rotary frequencies and what balances a router's load; they are no parameters."""
    return key.endswith(("rotary_emb.inv_freq", ".gate.e_score_correction_bias")) or (
        len(entry.shape) != 1 and key.endswith(_BUFFERS)
    )


def _layer_of(key: str) -> int | None:
    parts = key.split(".")
    return next((int(part) for part in parts[:-1] if part.isdecimal()), None)


def _declared_layers(config: dict[str, Any], shapes: dict[str, Shape]) -> tuple[dict[str, Shape], int]:
    """The tensors without layers beyond the declared number, and that number."""
    text = config.get("text_config")
    declaring = text if isinstance(text, dict) else config
    declared = next((declaring[field] for field in _LAYER_COUNTS if field in declaring), None)
    if type(declared) is not int or declared < 1:
        message = "config.json does not say how many layers the model has."
        raise BaseProfileError.of(fit_codes.BASE_PROFILE_INVALID, "num_hidden_layers", message)
    found = {layer for key in shapes if (layer := _layer_of(key)) is not None}
    absent = next((layer for layer in range(declared) if layer not in found), None) if shapes else None
    if absent is not None:
        message = f"config.json announces {declared} layers, but the weights have none for layer {absent}."
        raise BaseProfileError.of(fit_codes.BASE_PROFILE_INVALID, "num_hidden_layers", message)
    if declaring is not config:
        return shapes, declared  # the other parts of a composite model have layers of their own
    return {key: shape for key, shape in shapes.items() if (_layer_of(key) or 0) < declared}, declared


def _model_of_headers(
    shapes: dict[str, Shape], config: dict[str, Any], model_type: str, architecture: str
) -> tuple[RunningModel, dict[str, ModuleShape]]:
    """The running model as far as the files tell it, and the modules that it names otherwise."""
    named = _running_names(shapes, config, architecture)
    modules, parameters = _sorted_shapes(named, model_type)
    disk, experts = stack_experts(modules)
    for module in disk:
        del modules[module]
    if _is_composite(config) or any(_renamed(key) != key for key in shapes):
        stored, _ = _sorted_shapes(shapes, model_type)
        disk = {name: shape for name, shape in stored.items() if name not in modules}
    embedding = _input_embedding(modules)
    tied = _add_tied_head(modules, embedding, config, architecture)
    head = next((name for name in _HEADS if name in modules), "")
    parameters.update({key: (each.experts, each.out_features, each.in_features) for key, each in experts.items()})
    model = RunningModel(modules, parameters, experts, embedding, head, tied, built_of_headers=True)
    return model, disk


def _running_names(shapes: dict[str, Shape], config: dict[str, Any], architecture: str) -> dict[str, Shape]:
    """Names as in the running model: weights saved from the inner model lack the outer one's first segment."""
    if _is_composite(config):
        if not any(key.startswith(LANGUAGE_MODEL) for key in shapes):
            raise BaseProfileError.of(fit_codes.BASE_ARCHITECTURE_UNSUPPORTED, "text_config")
        return {composite_name(key): shape for key, shape in shapes.items()}
    if architecture.endswith("Model") and not architecture.endswith(_HEADED):
        return shapes
    if not any(key.partition(".")[0] in _OUTER_NAME for key in shapes):
        return {_renamed(key): shape for key, shape in shapes.items()}
    outer = next(_OUTER_NAME[first] for key in shapes if (first := key.partition(".")[0]) in _OUTER_NAME)
    return {
        key if key.startswith(("lm_head.", "score.", "classifier.", "embed_out.")) else f"{outer}.{key}": shape
        for key, shape in shapes.items()
    }


def _renamed(key: str) -> str:
    """A name that transformers changed in version 5. Source: transformers/conversion_mapping.py (5.23.0)."""
    if key.startswith("embed_out."):
        return f"lm_head.{key.removeprefix('embed_out.')}"
    return renamed_module(key)


def _sorted_shapes(
    shapes: Mapping[str, Shape], model_type: str
) -> tuple[dict[str, ModuleShape], dict[str, tuple[int, ...]]]:
    modules: dict[str, ModuleShape] = {}
    parameters: dict[str, tuple[int, ...]] = {}
    for key, shape in shapes.items():
        module, _, parameter = key.rpartition(".")
        if parameter != "weight" or len(shape) != 2:
            parameters[key] = shape
            continue
        kind = _kind(module.rpartition(".")[2], model_type)
        out, in_ = shape if kind is ModuleKind.LINEAR else shape[::-1]
        modules[module] = ModuleShape(out_features=out, in_features=in_, kind=kind)
    return modules, parameters


def _checked(shapes: dict[str, Shape], running: RunningModel, config: dict[str, Any]) -> dict[str, ModuleShape]:
    """The modules that only the files name so.

    Raises:
        BaseProfileError: the files and config.json do not describe one model.
    """
    profile = {f"{name}.weight": module.weight_shape for name, module in running.modules.items()} | running.parameters
    for key, shape in shapes.items():
        if profile.get(key, shape) != shape:
            raise BaseProfileError.of(
                fit_codes.BASE_PROFILE_INVALID,
                key,
                "The weights do not have the shape that config.json prescribes.",
                expected=list(profile[key]),
                actual=list(shape),
            )
    head = running.output_embedding.rpartition(".")[2]
    stored = tuple(f"{name}.weight" for name in (head, *_HEADS))
    if shapes and head and not running.tied and not any(key.endswith(stored) for key in shapes):
        message = "The output head has no weight and is not tied to the embedding; a weights' file may be missing."
        raise BaseProfileError.of(fit_codes.BASE_PROFILE_INVALID, f"{running.output_embedding}.weight", message)
    modules, _ = _sorted_shapes(shapes, config["model_type"])
    outer = () if _is_composite(config) else {name.partition(".")[0] for name in running.modules}
    return {
        name: shape
        for name, shape in modules.items()
        if f"{name}.weight" not in profile and not any(f"{first}.{name}.weight" in profile for first in outer)
    }


def _is_composite(config: dict[str, Any]) -> bool:
    return any(isinstance(config.get(part), dict) for part in ("text_config", "vision_config"))


def _kind(last_segment: str, model_type: str) -> ModuleKind:
    if last_segment in _EMBEDDING_NAMES:
        return ModuleKind.EMBEDDING
    if model_type in _CONV1D_MODEL_TYPES and last_segment in _CONV1D_NAMES:
        return ModuleKind.CONV1D
    return ModuleKind.LINEAR


def _input_embedding(modules: dict[str, ModuleShape]) -> str:
    for last_segment in _TOKEN_EMBEDDINGS:
        for module, shape in modules.items():
            if module.rpartition(".")[2] == last_segment and shape.kind is ModuleKind.EMBEDDING:
                return module
    raise BaseProfileError.of(
        fit_codes.BASE_PROFILE_INVALID, message="The weights hold no embedding of the input tokens."
    )


def _add_tied_head(modules: dict[str, ModuleShape], embedding: str, config: dict[str, Any], architecture: str) -> bool:
    """Add lm_head where it has no weight of its own; tell whether it shares the embedding's."""
    declared = config.get("tie_word_embeddings")
    if "lm_head" in modules or not architecture.endswith(_HEADED) or "embed_out" in modules:
        return "lm_head" in modules and declared is True
    if declared is False:
        message = "lm_head has no weight and is not tied to the embedding; a weights' file may be missing."
        raise BaseProfileError.of(fit_codes.BASE_PROFILE_INVALID, "lm_head.weight", message)
    rows = modules[embedding]
    modules["lm_head"] = ModuleShape(out_features=rows.in_features, in_features=rows.out_features)
    return True


def _usual_dtype(entries: Sequence[TensorEntry]) -> str:
    """The dtype of most matrices; that of most other tensors where all matrices are packed."""
    floating = [entry for entry in entries if entry.dtype in _FLOATS]
    dtypes = [entry.dtype for entry in floating if len(entry.shape) == 2] or [entry.dtype for entry in floating]
    return max(sorted(set(dtypes)), key=dtypes.count) if dtypes else ""


def _revision(config: dict[str, Any], on_disk: dict[str, TensorEntry]) -> str:
    tensors = [[key, entry.dtype, list(entry.shape)] for key, entry in sorted(on_disk.items())]
    try:
        text = json.dumps([config, tensors], sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise BaseProfileError.of(fit_codes.BASE_PROFILE_INVALID, "config.json", "It is not plain JSON.") from exc
    return hashlib.sha256(text.encode("ascii")).hexdigest()
