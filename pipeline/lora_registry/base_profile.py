"""The shape profile of a base model: everything that an adapter's tensors are compared with, and no weights.

Modules have the names they have in the running model, which is what adapters use; names that only the files have are
kept beside them, because adapters that were trained with an older transformers carry those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from lora_registry.code import Code
from lora_registry.errors import Rejected
from lora_registry.tokenizer_maps import TokenizerMap, stored_digest

PROFILE_SCHEMA = 1


class BaseProfileError(Rejected):
    """The base model's files do not make a profile."""

    code = "BASE_PROFILE_INVALID"

    @classmethod
    def of(cls, code: Code, subject: str = "", message: str = "", **shown: object) -> BaseProfileError:
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


class ExpertShape(BaseModel):
    """The sizes of a parameter that stacks the matrices of all experts of a layer.

    Attributes:
        experts: number of experts; the parameter's first dimension.
        out_features, in_features: sizes of one expert's matrix.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    experts: int
    out_features: int
    in_features: int


class BuiltFrom(StrEnum):
    """What a profile was made from."""

    HEADERS = "headers"
    """The headers of the weights alone."""
    MODEL = "headers+model"
    """The headers, and the model that config.json describes."""


@dataclass(frozen=True)
class RunningModel:
    """The shapes of a model that was made from config.json without weights.

    Attributes:
        modules: every module with a two-dimensional weight that an adapter may replace.
        parameters: shape of every other parameter, in the order in which its module has them.
        experts: those parameters that stack experts.
        input_embedding, output_embedding: names of these modules; "" if there is none.
        tied: whether both share one weight.
        bare_modules: names of the modules that hold no parameter, such as activations.
        built_of_headers: whether the weights' files were all there was to make it from.
    """

    modules: dict[str, ModuleShape] = field(default_factory=dict)
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    experts: dict[str, ExpertShape] = field(default_factory=dict)
    input_embedding: str = ""
    output_embedding: str = ""
    tied: bool = False
    bare_modules: tuple[str, ...] = ()
    built_of_headers: bool = False


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
        disk_modules: modules that only the files name so, such as single experts that the running model stacks.
        parameters: shape of every other parameter (norms, biases, …), by its name in the running model.
        experts: those parameters that stack the matrices of experts.
        bare_modules: names of the modules that hold no parameter, such as activations; headers do not tell them.
        num_layers: layers of the model.
        embedding_rows: rows of the input embedding, at least the size of the vocabulary.
        input_embedding: name of the module that embeds the input tokens.
        output_embedding: name of the module that gives the logits; "" if there is none.
        tied: whether that shares the weight of the input embedding.
        dtype: dtype of most projections, as safetensors calls it.
        quantization: method, None for plain weights; all shapes are those of the unpacked weights.
        tokenizer_digest: digest of the map from token to id, "" if the tokenizer is not known.
        tokenizer_size: one more than the tokenizer's largest id.
        tokenizer_stored: digest of everything that is kept of the tokenizer; see `TokenizerMap.stored`.
        tokenizer: the map itself, where it is at hand; it is kept beside the profile, which every validation reads.
        built_from: what the profile was made from.
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
    disk_modules: dict[str, ModuleShape] = {}
    parameters: dict[str, tuple[int, ...]] = {}
    experts: dict[str, ExpertShape] = {}
    bare_modules: tuple[str, ...] = ()
    num_layers: int
    embedding_rows: int
    input_embedding: str
    output_embedding: str = ""
    tied: bool = False
    dtype: str = "BF16"
    quantization: str | None = None
    tokenizer_digest: str = ""
    tokenizer_size: int = 0
    tokenizer_stored: str = ""
    tokenizer: Annotated[TokenizerMap | None, SkipValidation] = Field(default=None, exclude=True, repr=False)
    built_from: BuiltFrom = BuiltFrom.HEADERS

    @property
    def names(self) -> frozenset[str]:
        """Names under which adapters and engines may know the base; a hub source counts without scheme and revision."""
        source = self.source.removeprefix("hf://").partition("@")[0].rstrip("/")
        return frozenset({self.name, self.source, source, *self.also_known_as})

    def with_tokenizer(self, tokenizer: TokenizerMap | None) -> BaseProfile:
        """The same profile with this tokenizer, or without one."""
        if tokenizer is None or not tokenizer.ids:
            absent = {"tokenizer": None, "tokenizer_digest": "", "tokenizer_size": 0, "tokenizer_stored": ""}
            return self.model_copy(update=absent)
        present = {
            "tokenizer": tokenizer,
            "tokenizer_digest": tokenizer.digest,
            "tokenizer_size": tokenizer.size,
            "tokenizer_stored": stored_digest(tokenizer.stored),
        }
        return self.model_copy(update=present)

    def module(self, name: str) -> ModuleShape | None:
        """The shape of a module by either of its names; None if there is no such one."""
        return self.modules.get(name) or self.disk_modules.get(name)

    def parameter_shape(self, name: str) -> tuple[int, ...] | None:
        """The stored shape of a parameter, such as lm_head.weight; None if there is no such one."""
        if name.endswith(".weight"):
            module = self.modules.get(name[: -len(".weight")])
            if module is not None:
                return module.weight_shape
        return self.parameters.get(name)

    def is_convolution(self, name: str) -> bool:
        """Whether a module's weight has two dimensions and those of a kernel of two or three."""
        return len(self.parameters.get(f"{name}.weight", ())) in (4, 5)

    def parameter_names(self) -> Iterator[str]:
        """The names of all parameters, by module; those of a module in the order in which it has them."""
        for module in self.modules:
            yield f"{module}.weight"
        yield from self.parameters


def modules_around(parameters: Iterable[str]) -> set[str]:
    """All modules that hold one of the parameters, themselves or within them."""
    holders: set[str] = set()
    for parameter in parameters:
        module = parameter.rpartition(".")[0]
        while module and module not in holders:
            holders.add(module)
            module = module.rpartition(".")[0]
    return holders


def equal_shape(one: BaseProfile, other: BaseProfile) -> bool:
    """Whether every adapter that fits one profile fits the other.

    Names, sources, dtypes and the way of quantising do not count. A profile that was made from headers alone is equal
    to one that was made with the model too if the latter knows all its names, with the same shapes.
    """
    if (one.model_type, one.num_layers, one.embedding_rows) != (
        other.model_type,
        other.num_layers,
        other.embedding_rows,
    ):
        return False
    if one.tied != other.tied:
        return False
    if one.built_from is other.built_from:
        return (
            one.input_embedding == other.input_embedding
            and one.modules == other.modules
            and one.parameters == other.parameters
            and one.experts == other.experts
        )
    fewer, more = (one, other) if one.built_from is BuiltFrom.HEADERS else (other, one)
    return all(_known(name, shape, more) for name, shape in fewer.modules.items()) and all(
        more.parameter_shape(name) == shape for name, shape in fewer.parameters.items()
    )


def _known(name: str, shape: ModuleShape, more: BaseProfile) -> bool:
    """Whether a module's shape is the same there; what headers take for a projection may be a router."""
    there = more.module(name)
    if there is None:
        return more.parameter_shape(f"{name}.weight") == shape.weight_shape
    return there.weight_shape == shape.weight_shape and there.in_features == shape.in_features
