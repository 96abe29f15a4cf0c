"""The marker file: with it a publisher says that an upload is whole, and what it consists of.

It is written last. No store makes several files appear at once, so without it a reader can only guess whether what it
sees belongs together.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE, FileDigest
from lora_registry.strict_json import StrictJsonError, load_object

MARKER_FILE: Final = "_ADAPTER_READY.json"
MAX_MARKER_BYTES: Final = 1 << 16
_VERSION = 1
_CHUNK_BYTES = 1 << 20
_HEX = frozenset("0123456789abcdef")


class MarkerError(ValueError):
    """The marker file is not legal; the message says why."""


@dataclass(frozen=True)
class ReadyMarker:
    """What a marker file says.

    Attributes:
        files: size and SHA-256 of the adapter's two files, by name.
        metadata: whatever else the publisher wrote.
    """

    files: Mapping[str, FileDigest]
    metadata: Mapping[str, str]


def mark_ready(directory: Path, *, metadata: Mapping[str, str] | None = None) -> Path:
    """Write the marker of the adapter in a local directory, whole or not at all; copy it after the two files.

    Args:
        directory: holds adapter_config.json and adapter_model.safetensors, both finished.
        metadata: free texts to keep in it.

    Returns:
        Path of the marker.

    Raises:
        OSError: a file cannot be read, or the marker not be written.
    """
    text = marker_text({name: _digest_of(directory / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}, metadata=metadata)
    descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=".ready-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        return Path(temporary).replace(directory / MARKER_FILE)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def marker_text(files: Mapping[str, FileDigest], *, metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a marker file, for a publisher that knows sizes and digests already."""
    described = {name: {"size": each.size_bytes, "sha256": each.sha256} for name, each in files.items()}
    return json.dumps({"version": _VERSION, "files": described, "metadata": dict(metadata or {})}, indent=1).encode()


def parse_marker(raw: bytes) -> ReadyMarker:
    """Parse a marker file; unknown fields are ignored.

    Raises:
        MarkerError: it is not legal.
    """
    if len(raw) > MAX_MARKER_BYTES:
        raise MarkerError(f"it has more than {MAX_MARKER_BYTES} bytes")
    try:
        fields = load_object(raw)
    except StrictJsonError as error:
        raise MarkerError(str(error)) from error
    if fields.get("version") != _VERSION:
        raise MarkerError(f"its version is not {_VERSION}")
    files, metadata = fields.get("files"), fields.get("metadata", {})
    if not isinstance(files, dict) or not isinstance(metadata, dict):
        raise MarkerError("its files or its metadata are no object")
    described = {name: _parse_file(name, files.get(name)) for name in (CONFIG_FILE, WEIGHTS_FILE)}
    return ReadyMarker(described, {str(key): str(value) for key, value in metadata.items()})


def _parse_file(name: str, value: Any) -> FileDigest:
    if not isinstance(value, dict):
        raise MarkerError(f"it does not describe {name}")
    size, sha256 = value.get("size"), value.get("sha256")
    if type(size) is not int or size < 0:
        raise MarkerError(f"the size of {name} is no number of bytes")
    if not isinstance(sha256, str) or len(sha256) != 64 or not _HEX.issuperset(sha256):
        raise MarkerError(f"the sha256 of {name} is not 64 hexadecimal digits")
    return FileDigest(sha256, size)


def _digest_of(path: Path) -> FileDigest:
    sha256, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha256.update(chunk)
            size += len(chunk)
    return FileDigest(sha256.hexdigest(), size)
