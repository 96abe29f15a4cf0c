"""Small adapters on disk: each of its own bytes, all fitting one tiny base model."""

from __future__ import annotations

from pathlib import Path

from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE
from lora_registry.base_profile import BaseProfile
from tests.helpers.adapters import make_adapter, make_base

BASE = "acme/tiny-llama"


def base_profile() -> BaseProfile:
    """The base model that they fit."""
    return make_base(name=BASE)


def write_adapters(directory: Path, names: list[str]) -> list[Path]:
    """One adapter directory for each name; the name is in the weights, so that no two are equal."""
    adapter = make_adapter()
    config, weights = adapter.config_bytes, adapter.weights_bytes
    written = []
    for name in names:
        mark = name.encode()
        path = directory / name
        path.mkdir(parents=True)
        (path / CONFIG_FILE).write_bytes(config)
        (path / WEIGHTS_FILE).write_bytes(weights[: -len(mark)] + mark)
        written.append(path)
    return written
