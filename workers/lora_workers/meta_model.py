"""The shapes of the model that a config.json describes: transformers builds it on the meta device, without weights.

The libraries are optional and heavy, so they are imported on first use. Code that a model's repository brings is never
run: only architectures that transformers itself has are built.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from typing import Any

from lora_registry.base_profile import ExpertShape, ModuleKind, ModuleShape, RunningModel, modules_around

_FOREIGN_FIELDS = ("auto_map", "quantization_config", "compression_config", "custom_pipelines")
logger = logging.getLogger(__name__)


def is_available() -> bool:
    """Whether transformers and torch are installed."""
    return all(importlib.util.find_spec(library) is not None for library in ("transformers", "torch"))


def build_running_model(config: dict[str, Any]) -> RunningModel | None:
    """The shapes of the model that config.json describes.

    Returns:
        None if the libraries are missing, or if they do not have the architecture.
    """
    if not is_available():
        return None
    fields = {name: value for name, value in config.items() if name not in _FOREIGN_FIELDS}
    try:
        model = _on_meta(fields)
    except (ImportError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        logger.warning("transformers cannot build %s: %s", config.get("architectures"), str(error)[:200])
        return None
    return None if model is None else _shapes(model)


def _on_meta(fields: dict[str, Any]) -> Any | None:
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    architecture = next(iter(fields.get("architectures") or [""]))
    built = getattr(transformers, architecture, None) if str(architecture).isidentifier() else None
    if not isinstance(built, type) or not issubclass(built, transformers.PreTrainedModel):
        return None
    config = CONFIG_MAPPING[fields["model_type"]].from_dict(fields)
    with torch.device("meta"):
        model = built(config)
    model.tie_weights()
    return model


def _shapes(model: Any) -> RunningModel:
    modules: dict[str, ModuleShape] = {}
    parameters: dict[str, tuple[int, ...]] = {}
    experts: dict[str, ExpertShape] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        shape = _module_shape(module)
        if shape is not None:
            modules[name] = shape
        for own, sizes in _own_parameters(module):
            full = f"{name}.{own}" if name else own
            if shape is None or own != "weight":
                parameters[full] = sizes
            if len(sizes) == 3:
                experts[full] = _expert_shape(sizes, is_transposed=getattr(module, "is_transposed", False) is True)
    holders = modules_around((*(f"{name}.weight" for name in modules), *parameters))
    bare = (name for name, _ in model.named_modules() if name and name not in holders)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return RunningModel(
        modules=modules,
        parameters=parameters,
        experts=experts,
        input_embedding=_name_of(model, embedding),
        output_embedding=_name_of(model, head),
        tied=head is not None and embedding is not None and head.weight is embedding.weight,
        bare_modules=tuple(bare),
    )


def _own_parameters(module: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
        yield name, tuple(parameter.shape)


def _module_shape(module: Any) -> ModuleShape | None:
    """The shape of a module that PEFT can put an adapter on. Source: dispatch_default in peft/tuners/lora/layer.py."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, torch.nn.Linear):
        return ModuleShape(out_features=module.out_features, in_features=module.in_features)
    if isinstance(module, torch.nn.Embedding):
        rows, width = module.num_embeddings, module.embedding_dim
        return ModuleShape(out_features=width, in_features=rows, kind=ModuleKind.EMBEDDING)
    if isinstance(module, Conv1D):
        in_, out = module.weight.shape
        return ModuleShape(out_features=out, in_features=in_, kind=ModuleKind.CONV1D)
    return None


def _expert_shape(sizes: tuple[int, ...], *, is_transposed: bool) -> ExpertShape:
    """Source: ParamWrapper in peft/tuners/lora/layer.py (PEFT 0.21.2): [experts, out, in] unless it is transposed."""
    experts, first, second = sizes
    out, in_ = (second, first) if is_transposed else (first, second)
    return ExpertShape(experts=experts, out_features=out, in_features=in_)


def _name_of(model: Any, wanted: Any) -> str:
    return next((name for name, module in model.named_modules() if module is wanted), "") if wanted is not None else ""
