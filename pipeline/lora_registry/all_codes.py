"""Every code there is, listed from the modules that hold them; a new module of codes is added here."""

from __future__ import annotations

from types import ModuleType

from lora_registry import (
    codes,
    engine_codes,
    file_codes,
    fit_codes,
    hook_codes,
    namespace_codes,
    node_codes,
    source_codes,
)
from lora_registry.code import Code


def _codes_of(*modules: ModuleType) -> dict[str, Code]:
    return {each.code: each for module in modules for each in vars(module).values() if isinstance(each, Code)}


CODES = _codes_of(codes, namespace_codes, hook_codes, source_codes, file_codes, fit_codes, node_codes)
"""Those of findings, by their identifiers, grouped by the step that gives them."""

ENGINE_CODES = _codes_of(engine_codes)
"""Those of the reasons of an engine's verdict."""
