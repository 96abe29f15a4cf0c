"""A plug-in for vLLM: served names that it does not know are looked up in the registry.

It is installed with this package (entry point group `vllm.general_plugins`) and does nothing unless
LORA_REGISTRY_NODE_BASE says which base model the server serves. vLLM runs `register` in each of its processes, so it
is cheap, may run twice and opens no connection.
"""

from __future__ import annotations

import logging
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_registry.catalog_records import VersionRecord
from lora_registry.errors import RegistryError
from lora_registry.settings import load_settings
from lora_workers.node.drivers import EngineDescription
from lora_workers.node.judging import describe_node
from lora_workers.node.lookup import NameLookup
from lora_workers.node.options import PREFIX, load_options

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

logger = logging.getLogger(__name__)
NAME = "lora-registry"


def register() -> None:
    """Register the resolver with vLLM; whatever is wrong is logged, and vLLM starts without it."""
    if not os.environ.get(f"{PREFIX}BASE"):
        return
    try:
        from vllm.lora.resolver import LoRAResolverRegistry

        if NAME not in LoRAResolverRegistry.get_supported_resolvers():
            LoRAResolverRegistry.register_resolver(NAME, _make_resolver())
    except (ImportError, RegistryError):
        logger.exception("the registry's adapters cannot be resolved")


def to_lora_request(record: VersionRecord, path: Path | str) -> LoRARequest:
    """What `LLM.generate` and `AsyncLLM.generate` take, with the registry's own `lora_int_id`.

    It is never reused for other bytes, as vLLM's worker cache demands. A vLLM server gives its own numbers instead.

    Args:
        record: the version.
        path: directory of its files.
    """
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name=record.served_name, lora_int_id=record.lora_int_id, lora_path=str(path))


def make_lookup() -> NameLookup:
    """The lookup for this server, as its environment describes it.

    Raises:
        Configuration: the environment is not legal.
    """
    options = load_options(engine="vllm")
    told = EngineDescription("vllm", version=_vllm_version(), max_lora_rank=options.max_lora_rank)
    return NameLookup(describe_node(told, options), options, load_settings())


def _make_resolver() -> Any:
    from vllm.lora.resolver import LoRAResolver

    class RegistryResolver(LoRAResolver):  # type: ignore[misc] # vLLM is not installed where this is checked
        """Answers served names from the registry."""

        def __init__(self) -> None:
            self._lookup = make_lookup()

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            """The adapter of a served name; None if it is none of this base model."""
            found = await self._lookup.find(lora_name, told_base=base_model_name)
            return to_lora_request(found.record, found.path) if found else None

    return RegistryResolver()


def _vllm_version() -> str:
    try:
        return version("vllm")
    except PackageNotFoundError:
        return ""
