"""The tensors of an adapter that replace weights of the base model: saved modules, biases, token rows,
copies.

PEFT loads whatever fits a parameter's name, announced or not; so everything here must be announced by
adapter_config.json and have the base's shape.

Source: `set_peft_model_state_dict` in peft/utils/save_and_load.py and `_set_trainable` in peft/utils/other.py
(PEFT 0.21.2).
"""

from __future__ import annotations

from collections.abc import Iterator

from lora_registry import file_codes, fit_codes
from lora_registry.adapter_config import AdapterConfig
from lora_registry.base_profile import BaseProfile, modules_around
from lora_registry.changed_parts import ChangedParts
from lora_registry.findings import Finding
from lora_registry.safetensors_header import TensorEntry
from lora_registry.tensor_roles import PREFIX, SortedTensors, unknown_name

_WITHOUT_EMBEDDING = (
    "Save with save_embedding_layers=False; if the embedding was trained, announce it in modules_to_save."
)


def check_saved(parts: ChangedParts, tensors: SortedTensors) -> Iterator[Finding]:
    """Check every tensor that is not part of a LoRA pair."""
    config, base, saved = parts.config, parts.base, parts.saved
    for parameter, entry in tensors.whole.items():
        yield from _check_whole(parts, tensors, parameter, entry)
    for parameter, entry in tensors.shadows:
        if config.bias != "all" or not _is_saved(parameter, saved):
            yield fit_codes.TENSOR_ADAPTER_NAME.finding(entry.name, expected=f"{PREFIX}{parameter}")
        elif entry.shape != base.parameter_shape(parameter):
            yield fit_codes.SHAPE_MISMATCH.finding(entry.name, actual=list(entry.shape))
    if saved:
        yield from _saved_in_part(saved, base, tensors)
        yield from _saved_and_changed(parts)
    for module, entry in tensors.copies.items():
        yield from _check_copy(base, tensors, module, entry)
    if tensors.tokens or config.trainable_token_indices:
        yield from _check_tokens(config, base, tensors)
        yield from _rows_and_changed(parts)


def _check_whole(parts: ChangedParts, tensors: SortedTensors, parameter: str, entry: TensorEntry) -> Iterator[Finding]:
    base = parts.base
    shape = base.parameter_shape(parameter)
    if shape is None:
        yield unknown_name(entry.name, parameter, lambda name: base.parameter_shape(name) is not None,
                           num_layers=base.num_layers)  # fmt: skip
        return
    announced = _is_saved(parameter, parts.saved) or _is_trained_bias(parts, parameter)
    if not announced and not _is_copied_bias(base, tensors, parameter, entry):
        embedding = parameter in (f"{base.input_embedding}.weight", f"{base.output_embedding}.weight")
        yield fit_codes.TENSOR_UNANNOUNCED.finding(
            entry.name,
            expected="modules_to_save or bias",
            actual="not in adapter_config.json",
            remedy=_WITHOUT_EMBEDDING if embedding else "",
        )
    elif entry.shape != shape:
        yield fit_codes.SHAPE_MISMATCH.finding(entry.name, expected=list(shape), actual=list(entry.shape))
    elif not announced:
        yield fit_codes.EMBEDDING_COPY.finding(entry.name)
    else:
        yield from _check_bias_name(parts, parameter, entry)


def _is_copied_bias(base: BaseProfile, tensors: SortedTensors, parameter: str, entry: TensorEntry) -> bool:
    """Whether this is the bias of a head that is a target, as PEFT saves it with the copy of its weight."""
    module = parameter.rpartition(".")[0]
    return entry.name.endswith(".base_layer.bias") and _may_be_copied(base, tensors, module)


def _may_be_copied(base: BaseProfile, tensors: SortedTensors, module: str) -> bool:
    return module in tensors.lora and module in (base.input_embedding, base.output_embedding)


def _check_bias_name(parts: ChangedParts, parameter: str, entry: TensorEntry) -> Iterator[Finding]:
    """A module that has a LoRA, or whose weight has one, has its own bias in base_layer, and only such a module has."""
    module, _, last = parameter.rpartition(".")
    if last == "bias":
        wrapped = (module in parts.base.modules and module in parts.targets) or module in parts.wrapped.modules
        expected = f"{PREFIX}{module}.base_layer.bias" if wrapped else f"{PREFIX}{parameter}"
        if entry.name != expected:
            yield fit_codes.TENSOR_WITHOUT_EFFECT.finding(entry.name, expected=expected, actual=entry.name)


def _is_saved(parameter: str, saved: tuple[str, ...]) -> bool:
    """Whether modules_to_save names the parameter's module or one around it.

    PEFT compares the end of the module's name and does not ask for a dot before it: "norm" also saves
    input_layernorm.
    """
    module = parameter.rpartition(".")[0]
    while module:
        if module.endswith(saved):
            return True
        module = module.rpartition(".")[0]
    return False


def _is_trained_bias(parts: ChangedParts, parameter: str) -> bool:
    module, _, last = parameter.rpartition(".")
    if last != "bias":
        return False
    bias = parts.config.bias
    return bias == "all" or (bias == "lora_only" and (module in parts.targets or module in parts.wrapped.modules))


def _saved_in_part(saved: tuple[str, ...], base: BaseProfile, tensors: SortedTensors) -> Iterator[Finding]:
    """Saved modules that the file holds in part or not at all, and names that PEFT cannot save."""
    absent = [name for name in base.parameter_names() if _is_saved(name, saved) and name not in tensors.whole]
    if absent:
        shown = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
        yield fit_codes.SAVED_MODULE_WITHOUT_TENSORS.finding(
            "modules_to_save", actual=f"{len(absent)} parameters are missing: {shown}"
        )
    modules = modules_around(base.parameter_names())
    nested = next((name for name in sorted(modules) if name.endswith(saved) and _is_saved(name, saved)), None)
    if nested is not None:
        message = "One module that is saved whole is within another one; PEFT cannot load that."
        yield fit_codes.SAVED_MODULE_INVALID.finding("modules_to_save", message, actual=nested)
    lists = {parent for name in base.parameter_names() for parent in _lists_above(name)}
    wrong = next((parent for parent in sorted(lists) if parent.endswith(saved)), None)
    if wrong is not None:
        yield fit_codes.SAVED_MODULE_INVALID.finding("modules_to_save", actual=wrong)


def _saved_and_changed(parts: ChangedParts) -> Iterator[Finding]:
    """A module that is saved whole and has a LoRA, or whose parameter or whose inner module's parameter has one."""
    saved = parts.saved
    both = [name for name in parts.base.modules if name.endswith(saved) and name in parts.targets]
    both += [parameter for parameter in sorted(parts.wrapped.parameters) if _is_saved(parameter, saved)]
    if both:
        yield fit_codes.SAVED_MODULE_INVALID.finding("modules_to_save", actual=both[0])


def _rows_and_changed(parts: ChangedParts) -> Iterator[Finding]:
    """A module of which rows are trained and that has a LoRA.

    Source: `AuxiliaryTrainingWrapper.check_module` in peft/utils/other.py (PEFT 0.21.2).
    """
    changed = [name for name in parts.base.modules if name in parts.targets or name in parts.wrapped.modules]
    for name in parts.config.trainable_token_indices:
        both = next((module for module in changed if _names_embedding(name, module, parts.base)), None)
        if both is not None:
            message = "PEFT refuses to train rows of a module that has a LoRA too."
            yield file_codes.CONFIG_FIELD_INVALID.finding("trainable_token_indices", message, actual=both)


def _lists_above(parameter: str) -> Iterator[str]:
    parts = parameter.split(".")
    return (".".join(parts[:place]) for place in range(1, len(parts)) if parts[place].isdecimal())


def _check_copy(base: BaseProfile, tensors: SortedTensors, module: str, entry: TensorEntry) -> Iterator[Finding]:
    if not _may_be_copied(base, tensors, module):
        yield fit_codes.TENSOR_UNANNOUNCED.finding(entry.name, expected="an embedding that is a target")
    elif entry.shape != base.modules[module].weight_shape:
        shape = base.modules[module].weight_shape
        yield fit_codes.SHAPE_MISMATCH.finding(entry.name, expected=list(shape), actual=list(entry.shape))
    else:
        yield fit_codes.EMBEDDING_COPY.finding(entry.name)


def _check_tokens(config: AdapterConfig, base: BaseProfile, tensors: SortedTensors) -> Iterator[Finding]:
    announced = config.trainable_token_indices
    matched: set[str] = set()
    for module, entry in tensors.tokens.items():
        name = next((name for name in announced if _names_embedding(name, module, base)), None)
        shape = base.modules.get(module)
        if shape is None:
            yield unknown_name(entry.name, module, base.modules.__contains__, num_layers=base.num_layers)
        elif name is None:
            yield fit_codes.TENSOR_UNANNOUNCED.finding(entry.name, expected="trainable_token_indices")
        else:
            matched.add(name)
            rows, width = shape.weight_shape
            indices = announced[name]
            if entry.shape != (len(indices), width):
                yield fit_codes.SHAPE_MISMATCH.finding(
                    entry.name, expected=[len(indices), width], actual=list(entry.shape)
                )
            if indices and max(indices) >= rows:
                yield fit_codes.TOKEN_INDEX_OUT_OF_RANGE.finding(
                    "trainable_token_indices", expected=f"less than {rows}", actual=max(indices)
                )
    for name in announced.keys() - matched:
        if not _shares_rows(name, config, base):
            subject = f"{PREFIX}{name or base.input_embedding}.token_adapter.trainable_tokens_delta"
            yield fit_codes.TENSOR_MISSING.finding(subject)


def _shares_rows(name: str, config: AdapterConfig, base: BaseProfile) -> bool:
    """Whether these are the head's rows and are those of the embedding, which has them announced and saved."""
    announced = config.trainable_token_indices
    if not base.tied or not _names_module(name, base.output_embedding):
        return False
    return any(
        indices == announced[name] and _names_embedding(other, base.input_embedding, base)
        for other, indices in announced.items()
        if other != name
    )


def _names_embedding(name: str, module: str, base: BaseProfile) -> bool:
    return module == base.input_embedding if not name else _names_module(name, module)


def _names_module(name: str, module: str) -> bool:
    """PEFT compares the end of the module's name and does not ask for a dot before it."""
    return bool(name) and module.endswith(name)
