"""The matcher for regular expressions that adapters bring: RE2, whose running time is linear in the text."""

from __future__ import annotations

import importlib.util

from lora_registry.module_patterns import CompilePattern, Matcher

_MOST_MEMORY_BYTES = 1 << 22


def linear_time_patterns() -> CompilePattern | None:
    """What compiles patterns; None if google-re2 is not installed, and patterns are then refused."""
    return _compile if importlib.util.find_spec("re2") is not None else None


def _compile(pattern: str) -> Matcher:
    """A matcher of whole texts.

    Raises:
        ValueError: RE2 does not know the pattern's syntax, or it needs too much memory.
    """
    import re2

    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MOST_MEMORY_BYTES
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        raise ValueError(str(error)[:200]) from error
    return lambda text: compiled.fullmatch(text) is not None
