"""What an adapter changes of its base model by its configuration, worked out once for a whole comparison."""

from __future__ import annotations

from dataclasses import dataclass

from lora_registry import file_codes
from lora_registry.adapter_config import AdapterConfig
from lora_registry.base_profile import BaseProfile
from lora_registry.findings import Finding
from lora_registry.layer_replication import replicate
from lora_registry.module_patterns import PatternTable
from lora_registry.target_parameters import WrappedParameters, wrap_parameters
from lora_registry.target_selection import TargetNames, saved_names, select_targets, with_fused_experts


@dataclass(frozen=True)
class ChangedParts:
    """The parts of a base model that an adapter's configuration selects.

    Attributes:
        config: the configuration as PEFT converts it for the base.
        base: the base, with its layers stacked as layer_replication says.
        targets: the modules that get a LoRA.
        saved: endings of the modules that are saved whole.
        wrapped: the parameters that get a LoRA without a module of their own.
        ranks: the rank of every module and parameter.
    """

    config: AdapterConfig
    base: BaseProfile
    targets: TargetNames
    saved: tuple[str, ...]
    wrapped: WrappedParameters
    ranks: PatternTable[int]


def changed_parts(config: AdapterConfig, base: BaseProfile) -> ChangedParts | Finding:
    """What the configuration changes of the base, or why PEFT can change nothing at all."""
    converted = with_fused_experts(config, base)
    if converted is None:
        return file_codes.EXPERTS_HALF_FUSED.finding("target_modules")
    if config.layer_replication:
        deeper = replicate(base, config.layer_replication)
        if isinstance(deeper, Finding):
            return deeper
        base = deeper
    targets = select_targets(converted, base)
    wrapped = wrap_parameters(converted, base, targets)
    return ChangedParts(converted, base, targets, saved_names(converted, base), wrapped, converted.ranks())
