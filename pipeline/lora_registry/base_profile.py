"""The shape profile of a base model: everything that an adapter's tensors are compared with, and no weights.

It is built once for a revision of the base from its config.json and the headers of its weights. Modules have
the names they have in the running model, which is what adapters use.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from lora_registry import codes
from lora_registry.errors import Rejected
from lora_registry.safetensors_header import Header, TensorEntry

PROFILE_SCHEMA = 1

_FLOATS = {"F64", "F32", "F16", "BF16"}
_CONV1D_MODEL_TYPES = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
"""Families whose projections are transformers' Conv1D.

Source: transformers/pytorch_utils.py and its users.
"""
_CONV1D_NAMES = {"c_attn", "c_proj", "c_fc", "q_attn"}
_EMBEDDING_NAMES = {
    "embed_tokens", "wte", "wpe", "embed_positions", "word_embeddings", "embed_in", "shared",
    "tok_embeddings", "tokens_embed", "positions_embed", "position_embeddings", "token_type_embeddings",
    "relative_attention_bias",
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
_HEADED = ("ForCausalLM", "LMHeadModel")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


class BaseProfileError(Rejected):
    """The base model's files do not make a profile."""

    code = "BASE_PROFILE_INVALID"

    @classmethod
    def of(cls, code: codes.Code, subject: str = "", message: str = "", **shown: object) -> BaseProfileError:
        """The error that carries one finding of `code`; `shown` may hold `expected` and `actual`."""
        finding = code.finding(subject, message, **shown)  # type: ignore[arg-type]
        return cls(f"{subject}: {finding.message}" if subject else finding.message, findings=(finding,))


class ModuleKind(StrEnum):
    """How a module stores its weight."""

    LINEAR = "linear"
    """`[out_features, in_features]`"""
    CONV1D = "conv1d"
    """`[in_features, out_features]`, as in GPT-2"""
    EMBEDDING = "embedding"
    """`[in_features, out_features]`: rows × width"""


class ModuleShape(BaseModel):
    """The sizes of a module with a two-dimensional weight.

    Attributes:
        out_features: length of the module's output; the width of an embedding.
        in_features: length of its input; the rows of an embedding.
        kind: how the weight is stored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    out_features: int
    in_features: int
    kind: ModuleKind = ModuleKind.LINEAR

    @property
    def weight_shape(self) -> tuple[int, int]:
        """The shape of the weight as it is stored."""
        if self.kind is ModuleKind.LINEAR:
            return (self.out_features, self.in_features)
        return (self.in_features, self.out_features)


class BaseProfile(BaseModel):
    """The shapes of one revision of a base model.

    Attributes:
        schema_version: version of this form.
        name: the base model's name in the registry.
        revision: SHA-256 (hexadecimal) over config.json and the names, dtypes and shapes of all tensors.
        source: where the base's files are, in the operator's words.
        also_known_as: other names that adapters give for it in base_model_name_or_path.
        model_type: family, such as llama. architecture: class, such as LlamaForCausalLM.
        modules: every module with a two-dimensional weight, by its name in the running model.
        parameters: shape of every other parameter (norms, biases, …), by its name in the running model.
        num_layers: layers of the model.
        embedding_rows: rows of the input embedding, at least the size of the vocabulary.
        input_embedding: name of the module that embeds the input tokens.
        tied: whether lm_head shares the weight of the input embedding.
        dtype: dtype of most projections, as safetensors calls it.
        quantization: method, None for plain weights.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    schema_version: int = PROFILE_SCHEMA
    name: str
    revision: str
    source: str = ""
    also_known_as: tuple[str, ...] = ()
    model_type: str
    architecture: str
    modules: dict[str, ModuleShape]
    parameters: dict[str, tuple[int, ...]] = {}
    num_layers: int
    embedding_rows: int
    input_embedding: str
    tied: bool = False
    dtype: str = "BF16"
    quantization: str | None = None

    def parameter_shape(self, name: str) -> tuple[int, ...] | None:
        """The stored shape of a parameter, such as lm_head.weight; None if there is no such one."""
        if name.endswith(".weight"):
            module = self.modules.get(name[: -len(".weight")])
            if module is not None:
                return module.weight_shape
        return self.parameters.get(name)


def equal_shape(one: BaseProfile, other: BaseProfile) -> bool:
    """Whether every adapter that fits one profile fits the other: names, sources and dtypes do not count."""
    return (
        one.model_type == other.model_type
        and one.num_layers == other.num_layers
        and one.embedding_rows == other.embedding_rows
        and one.input_embedding == other.input_embedding
        and one.tied == other.tied
        and one.modules == other.modules
        and one.parameters == other.parameters
    )


def profile_from_headers(
    name: str,
    config: dict[str, Any],
    headers: Sequence[Header],
    *,
    source: str = "",
    also_known_as: Sequence[str] = (),
) -> BaseProfile:
    """Build the profile of a dense, unquantised, text-only base model.

    Args:
        name: the base model's name in the registry.
        config: its config.json.
        headers: the headers of all its weight files, in any order.
        source, also_known_as: where the files are, and other names of the base.

    Raises:
        BaseProfileError: the files are quantised, incomplete, contradictory, or of an unknown kind.
    """
    model_type, architecture = _identity(config)
    on_disk = _merged(headers)
    entries, num_layers = _declared_layers(config, _running_names(on_disk, architecture))
    modules, parameters = _shapes(entries, model_type)
    embedding = _input_embedding(modules)
    tied = _add_tied_head(modules, embedding, config, architecture)
    return BaseProfile(
        name=name,
        revision=_revision(config, on_disk),
        source=source,
        also_known_as=tuple(also_known_as),
        model_type=model_type,
        architecture=architecture,
        modules=modules,
        parameters=parameters,
        num_layers=num_layers,
        embedding_rows=modules[embedding].in_features,
        input_embedding=embedding,
        tied=tied,
        dtype=_usual_dtype(entries),
    )


def _identity(config: dict[str, Any]) -> tuple[str, str]:
    if config.get("quantization_config"):
        raise BaseProfileError.of(codes.BASE_QUANTIZED_UNSUPPORTED, "quantization_config")
    composite = next((part for part in ("text_config", "vision_config", "decoder") if config.get(part)), None)
    if composite is not None or config.get("is_encoder_decoder"):
        raise BaseProfileError.of(codes.BASE_ARCHITECTURE_UNSUPPORTED, composite or "is_encoder_decoder")
    model_type = config.get("model_type")
    architectures = config.get("architectures")
    if not isinstance(model_type, str) or not model_type:
        raise BaseProfileError.of(codes.BASE_PROFILE_INVALID, "model_type", "config.json does not name a model_type.")
    if not isinstance(architectures, list) or len(architectures) != 1 or not isinstance(architectures[0], str):
        message = "config.json does not name exactly one architecture."
        raise BaseProfileError.of(codes.BASE_PROFILE_INVALID, "architectures", message)
    return model_type, architectures[0]


def _merged(headers: Sequence[Header]) -> dict[str, TensorEntry]:
    merged: dict[str, TensorEntry] = {}
    for header in headers:
        twice = merged.keys() & header.tensors.keys()
        if twice:
            message = "The tensor is in two of the weights' files."
            raise BaseProfileError.of(codes.BASE_PROFILE_INVALID, min(twice), message)
        merged.update(header.tensors)
    if not merged:
        raise BaseProfileError.of(codes.BASE_PROFILE_INVALID, message="There are no tensors in the weights' files.")
    return merged


def _running_names(on_disk: dict[str, TensorEntry], architecture: str) -> dict[str, TensorEntry]:
    """Names as in the running model:

    weights saved from the inner model lack the outer one's first segment.
    """
    entries = {key: entry for key, entry in on_disk.items() if not _is_buffer(key, entry)}
    if architecture.endswith("Model") and not architecture.endswith(_HEADED):
        return entries
    if not any(key.partition(".")[0] in _OUTER_NAME for key in entries):
        return entries
    outer = next(_OUTER_NAME[first] for key in entries if (first := key.partition(".")[0]) in _OUTER_NAME)
    return {
        key if key.startswith(("lm_head.", "score.", "classifier.", "embed_out.")) else f"{outer}.{key}": entry
        for key, entry in entries.items()
    }


def _is_buffer(key: str, entry: TensorEntry) -> bool:
    """Masks and rotary frequencies that old checkpoints hold; they are no parameters."""
    return key.endswith("rotary_emb.inv_freq") or (len(entry.shape) != 1 and key.endswith(_BUFFERS))


def _layer_of(key: str) -> int | None:
    parts = key.split(".")
    return next((int(part) for part in parts[:-1] if part.isdecimal()), None)


def _declared_layers(config: dict[str, Any], entries: dict[str, TensorEntry]) -> tuple[dict[str, TensorEntry], int]:
    """The tensors without layers beyond the declared number, and that number."""
    declared = next((config[field] for field in _LAYER_COUNTS if field in config), None)
    if type(declared) is not int or declared < 1:
        message = "config.json does not say how many layers the model has."
        raise BaseProfileError.of(codes.BASE_PROFILE_INVALID, "num_hidden_layers", message)
    found = {layer for key in entries if (layer := _layer_of(key)) is not None}
    absent = next((layer for layer in range(declared) if layer not in found), None)
    if absent is not None:
        message = f"config.json announces {declared} layers, but the weights have none for layer {absent}."
        raise BaseProfileError.of(codes.BASE_PROFILE_INVALID, "num_hidden_layers", message)
    kept = {key: entry for key, entry in entries.items() if (_layer_of(key) or 0) < declared}
    return kept, declared


def _shapes(
    entries: dict[str, TensorEntry], model_type: str
) -> tuple[dict[str, ModuleShape], dict[str, tuple[int, ...]]]:
    modules: dict[str, ModuleShape] = {}
    parameters: dict[str, tuple[int, ...]] = {}
    for key, entry in entries.items():
        if entry.dtype not in _FLOATS:
            raise BaseProfileError.of(codes.BASE_QUANTIZED_UNSUPPORTED, key, actual=entry.dtype)
        module, _, parameter = key.rpartition(".")
        if parameter != "weight" or len(entry.shape) != 2:
            parameters[key] = entry.shape
            continue
        kind = _kind(module.rpartition(".")[2], model_type)
        first, second = entry.shape
        out, in_ = (first, second) if kind is ModuleKind.LINEAR else (second, first)
        modules[module] = ModuleShape(out_features=out, in_features=in_, kind=kind)
    return modules, parameters


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
    raise BaseProfileError.of(codes.BASE_PROFILE_INVALID, message="The weights hold no embedding of the input tokens.")


def _add_tied_head(modules: dict[str, ModuleShape], embedding: str, config: dict[str, Any], architecture: str) -> bool:
    """Add lm_head where it has no weight of its own; tell whether it shares the embedding's."""
    declared = config.get("tie_word_embeddings")
    if "lm_head" in modules or not architecture.endswith(_HEADED) or "embed_out" in modules:
        return "lm_head" in modules and declared is True
    if declared is False:
        message = "lm_head has no weight and is not tied to the embedding; a weights' file may be missing."
        raise BaseProfileError.of(codes.BASE_PROFILE_INVALID, "lm_head.weight", message)
    rows = modules[embedding]
    modules["lm_head"] = ModuleShape(out_features=rows.in_features, in_features=rows.out_features)
    return True


def _usual_dtype(entries: dict[str, TensorEntry]) -> str:
    dtypes = [entry.dtype for entry in entries.values() if len(entry.shape) == 2]
    return max(sorted(set(dtypes)), key=dtypes.count)


def _revision(config: dict[str, Any], on_disk: dict[str, TensorEntry]) -> str:
    tensors = [[key, entry.dtype, list(entry.shape)] for key, entry in sorted(on_disk.items())]
    try:
        text = json.dumps([config, tensors], sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise BaseProfileError.of(codes.BASE_PROFILE_INVALID, "config.json", "It is not plain JSON.") from exc
    return hashlib.sha256(text.encode("ascii")).hexdigest()
