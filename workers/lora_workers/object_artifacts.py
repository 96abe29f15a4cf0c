"""Artifacts on an object store, or on anything else that fsspec knows: the manifest is written last and removed first.

An artifact without its manifest does not exist. Adapters are judged in a local directory before anything is sent.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec

from lora_registry.artifacts import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, FileDigest, Manifest, is_digest
from lora_registry.errors import ArtifactDamaged, Configuration, NotFound, RegistryError, Transient
from lora_registry.report import ValidationReport
from lora_workers.artifact_store import STALE_S, verified
from lora_workers.staging import remove_stale, staging_directory

_CHUNK_BYTES = 8 << 20
"""Read with one request."""
_WITHOUT_DIRECTORIES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})


class StagedUpload:
    """An artifact in the making, in a local directory."""

    def __init__(self, directory: Path, store: ObjectArtifactStore) -> None:
        self._directory = directory
        self._store = store

    @property
    def weights_path(self) -> str:
        """Local path to copy the weights to."""
        return str(self._directory / WEIGHTS_FILE)

    def keep(self, config: bytes, weights: FileDigest) -> str:
        """Send it and make it visible under its digest, unless it is there whole already.

        Raises:
            Transient: the store cannot take it now.
        """
        manifest = Manifest.of(config, weights)
        self._store.put(manifest, config, self.weights_path)
        return manifest.digest


class ObjectArtifactStore:
    """Artifacts below a URL that fsspec opens.

    Args:
        url: `s3://bucket/prefix` or the like.
        scratch: local directory to judge adapters in.
        options: for the file system (endpoint, credentials); what is missing, fsspec takes from its configuration.

    Raises:
        Configuration: the scheme's library is missing, or the URL holds a password.
    """

    def __init__(self, url: str, *, scratch: Path, options: dict[str, Any] | None = None) -> None:
        if urlsplit(url).password:
            raise Configuration("LORA_REGISTRY_ARTIFACT_STORE: no password in the URL; give fsspec's configuration")
        cacheless = {"skip_instance_cache": True, "use_listings_cache": False}
        try:
            self._files, root = fsspec.core.url_to_fs(url, **cacheless, **(options or {}))
        except (ImportError, ValueError) as error:
            raise Configuration(f"LORA_REGISTRY_ARTIFACT_STORE: {error}") from error
        self._root: str = root.rstrip("/")
        self._has_directories = url.partition("://")[0] not in _WITHOUT_DIRECTORIES
        self._scratch = scratch

    @contextmanager
    def stage(self) -> Iterator[StagedUpload]:
        """See `Store.stage`."""
        with staging_directory(self._scratch) as directory:
            yield StagedUpload(directory, self)

    def put(self, manifest: Manifest, config: bytes, weights_path: str) -> None:
        """Send an artifact, unless it is there whole; its bytes are those of its name, so nothing is ever changed.

        Raises:
            Transient: the store cannot take it now, or lost what it took.
        """
        place = self._place(manifest.digest)
        with _store_errors():
            if self._is_whole(manifest):
                return
            if self._has_directories:
                self._files.makedirs(place, exist_ok=True)
            self._files.put_file(weights_path, f"{place}/{WEIGHTS_FILE}")
            self._files.pipe_file(f"{place}/{CONFIG_FILE}", config)
            self._files.pipe_file(f"{place}/{MANIFEST_FILE}", manifest.to_json())
            if not self._is_whole(manifest):
                raise Transient(f"artifact store: {manifest.digest} is not there after it was written")

    def manifest(self, digest: str) -> Manifest:
        """See `Store.manifest`."""
        if not is_digest(digest):
            raise NotFound(f"the store has no artifact {digest[:80]}")
        with _store_errors(absent=NotFound(f"the store has no artifact {digest}")):
            raw = self._files.cat_file(f"{self._place(digest)}/{MANIFEST_FILE}")
        return Manifest.from_json(raw, digest=digest)

    def read(self, digest: str, name: str, *, offset: int = 0, expected: FileDigest | None = None) -> Iterator[bytes]:
        """See `Store.read`."""
        is_hashed, subject, path = expected is None, f"{name} of {digest}", f"{self._place(digest)}/{name}"
        expected = expected or self.manifest(digest).file(name)
        with _store_errors(absent=ArtifactDamaged(f"{subject} is missing")):
            size = self._files.info(path)["size"]
        if size != expected.size_bytes:
            raise ArtifactDamaged(f"{subject} has {size} of {expected.size_bytes} bytes")
        chunks = self._ranges(path, offset, size, subject)
        yield from verified(chunks, expected, offset=offset, subject=subject, is_hashed=is_hashed)

    def keep_report(self, registration_id: str, report: ValidationReport) -> None:
        """See `Store.keep_report`.

        Raises:
            Transient: the store cannot take it now.
        """
        with _store_errors():
            if self._has_directories:
                self._files.makedirs(f"{self._root}/reports", exist_ok=True)
            self._files.pipe_file(self._report(registration_id), report.to_json().encode())

    def reports(self) -> dict[str, datetime]:
        """See `Store.reports`."""
        found: dict[str, datetime] = {}
        for each in self._entries(f"{self._root}/reports"):
            name, dot, ending = each["name"].rpartition("/")[2].partition(".")
            if dot and ending == "json":
                with _store_errors():
                    # S3 says it in the listing; others are asked for each report.
                    changed: datetime = each.get("LastModified") or self._files.modified(each["name"])
                found[name] = changed if changed.tzinfo else changed.replace(tzinfo=UTC)
        return found

    def remove_report(self, registration_id: str) -> None:
        """See `Store.remove_report`."""
        with _store_errors(), suppress(FileNotFoundError):
            self._files.rm_file(self._report(registration_id))

    def digests(self) -> list[str]:
        """See `Store.digests`."""
        found = (f"sha256:{path.rstrip('/').rpartition('/')[2]}" for path in self._list(f"{self._root}/sha256"))
        return sorted(digest for digest in found if is_digest(digest))

    def size_bytes(self, digest: str) -> int:
        """See `Store.size_bytes`."""
        return sum(self._list(self._place(digest)).values())

    def remove(self, digest: str, *, deadline: float) -> None:
        """See `Store.remove`: the manifest goes first."""
        paths = sorted(self._list(self._place(digest)), key=lambda path: not path.endswith(f"/{MANIFEST_FILE}"))
        if not paths:
            raise NotFound(f"the store has no artifact {digest[:80]}")
        for path in paths:
            if time.monotonic() > deadline:
                raise Transient(f"artifact store: too slow to remove {digest}")
            with _store_errors():
                self._files.rm_file(path)
        if self._has_directories:
            with _store_errors():
                self._files.rmdir(self._place(digest))

    def remove_stale_staging(self, *, older_than_s: float = STALE_S) -> int:
        """See `Store.remove_stale_staging`."""
        return remove_stale(self._scratch, older_than_s=older_than_s)

    def remove_stale_uploads(self, *, older_than_s: float = STALE_S) -> int:
        """See `Store.remove_stale_uploads`: parts of large objects, which S3 keeps unseen until somebody ends them."""
        if not hasattr(self._files, "list_multipart_uploads"):
            return 0
        bucket, _, prefix = self._root.partition("/")
        before, removed = datetime.now(UTC) - timedelta(seconds=older_than_s), 0
        with _store_errors():
            for upload in self._files.list_multipart_uploads(bucket):
                if upload["Key"].startswith(prefix) and upload["Initiated"] < before:
                    named = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                    self._files.call_s3("abort_multipart_upload", **named)
                    removed += 1
        return removed

    def _report(self, registration_id: str) -> str:
        return f"{self._root}/reports/{registration_id}.json"

    def _place(self, digest: str) -> str:
        return f"{self._root}/sha256/{digest.removeprefix('sha256:')}"

    def _is_whole(self, manifest: Manifest) -> bool:
        """Whether manifest and both files are there with their sizes: an interrupted removal may have left some."""
        sizes = {path.rpartition("/")[2]: size for path, size in self._list(self._place(manifest.digest)).items()}
        files = {CONFIG_FILE: manifest.config.size_bytes, WEIGHTS_FILE: manifest.weights.size_bytes}
        return sizes == files | {MANIFEST_FILE: len(manifest.to_json())}

    def _list(self, place: str) -> dict[str, int]:
        """Paths right below `place` → size in bytes (0 for what is no object)."""
        return {each["name"]: each["size"] or 0 for each in self._entries(place)}

    def _entries(self, place: str) -> list[dict[str, Any]]:
        """What a listing says of each path right below `place`."""
        with _store_errors():
            try:
                found = self._files.ls(place, detail=True)
            except FileNotFoundError:
                return []
        return [each for each in found if each["name"].rstrip("/") != place]

    def _ranges(self, path: str, offset: int, end: int, subject: str) -> Iterator[bytes]:
        for start in range(offset, end, _CHUNK_BYTES):
            with _store_errors(absent=ArtifactDamaged(f"{subject} is missing")):
                chunk: bytes = self._files.cat_file(path, start=start, end=min(end, start + _CHUNK_BYTES))
            yield chunk


@contextmanager
def _store_errors(*, absent: RegistryError | None = None) -> Iterator[None]:
    """Map what any back-end raises to Transient, and "there is no such object" to `absent`."""
    try:
        yield
    except RegistryError:
        raise
    except FileNotFoundError as error:
        raise absent or Transient(f"artifact store: there is no {error}") from error
    except Exception as error:  # each of fsspec's back-ends raises what its own library does
        raise Transient(f"artifact store: {type(error).__name__}: {error}") from error
