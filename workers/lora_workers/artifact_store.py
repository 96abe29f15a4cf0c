"""The artifact store: a directory of content-addressed artifacts, written whole or not at all.

<root>/sha256/<64 hex digits>/adapter_config.json  adapter_model.safetensors  manifest.json
<root>/staging/…      artifacts in the making; what a killed worker left is removed after a day
<root>/reports/…      <registration id>.json: its whole report, beyond the findings that Redis keeps
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lora_registry.artifacts import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, FileDigest, Manifest
from lora_registry.errors import NotFound, Transient
from lora_registry.report import ValidationReport

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_STALE_STAGING_S = 86_400.0
_READ_ONLY_FILE = 0o444
_READ_ONLY_DIRECTORY = 0o555
_RENAMED_DIRECTORY = 0o755  # a directory that its owner cannot write cannot be renamed to another parent
"""Engines run as other users: everybody reads, nobody writes. Source: safetensors 0.8 writes mode 0600."""


class StagedArtifact:
    """An artifact in the making, in a directory of its own."""

    def __init__(self, directory: Path, root: Path) -> None:
        self._directory = directory
        self._root = root

    @property
    def weights_path(self) -> str:
        """Local path to copy the weights to."""
        return str(self._directory / WEIGHTS_FILE)

    def keep(self, config: bytes, weights: FileDigest) -> str:
        """Make it durable and visible under its digest; if that is there already, this copy is dropped.

        Raises:
            Transient: the file system cannot take it now.
        """
        manifest = Manifest(FileDigest(hashlib.sha256(config).hexdigest(), len(config)), weights)
        target = self._root / "sha256" / manifest.digest.removeprefix("sha256:")
        with _file_system_errors():
            if target.is_dir():
                return manifest.digest
            (self._directory / CONFIG_FILE).write_bytes(config)
            (self._directory / MANIFEST_FILE).write_bytes(manifest.to_json())
            for name in (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE):  # all are written by now: fewer waits for the disk
                _sync(self._directory / name, mode=_READ_ONLY_FILE)
            _sync(self._directory, mode=_RENAMED_DIRECTORY)
            with suppress(FileExistsError):
                _rename(self._directory, target)
                target.chmod(_READ_ONLY_DIRECTORY)
                _sync(target.parent)
        return manifest.digest


class LocalArtifactStore:
    """Artifacts in a local (or shared) directory.

    Args:
        root: directory of the store; made if it is not there.

    Raises:
        Transient: the directory cannot be made.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        with _file_system_errors():
            for part in ("sha256", "staging", "reports"):
                (self._root / part).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def stage(self) -> Iterator[StagedArtifact]:
        """Begin an artifact; what was not kept when the context ends is removed.

        Raises:
            Transient: the file system cannot take it now.
        """
        with _file_system_errors():
            directory = Path(tempfile.mkdtemp(dir=self._root / "staging"))
        try:
            yield StagedArtifact(directory, self._root)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def path(self, digest: str) -> Path:
        """Directory of the artifact.

        Raises:
            NotFound: the store has no such artifact.
        """
        directory = self._root / "sha256" / digest.removeprefix("sha256:")
        if not _DIGEST.fullmatch(digest) or not directory.is_dir():
            raise NotFound(f"the store has no artifact {digest[:80]}")
        return directory

    def keep_report(self, registration_id: str, report: ValidationReport) -> None:
        """Keep the whole report of a registration.

        Raises:
            Transient: the file system cannot take it now.
        """
        with _file_system_errors():
            (self._root / "reports" / f"{registration_id}.json").write_text(report.to_json(), encoding="utf-8")

    def remove_stale_staging(self, *, older_than_s: float = _STALE_STAGING_S) -> int:
        """Remove what killed workers left half made.

        Returns:
            Number of directories removed.

        Raises:
            Transient: the file system cannot do it now.
        """
        removed = 0
        with _file_system_errors():
            for directory in list((self._root / "staging").iterdir()):
                with suppress(FileNotFoundError):  # another worker was faster
                    if time.time() - directory.stat().st_mtime > older_than_s:
                        shutil.rmtree(directory, ignore_errors=True)
                        removed += 1
        return removed


def _sync(path: Path, *, mode: int | None = None) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if mode is not None:
            os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(directory: Path, target: Path) -> None:
    """Rename, where "it is there already" (a second worker was faster with the same bytes) is FileExistsError."""
    try:
        directory.rename(target)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(str(target)) from error
        raise


@contextmanager
def _file_system_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Transient(f"artifact store: {error.strerror or error}: {error.filename}") from error
