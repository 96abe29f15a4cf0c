"""What the node's engine is, and whether it would serve a version: judged once for each, until the engine changes."""

from __future__ import annotations

import logging
import time

from lora_registry import node_codes as codes
from lora_registry.catalog import Catalog
from lora_registry.catalog_records import VersionRecord
from lora_registry.errors import NotFound, RedisUnavailable
from lora_registry.nodes import NodeInfo
from lora_workers.node.drivers import EngineDescription
from lora_workers.node.judging import describe_node, refusal
from lora_workers.node.options import NodeOptions
from lora_workers.node.same_base import COMPARE_BASES_S, why_another_base

logger = logging.getLogger(__name__)


class EngineFit:
    """The engine of one node.

    Args:
        options: what the operator said.
        catalog: where the base model is known.

    Attributes:
        info: what the node says of itself; None until `describe` was called.

    Raises:
        Configuration: the engine profile cannot be read.
    """

    def __init__(self, options: NodeOptions, catalog: Catalog) -> None:
        describe_node(EngineDescription(options.engine), options)  # wrong options are said now
        self.info: NodeInfo | None = None
        self._options = options
        self._catalog = catalog
        self._told_base = ""
        self._other_base: str | None = None  # not compared yet
        self._ask_again_at = 0.0
        self._refusals: dict[str, tuple[str, str]] = {}

    def describe(self, told: EngineDescription) -> None:
        """Take in what the engine is; it may have been started again with other options."""
        self.info, self._told_base = describe_node(told, self._options), told.base
        self._other_base = None
        self._ask_again_at = 0.0
        self._refusals.clear()

    def compare_bases(self) -> None:
        """Ask the registry until they are the same: somebody may tell it the engine's name for the base model."""
        if self._other_base == "" or self._options.any_base or time.monotonic() < self._ask_again_at:
            return
        try:
            self._other_base = why_another_base(self._told_base, self._catalog.bases.get(self._options.base))
        except NotFound:  # it is not registered yet, or Redis lost it
            self._ask_again_at = time.monotonic() + COMPARE_BASES_S
        except RedisUnavailable as error:
            logger.warning("the engine's base model was not compared: %s", error)

    def refusal(self, record: VersionRecord) -> tuple[str, str]:
        """Code and reason why the engine is not given a version; both empty if it is."""
        if self._other_base:
            return codes.NODE_OTHER_BASE.code, self._other_base
        name = record.served_name
        if self.info and name not in self._refusals:
            self._refusals[name] = refusal(record, self.info)
        return self._refusals.get(name, ("", ""))

    def forget(self, served_name: str) -> None:
        """Nobody wants the version any more."""
        self._refusals.pop(served_name, None)
