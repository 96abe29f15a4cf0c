"""Whether numeric validation can run here and on what, found out without importing torch."""

from __future__ import annotations

import os
from pathlib import Path

from lora_registry.settings import Settings
from lora_workers.extras import MissingExtra, is_installed, require


def settled(settings: Settings) -> Settings:
    """The settings with `numeric` auto decided: on where torch is installed.

    Raises:
        MissingExtra: numeric validation is asked for, and torch is not installed.
    """
    if settings.numeric == "auto":
        return settings.model_copy(update={"numeric": "on" if is_installed("numeric") else "off"})
    if settings.numeric == "on":
        require("numeric")
    return settings


def require_numeric() -> None:
    """Make sure that torch is installed.

    Raises:
        MissingExtra: it is not; the message says how to go on without it, too.
    """
    try:
        require("numeric")
    except MissingExtra as error:
        raise MissingExtra(
            f"{error.message}, or switch the numeric part of validation off with LORA_REGISTRY_NUMERIC=off"
        ) from error


def count_gpus() -> int:
    """NVIDIA GPUs that processes started here will see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return sum(1 for node in Path("/dev").glob("nvidia*") if node.name.removeprefix("nvidia").isdecimal())
