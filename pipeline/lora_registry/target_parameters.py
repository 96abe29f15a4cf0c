"""LoRA on parameters that are no module of their own, most of all the stacked matrices of experts.

PEFT wraps the module that holds the parameter. Two parameters of one module are wrapped one around the other, so that
a tensor's name tells its parameter only by its depth: of `experts` with gate_up_proj and down_proj, `experts` is the
last parameter's wrapper and `experts.base_layer` the first one's.

Source: `ParamWrapper` in peft/tuners/lora/layer.py and `_inject_parameters` in peft/tuners/tuners_utils.py
    (PEFT 0.21.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from lora_registry import file_codes
from lora_registry.adapter_config import AdapterConfig
from lora_registry.base_profile import BaseProfile, ModuleShape
from lora_registry.findings import Finding
from lora_registry.module_patterns import ends_with_any
from lora_registry.target_selection import TargetNames


@dataclass(frozen=True)
class WrappedParameter:
    """A parameter that the configuration targets.

    Attributes:
        parameter: its name; rank_pattern is matched against this.
        experts: number of matrices that it stacks; the rank of its tensors is a multiple of it.
        shape: sizes of one of these matrices.
    """

    parameter: str
    experts: int
    shape: ModuleShape


@dataclass
class WrappedParameters:
    """The targeted parameters by the name that their tensors have, and what is wrong with the targeting."""

    by_name: dict[str, WrappedParameter] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @cached_property
    def parameters(self) -> frozenset[str]:
        """The names of the parameters themselves."""
        return frozenset(found.parameter for found in self.by_name.values())

    @cached_property
    def modules(self) -> frozenset[str]:
        """The names of the modules that hold the parameters."""
        return frozenset(parameter.rpartition(".")[0] for parameter in self.parameters)


def wrap_parameters(config: AdapterConfig, base: BaseProfile, targets: TargetNames) -> WrappedParameters:
    """Find the parameters that target_parameters names and the names under which their tensors are saved."""
    wrapped = WrappedParameters()
    if not config.target_parameters:
        return wrapped
    wanted = frozenset(config.target_parameters)
    by_module: dict[str, list[WrappedParameter]] = {}
    for parameter in base.parameter_names():
        if not ends_with_any(parameter, wanted):
            continue
        module = parameter.rpartition(".")[0]
        found = _wrap(parameter, base)
        if found is None:
            wrapped.findings.append(
                file_codes.TARGET_PARAMETER_INVALID.finding(parameter, actual="neither matrix nor stack")
            )
        elif not module or (module in base.modules and module in targets):
            message = "PEFT cannot put a LoRA on a parameter whose module has one too."
            wrapped.findings.append(file_codes.TARGET_PARAMETER_INVALID.finding(parameter, message))
        else:
            by_module.setdefault(module, []).append(found)
    for module, parameters in by_module.items():
        for depth, found in enumerate(reversed(parameters)):
            wrapped.by_name[module + ".base_layer" * depth] = found
    if wrapped.by_name:
        wrapped.findings += _contradictions(config)
    return wrapped


def _wrap(parameter: str, base: BaseProfile) -> WrappedParameter | None:
    stack = base.experts.get(parameter)
    if stack is not None:
        shape = ModuleShape(out_features=stack.out_features, in_features=stack.in_features)
        return WrappedParameter(parameter, stack.experts, shape)
    sizes = base.parameter_shape(parameter)
    if sizes is None or len(sizes) != 2:
        return None
    return WrappedParameter(parameter, 1, ModuleShape(out_features=sizes[0], in_features=sizes[1]))


def _contradictions(config: AdapterConfig) -> Iterator[Finding]:
    """What PEFT refuses beside target_parameters."""
    for name, is_set in (
        ("use_dora", config.use_dora),
        ("lora_bias", config.lora_bias),
        ("fan_in_fan_out", config.fan_in_fan_out),
        ("lora_dropout", config.lora_dropout != 0),
        ("alora_invocation_tokens", bool(config.alora_invocation_tokens)),
    ):
        if is_set:
            message = "PEFT refuses this field together with target_parameters."
            yield file_codes.CONFIG_FIELD_INVALID.finding(name, message)
