"""What a tensor of an adapter is for, told by its name alone.

Source: `get_peft_model_state_dict` in peft/utils/save_and_load.py (PEFT 0.21.2), which drops the adapter's
    name and leaves base_model.model. in front of the module's own name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from lora_registry import file_codes, fit_codes
from lora_registry.findings import Finding
from lora_registry.safetensors_header import TensorEntry

PREFIX = "base_model.model."
_WRAPPER_SEGMENTS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Segments that DistributedDataParallel, torch.compile, FSDP and activation checkpointing put into names."""


class Role(StrEnum):
    """What a tensor does in its module."""

    A = "lora_A"
    """`[rank, in_features]`"""
    B = "lora_B"
    """`[out_features, rank]`"""
    B_BIAS = "lora_B bias"
    """`[out_features]`"""
    EMBEDDING_A = "lora_embedding_A"
    """`[rank, rows]`"""
    EMBEDDING_B = "lora_embedding_B"
    """`[width, rank]`"""
    MAGNITUDE = "lora_magnitude_vector"
    """`[out_features]`"""


_LORA_TAILS = {
    "lora_A.weight": Role.A,
    "lora_B.weight": Role.B,
    "lora_B.bias": Role.B_BIAS,
    "lora_embedding_A": Role.EMBEDDING_A,
    "lora_embedding_B": Role.EMBEDDING_B,
    "lora_magnitude_vector": Role.MAGNITUDE,
    "lora_magnitude_vector.weight": Role.MAGNITUDE,
}
_TOKENS_TAIL = ".token_adapter.trainable_tokens_delta"
_COPY_TAIL = ".base_layer.weight"
_COPY_BIAS_TAIL = ".base_layer.bias"


@dataclass
class SortedTensors:
    """An adapter's tensors by role.

    Attributes:
        lora: by module, then by role.
        tokens: the trained rows of embeddings, by module.
        copies: copies of embeddings that are also targets, by module.
        whole: parameters that replace those of the base model, by the parameter's name.
        shadows: second copies of the biases of saved modules, with the parameter's name; PEFT writes and ignores them.
        findings: one for every tensor without a role.
    """

    lora: dict[str, dict[Role, TensorEntry]] = field(default_factory=dict)
    tokens: dict[str, TensorEntry] = field(default_factory=dict)
    copies: dict[str, TensorEntry] = field(default_factory=dict)
    whole: dict[str, TensorEntry] = field(default_factory=dict)
    shadows: list[tuple[str, TensorEntry]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def sort_tensors(entries: Iterable[TensorEntry], *, at_most: int) -> SortedTensors:
    """Sort tensors by role; stop once there are more than `at_most` findings."""
    found = SortedTensors()
    lora = found.lora
    for entry in entries:
        name = entry.name
        if name.startswith(PREFIX):
            place = name.find(".lora_", 17)
            if place > 0:
                role = _LORA_TAILS.get(name[place + 1 :])
                module = name[17:place]
                if role is not None:
                    roles = lora.get(module)
                    if roles is None:
                        lora[module] = {role: entry}
                        continue
                    if role not in roles:
                        roles[role] = entry
                        continue
        _sort_other(found, entry)
        if len(found.findings) > at_most:
            break
    return found


def _sort_other(found: SortedTensors, entry: TensorEntry) -> None:
    shadowed = _shadowed(entry.name)
    if shadowed is not None:
        found.shadows.append((shadowed, entry))
        return
    problem = _misnamed(entry.name)
    if problem is not None:
        found.findings.append(problem)
        return
    rest = entry.name[len(PREFIX) :]
    if ".lora_" in rest or "." not in rest:
        found.findings.append(fit_codes.TENSOR_UNRECOGNIZED.finding(entry.name))
    elif rest.endswith(_TOKENS_TAIL):
        found.tokens[rest[: -len(_TOKENS_TAIL)]] = entry
    elif rest.endswith(_COPY_TAIL):
        found.copies[rest[: -len(_COPY_TAIL)]] = entry
    elif rest.endswith(_COPY_BIAS_TAIL):
        _add_whole(found, f"{rest[: -len(_COPY_BIAS_TAIL)]}.bias", entry)
    else:
        _add_whole(found, rest, entry)


def _shadowed(name: str) -> str | None:
    """The parameter of which this is a second copy, as PEFT writes them for bias="all" beside saved modules."""
    if not name.startswith(PREFIX) or not name.endswith(".bias"):
        return None
    segments = name[len(PREFIX) :].split(".")
    wrappers = [segment for segment in segments if segment in ("original_module", "modules_to_save")]
    if len(wrappers) != 1 or segments[0] == wrappers[0]:
        return None
    place = segments.index(wrappers[0])
    # Of a saved module with modules of its own, PEFT leaves the adapter's name in place.
    after = 2 if wrappers[0] == "modules_to_save" and len(segments) > place + 2 else 1
    return ".".join(segments[:place] + segments[place + after :])


def _add_whole(found: SortedTensors, parameter: str, entry: TensorEntry) -> None:
    if parameter in found.whole:
        found.findings.append(fit_codes.TENSOR_UNRECOGNIZED.finding(entry.name, "The parameter has two tensors."))
    else:
        found.whole[parameter] = entry


def _misnamed(name: str) -> Finding | None:
    segments = name.split(".")
    if not name.startswith(PREFIX):
        wrapped = not _WRAPPER_SEGMENTS.isdisjoint(segments[:2])
        code = fit_codes.TENSOR_PREFIX_WRAPPER if wrapped else fit_codes.TENSOR_PREFIX_MISSING
        return code.finding(name, expected=PREFIX, actual=".".join(segments[:2]))
    named = _adapter_name(segments)
    if named is not None:
        return fit_codes.TENSOR_ADAPTER_NAME.finding(
            name,
            expected=name.replace(f".{named}", "", 1),
            actual=f"the segment {named!r}",
        )
    return None


def _adapter_name(segments: list[str]) -> str | None:
    """The adapter's name if it still stands in the tensor's name."""
    if "default" in segments:
        return "default"
    for place, segment in enumerate(segments[:-1]):
        after = segments[place + 1 :]
        if (
            segment in ("lora_A", "lora_B", "lora_magnitude_vector")
            and len(after) == 2
            and after[1] in ("weight", "bias")
        ):
            return after[0]
        if segment in ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector") and after[0] != "weight":
            return after[0]
        if segment == "modules_to_save":
            return f"modules_to_save.{after[0]}" if len(after) > 1 else "modules_to_save"
    return None


def unknown_name(subject: str, name: str, known: Callable[[str], object], *, num_layers: int) -> Finding:
    """The finding for a module or parameter that the base model does not have; it says which mistake that is.

    Args:
        subject: the tensor's name.
        name: the module or parameter, without the prefix base_model.model.
        known: whether the base model has a name.
        num_layers: layers of the base model.
    """
    segments = name.split(".")
    if name.startswith(PREFIX):
        return fit_codes.TENSOR_PREFIX_DOUBLED.finding(subject)
    unwrapped = [segment for segment in segments if segment not in _WRAPPER_SEGMENTS]
    if len(unwrapped) < len(segments):
        return fit_codes.TENSOR_PREFIX_WRAPPER.finding(subject, expected=PREFIX + ".".join(unwrapped))
    if "experts" in segments:
        return file_codes.EXPERTS_UNSUPPORTED.finding(subject)
    for place, segment in enumerate(segments):
        if segment.lstrip("-").isdecimal():
            first = [*segments[:place], "0", *segments[place + 1 :]]
            if known(".".join(first)):
                return fit_codes.LAYER_OUT_OF_RANGE.finding(
                    subject, expected=f"layers 0 to {num_layers - 1}", actual=f"layer {segment[:20]}"
                )
            break
    return fit_codes.MODULE_UNKNOWN.finding(subject, actual=name)
