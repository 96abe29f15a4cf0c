"""Engine drivers: one file for each engine, named as the engine is, with a function `open_driver`.

Adding a driver is adding a file. It never loads in place, and knows served names only.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Protocol

from lora_registry.errors import Configuration
from lora_registry.stages.canary import Answer


@dataclass(frozen=True)
class EngineDescription:
    """What an engine tells of itself; what it does not tell is None or empty.

    Attributes:
        engine: as engine profiles call it.
        version: as the engine calls it.
        max_lora_rank: largest rank that it was started for.
        target_modules: last parts of the names of the modules that it was started for.
        tensor_parallel_size: devices that share one model.
        slots: adapters that it holds loaded at a time.
        base: name or path of the base model that it was started with.
    """

    engine: str
    version: str = ""
    max_lora_rank: int | None = None
    target_modules: tuple[str, ...] | None = None
    tensor_parallel_size: int | None = None
    slots: int | None = None
    base: str = ""


class Driver(Protocol):
    """What a node does with its engine, several threads at once. Everything raises NodeFailure.

    Attributes:
        is_at_once: whether it never waits for an engine, so that its calls need no threads, and what is said before and
            after them need not be told apart.
    """

    is_at_once: bool

    def describe(self) -> EngineDescription:
        """What the engine tells of itself."""

    def listed(self) -> dict[str, str | None]:
        """Adapters that the engine has: name → path; None where it does not tell paths."""

    def busy(self) -> frozenset[str]:
        """Adapters that requests are running on, as far as the engine tells."""

    def load(self, served_name: str, path: str) -> None:
        """Load an adapter. One that is listed there already counts as loaded."""

    def unload(self, served_name: str) -> None:
        """Unload an adapter. One that is not listed counts as unloaded."""

    def probe(self, served_name: str) -> None:
        """Ask the engine for one token with the adapter."""

    def close(self) -> None:
        """Close connections."""


class AnsweringDriver(Driver, Protocol):
    """A driver of an engine that answers with log-probabilities, as the canary check asks."""

    def answer(self, served_name: str | None, prompt: str, *, max_tokens: int) -> Answer:
        """The greedy completion by an adapter, or by the base model."""


def driver_names() -> list[str]:
    """The engines that there is a driver for."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def open_driver(engine: str, url: str, *, api_key: str = "") -> Driver:
    """The driver of an engine; nothing is sent yet.

    Args:
        engine: its name.
        url: where the engine answers, or the directory that it watches.
        api_key: what requests carry as their bearer token; empty: none.

    Raises:
        Configuration: there is no such driver, or it cannot use the URL.
    """
    if engine not in driver_names():
        raise Configuration(f"engine {engine[:80]!r}: there are drivers for {', '.join(driver_names())}")
    module = importlib.import_module(f"{__name__}.{engine}")
    driver: Driver = module.open_driver(url, api_key=api_key)
    return driver
