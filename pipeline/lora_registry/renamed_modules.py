"""Names of modules that a base's files, and adapters trained earlier, have otherwise than the running model."""

from __future__ import annotations

from collections.abc import Collection

LANGUAGE_MODEL = "language_model.model."


def renamed_module(name: str) -> str:
    """A module's name as transformers has it since version 5. Source: transformers/conversion_mapping.py (5.23.0)."""
    return name.replace(".block_sparse_moe.", ".mlp.")


def composite_name(name: str) -> str:
    """A name of a LLaVA-like model's files as the running model has it.

    Source: the conversion of llava in transformers/conversion_mapping.py (transformers 5.23.0).
    """
    if name.startswith(LANGUAGE_MODEL):
        return f"model.language_model.{name[len(LANGUAGE_MODEL) :]}"
    if name.startswith("language_model.lm_head"):
        return name.removeprefix("language_model.")
    return f"model.{name}"


def running_name(name: str, modules: Collection[str]) -> str:
    """The name that the running model, which has these modules, has for a module of the files; the same if none fits.

    PEFT asks for target modules by this name, before it renames the tensors.
    """
    return next((other for other in (renamed_module(name), composite_name(name)) if other in modules), name)
