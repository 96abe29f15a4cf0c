"""Every code there is, listed from the modules that hold them; a new module of codes is added here."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

from lora_registry import (
    canary_codes,
    codes,
    engine_codes,
    file_codes,
    fit_codes,
    gateway_codes,
    hook_codes,
    namespace_codes,
    node_codes,
    source_codes,
)
from lora_registry.code import Code
from lora_registry.findings import Finding


def _codes_of(*modules: ModuleType) -> dict[str, Code]:
    return {each.code: each for module in modules for each in vars(module).values() if isinstance(each, Code)}


CODES = _codes_of(codes, namespace_codes, hook_codes, source_codes, file_codes, fit_codes, canary_codes, node_codes)
"""Those of findings, by their identifiers, grouped by the step that gives them."""

ENGINE_CODES = _codes_of(engine_codes)
"""Those of the reasons of an engine's verdict."""

GATEWAY_CODES = _codes_of(gateway_codes)
"""Those with which the HTTP gateway refuses a request."""


def may_pass(findings: Iterable[Finding]) -> bool:
    """Whether a rejection with these findings may be none later, though the adapter stays as it is."""
    return any(CODES[each.code].may_pass for each in findings if each.code in CODES)
