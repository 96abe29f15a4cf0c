"""What each tensor of an adapter is to the numeric pass: which half of which module, with which scale."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from lora_registry.adapter_config import AdapterConfig
from lora_registry.base_profile import BaseProfile
from lora_registry.findings import Finding
from lora_registry.layer_replication import replicate
from lora_registry.safetensors_header import Header, TensorEntry
from lora_registry.target_parameters import WrappedParameter, wrap_parameters
from lora_registry.target_selection import select_targets, with_fused_experts
from lora_registry.tensor_roles import Role, SortedTensors, sort_tensors

LARGEST_RANK = 1024
"""Products of a larger rank are not measured: their r x r matrices would be larger than the halves themselves."""

_PAIRS = ((Role.A, Role.B), (Role.EMBEDDING_A, Role.EMBEDDING_B))


class Half(Enum):
    """Which factor of a product a tensor is."""

    A = auto()
    """`[experts · rank, in_features]`, expert by expert."""
    B = auto()
    """`[out_features, rank · experts]`, the expert's number running fastest.

    Source: ParamWrapper.get_delta_weight in peft/tuners/lora/layer.py (PEFT 0.21.2).
    """


@dataclass(frozen=True, slots=True)
class Product:
    """One module's change, s·B·A.

    Attributes:
        module: its name (or the parameter's) without the prefix base_model.model.
        scale: s, by rank_pattern, alpha_pattern and use_rslora.
        rank: of one expert's halves.
        experts: number of products side by side; 1 but for fused experts.
        a: the first half.
        b: the second half.
    """

    module: str
    scale: float
    rank: int
    experts: int
    a: TensorEntry
    b: TensorEntry

    @property
    def elements(self) -> int:
        """Elements of the changed weight, all experts together."""
        return self.b.shape[0] * self.a.shape[1] * self.experts

    @property
    def family(self) -> str:
        """Last part of the module's name."""
        return self.module.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor.

    Attributes:
        entry: where it is.
        product: the number in `Plan.products` that it is a half of; -1 for others.
        half: which half.
    """

    entry: TensorEntry
    product: int = -1
    half: Half | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of a slice along the first dimension."""
        return (self.entry.end - self.entry.begin) // (self.entry.shape[0] if self.entry.shape else 1)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything to measure.

    Attributes:
        parts: every tensor, in the order of their bytes.
        products: the modules whose halves are both there.
        magnitudes: the DoRA magnitude vectors.
    """

    parts: tuple[Part, ...]
    products: tuple[Product, ...]
    magnitudes: tuple[TensorEntry, ...]


def make_plan(config: AdapterConfig, header: Header, base: BaseProfile) -> Plan:
    """Plan the pass over an adapter whose structure is right."""
    entries = sorted(header.tensors.values(), key=lambda entry: entry.begin)
    tensors = sort_tensors(entries, at_most=len(entries))
    products = _products(config, base, tensors)
    halves: dict[str, tuple[int, Half]] = {}
    for number, product in enumerate(products):
        if product.rank <= LARGEST_RANK:
            halves[product.a.name] = number, Half.A
            halves[product.b.name] = number, Half.B
    return Plan(
        tuple(Part(entry, *halves.get(entry.name, (-1, None))) for entry in entries),
        tuple(products),
        tuple(roles[Role.MAGNITUDE] for roles in tensors.lora.values() if Role.MAGNITUDE in roles),
    )


def _products(config: AdapterConfig, base: BaseProfile, tensors: SortedTensors) -> list[Product]:
    config = with_fused_experts(config, base) or config
    wrapped = _wrapped_parameters(config, base)
    ranks, alphas = config.ranks(), config.alphas()
    products = []
    for module, roles in tensors.lora.items():
        parameter = wrapped.get(module)
        name, experts = (parameter.parameter, parameter.experts) if parameter else (module, 1)
        rank = ranks.of(name)
        scale = config.scale(alpha=alphas.of(name), rank=rank)
        for first, second in _PAIRS:
            if first in roles and second in roles:
                products.append(Product(name, scale, rank, experts, roles[first], roles[second]))
    return products


def _wrapped_parameters(config: AdapterConfig, base: BaseProfile) -> dict[str, WrappedParameter]:
    """Parameters that are changed without a module of their own, by the name that their tensors have."""
    if not config.target_parameters:
        return {}
    if config.layer_replication:
        deeper = replicate(base, config.layer_replication)
        base = base if isinstance(deeper, Finding) else deeper
    return wrap_parameters(config, base, select_targets(config, base)).by_name
