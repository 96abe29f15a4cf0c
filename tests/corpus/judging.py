"""Judging an adapter's directory as the stages do, without Redis and without a store."""

from __future__ import annotations

from pathlib import Path

from lora_registry.adapter_config import MAX_CONFIG_BYTES, parse_adapter_config
from lora_registry.base_profile import BaseProfile
from lora_registry.compatibility import check_compatibility
from lora_registry.errors import Rejected
from lora_registry.findings import Finding
from lora_registry.stages.validate import read_staged_header
from lora_workers.linear_patterns import linear_time_patterns
from lora_workers.sources.local import LocalSource


def judge(directory: Path, base: BaseProfile, *, root: Path) -> list[Finding]:
    """All findings about the adapter in `directory`; nothing but a refusal of ours is caught."""
    source = LocalSource([root])
    try:
        pinned = source.resolve(str(directory))
        raw = source.read(pinned.config, limit_bytes=MAX_CONFIG_BYTES)
        config = parse_adapter_config(raw, compile_pattern=linear_time_patterns())
        header = read_staged_header(pinned.weights.location)
    except Rejected as refused:
        return list(refused.findings)
    return check_compatibility(config, header, base)
