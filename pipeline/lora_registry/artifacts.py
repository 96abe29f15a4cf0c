"""Artifacts: what a digest is taken over. An artifact is exactly two files, named by what is in them."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from lora_registry.errors import ArtifactDamaged

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
MANIFEST_FILE: Final = "manifest.json"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class FileDigest:
    """One file of an artifact: its SHA-256 (hex) and its size."""

    sha256: str
    size_bytes: int

    @classmethod
    def read(cls, path: Path) -> Self:
        """Of a local file, which is read whole.

        Raises:
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(sha256, file.tell())


@dataclass(frozen=True)
class Manifest:
    """What an artifact consists of: the canonical config and the weights as they were."""

    config: FileDigest
    weights: FileDigest

    @classmethod
    def of(cls, config: bytes, weights: FileDigest) -> Self:
        """The manifest of this config and these weights."""
        return cls(FileDigest(hashlib.sha256(config).hexdigest(), len(config)), weights)

    @classmethod
    def from_json(cls, raw: bytes, *, digest: str) -> Self:
        """Parse a stored manifest.

        Raises:
            ArtifactDamaged: these are not the bytes that `digest` was taken over.
        """
        if digest_of_manifest(raw) != digest:
            raise ArtifactDamaged(f"the manifest of {digest[:80]} is another one")
        files = json.loads(raw)["files"]
        config, weights = (
            FileDigest(files[name]["sha256"], files[name]["size"]) for name in (CONFIG_FILE, WEIGHTS_FILE)
        )
        return cls(config, weights)

    def file(self, name: str) -> FileDigest:
        """Digest and size of the file called `name`.

        Raises:
            KeyError: an artifact has no file of that name.
        """
        return {CONFIG_FILE: self.config, WEIGHTS_FILE: self.weights}[name]

    def to_json(self) -> bytes:
        """The canonical bytes: the digest is taken over these."""
        files = {CONFIG_FILE: self.config, WEIGHTS_FILE: self.weights}
        described = {name: {"sha256": each.sha256, "size": each.size_bytes} for name, each in files.items()}
        return json.dumps({"files": described}, sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        """`sha256:` and 64 hex digits: the artifact's identity."""
        return digest_of_manifest(self.to_json())


def digest_of_manifest(raw: bytes) -> str:
    """The digest of the artifact whose manifest these bytes are."""
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def is_digest(text: str) -> bool:
    """Whether `text` is written as the digest of an artifact."""
    return _DIGEST.fullmatch(text) is not None
