"""What the middleware asks of the vLLM that it is around."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from typing import Final

from lora_workers.node.inner_requests import InnerApp
from lora_workers.node.model_list import ModelList, parse_model_list

logger = logging.getLogger(__name__)

MODELS: Final = "/v1/models"
LOAD: Final = "/v1/load_lora_adapter"
UNLOAD: Final = "/v1/unload_lora_adapter"


class InnerVllm:
    """The vLLM inside.

    Args:
        app: how it is asked.
    """

    def __init__(self, app: InnerApp) -> None:
        self._app = app
        self._bases: Collection[str] | None = None
        self._why_unknown = ""

    @property
    def is_silent(self) -> bool:
        """Whether it was not known at the last look what is loaded."""
        return bool(self._why_unknown)

    async def models(self) -> ModelList | None:
        """What it lists; None if that is not known: it did not answer with a list. Said once, until it does."""
        try:
            status, body = await self._app.request("GET", MODELS)
            models = parse_model_list(json.loads(body)) if status == 200 else None
            why = "" if models else f"status {status}"
        except Exception as error:  # noqa: BLE001 - told below; a request of a client's must not end by it
            models, why = None, f"{type(error).__name__}: {error}"
        if why and not self._why_unknown:
            logger.warning(
                "vLLM does not tell what is loaded (%s), so no alias moves to another version; if it asks for an API "
                "key, LORA_REGISTRY_NODE_ENGINE_API_KEY in its environment says it",
                why,
            )
        self._why_unknown = why
        if models:
            self._bases = models.bases.keys()
        return models

    async def bases(self) -> Collection[str]:
        """What clients call the base model; nothing while that is not known. It stays the same while vLLM lives."""
        if self._bases is None:
            await self.models()
        return self._bases or ()

    async def answers(self, served_name: str) -> bool:
        """Whether it answers one token with it; with the plug-in, asking loads it."""
        body = {"model": served_name, "prompt": [0], "max_tokens": 1, "temperature": 0}
        status, answer = await self._app.request("POST", "/v1/completions", body)
        if status != 200:
            logger.info("%s does not answer yet: %s %s", served_name, status, answer[:200])
        return status == 200

    async def unload(self, served_name: str) -> None:
        """Ask it to unload an adapter; whether it did is seen at the next look."""
        await self._app.request("POST", UNLOAD, {"lora_name": served_name})
