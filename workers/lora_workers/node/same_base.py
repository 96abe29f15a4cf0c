"""Whether the engine serves the base model that the node was started for, as far as names tell.

An adapter on another base of the same shape loads without an error and answers with nonsense.
"""

from __future__ import annotations

import re
from typing import Final

from lora_registry import node_codes as codes
from lora_registry.base_profile import BaseProfile

COMPARE_BASES_S: Final = 10.0
"""So often it is looked whether somebody told the registry of the base model, or the engine's name for it."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_CACHE = re.compile(r"(?:^|/)models--([\w.-]+?)--([\w.-]+)/snapshots/")
"""Source: huggingface_hub 1.x, file_download.py, repo_folder_name."""


def why_another_base(told: str, base: BaseProfile) -> str:
    """Why what the engine names is another base model; empty if it is none, or if nobody can tell.

    Only names of the Hub are compared: a path or a name of the operator's own may be any model.

    Args:
        told: name or path of the base model that the engine was started with.
        base: the base model as the registry knows it.
    """
    cached = _HUB_CACHE.search(told)
    name = f"{cached[1]}/{cached[2]}" if cached else told
    known = sorted(each for each in base.names if _HUB_NAME.fullmatch(each))
    if not known or not _HUB_NAME.fullmatch(name) or name.lower() in {each.lower() for each in known}:
        return ""
    other = codes.NODE_OTHER_BASE
    return f"{other.cause} It serves {name[:100]}, not {', '.join(known)[:150]}. {other.remedy}"
