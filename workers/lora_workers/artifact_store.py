"""The artifact store, whatever it lies on: what workers, nodes and garbage collection do with it, and how to open it.

    <store>/sha256/<64 hex digits>/adapter_config.json  adapter_model.safetensors  manifest.json
    <store>/reports/…      <registration id>.json: its whole report, beyond the findings that Redis keeps

An artifact is there whole or not at all, is never written over, and is read with its size and SHA-256 checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Final, Protocol

from lora_registry.artifacts import FileDigest, Manifest
from lora_registry.errors import ArtifactDamaged, Configuration
from lora_registry.report import ValidationReport
from lora_registry.settings import Settings
from lora_registry.stages.validate import Staged
from lora_workers.credentials import ARTIFACT_STORE
from lora_workers.store_options import options_for

STALE_S: Final = 86_400.0
"""What a killed worker left half made is removed after so long."""


class Store(Protocol):
    """An artifact store."""

    def stage(self) -> AbstractContextManager[Staged]:
        """Begin an artifact; what was not kept when the context ends is removed."""

    def keep_report(self, registration_id: str, report: ValidationReport) -> None:
        """Keep the whole report of a registration."""

    def reports(self) -> dict[str, datetime]:
        """Registrations whose reports are kept, and when each was written.

        Raises:
            Transient: the store is out of reach.
        """

    def remove_report(self, registration_id: str) -> None:
        """Remove a report; one that is not there is fine.

        Raises:
            Transient: the store is out of reach.
        """

    def manifest(self, digest: str) -> Manifest:
        """What the artifact consists of.

        Raises:
            NotFound: the store has no such artifact.
            ArtifactDamaged: its manifest is not the one that the digest was taken over.
            Transient: the store is out of reach.
        """

    def read(self, digest: str, name: str, *, offset: int = 0, expected: FileDigest | None = None) -> Iterator[bytes]:
        """A file of the artifact in chunks, from byte `offset` on. Trust nothing of it before the last chunk is there.

        Args:
            digest: the artifact.
            name: the file.
            offset: where to begin.
            expected: what the manifest says of the file, from who has read that and hashes the bytes where
                they come to lie: then the manifest is not read again, and the size alone is checked here.

        Raises:
            NotFound: the store has no such artifact.
            ArtifactDamaged: its size, or (from offset 0) its SHA-256, is not the manifest's.
            Transient: the store is out of reach.
        """

    def digests(self) -> list[str]:
        """Digests of all artifacts, half written ones included.

        Raises:
            Transient: the store is out of reach.
        """

    def size_bytes(self, digest: str) -> int:
        """Bytes that the artifact takes up, whole or not.

        Raises:
            Transient: the store is out of reach.
        """

    def remove(self, digest: str, *, deadline: float) -> None:
        """Remove an artifact, visibly in one step; no step begins after `deadline` (of `time.monotonic`).

        Raises:
            NotFound: the store has no such artifact.
            Transient: the store is out of reach, or the deadline has passed.
        """

    def remove_stale_staging(self, *, older_than_s: float = STALE_S) -> int:
        """Remove what killed workers left half made on this machine; returns the number of directories."""

    def remove_stale_uploads(self, *, older_than_s: float = STALE_S) -> int:
        """Remove what killed workers left half sent; returns the number of uploads."""


def open_artifact_store(settings: Settings) -> Store:
    """The artifact store that the settings name.

    Raises:
        Configuration: no library for its scheme is installed, or the credential `artifact-store` is not legal.
        Transient: its directory cannot be made.
    """
    directory = settings.artifact_directory
    if directory is not None:
        from lora_workers.local_artifacts import LocalArtifactStore

        return LocalArtifactStore(directory)
    try:
        from lora_workers.object_artifacts import ObjectArtifactStore  # fsspec, which a local store does without
    except ImportError as error:
        raise Configuration(
            f"LORA_REGISTRY_ARTIFACT_STORE: it needs {error.name}, which is not installed here",
            remedy="Install fsspec and the library of the scheme (s3fs for s3://) beside lora-registry.",
        ) from error
    options = options_for(settings.artifact_store, settings, name=ARTIFACT_STORE)
    return ObjectArtifactStore(settings.artifact_store, scratch=settings.scratch, options=options)


def verified(
    chunks: Iterable[bytes], expected: FileDigest, *, offset: int, subject: str, is_hashed: bool = True
) -> Iterator[bytes]:
    """Pass chunks on, and fail at their end if they were not what was expected.

    Raises:
        ArtifactDamaged: size or, from offset 0 and unless the reader hashes them, SHA-256 differ.
    """
    is_hashed = is_hashed and offset == 0
    sha256, size = hashlib.sha256(), offset
    for chunk in chunks:
        size += len(chunk)
        if size > expected.size_bytes:
            break
        if is_hashed:
            sha256.update(chunk)
        yield chunk
    if size != expected.size_bytes:
        more = "more than" if size > expected.size_bytes else f"{size} of"
        raise ArtifactDamaged(f"{subject} has {more} {expected.size_bytes} bytes")
    if is_hashed and sha256.hexdigest() != expected.sha256:
        raise ArtifactDamaged(f"{subject} has other bytes than its manifest says")
