"""Artifacts: what a digest is taken over. An artifact is exactly two files, named by what is in them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Final

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
MANIFEST_FILE: Final = "manifest.json"


@dataclass(frozen=True)
class FileDigest:
    """One file of an artifact: its SHA-256 (hex) and its size."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """What an artifact consists of: the canonical config and the weights as they were."""

    config: FileDigest
    weights: FileDigest

    def to_json(self) -> bytes:
        """The canonical bytes: the digest is taken over these."""
        files = {CONFIG_FILE: self.config, WEIGHTS_FILE: self.weights}
        described = {name: {"sha256": each.sha256, "size": each.size_bytes} for name, each in files.items()}
        return json.dumps({"files": described}, sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        """`sha256:` and 64 hex digits: the artifact's identity."""
        return f"sha256:{hashlib.sha256(self.to_json()).hexdigest()}"
