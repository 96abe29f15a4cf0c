"""Artifacts in a local (or shared) directory: staged beside the store, synced, and renamed into it."""

from __future__ import annotations

import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from lora_registry.artifacts import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, FileDigest, Manifest, is_digest
from lora_registry.durable import rename_into_place, sync
from lora_registry.errors import ArtifactDamaged, NotFound, Transient
from lora_registry.report import ValidationReport
from lora_workers.artifact_store import STALE_S, verified
from lora_workers.staging import file_system_errors, remove_stale, staging_directory

_FILES = (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE)
_CHUNK_BYTES = 1 << 20
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
        """Make it durable and visible under its digest; if that is there already and sound, this copy is dropped.

        Raises:
            Transient: the file system cannot take it now.
        """
        manifest = Manifest.of(config, weights)
        target = self._root / "sha256" / manifest.digest.removeprefix("sha256:")
        with file_system_errors():
            if not _is_sound(target, manifest):
                self._finish(config, manifest)
                try:
                    rename_into_place(self._directory, target)
                except FileExistsError:
                    self._mend(target, manifest)
            _seal(target)
        return manifest.digest

    def _finish(self, config: bytes, manifest: Manifest) -> None:
        (self._directory / CONFIG_FILE).write_bytes(config)
        (self._directory / MANIFEST_FILE).write_bytes(manifest.to_json())
        for name in _FILES:  # all are written by now: fewer waits for the disk
            sync(self._directory / name, mode=_READ_ONLY_FILE)
        sync(self._directory, mode=_RENAMED_DIRECTORY)

    def _mend(self, target: Path, manifest: Manifest) -> None:
        """Another worker was faster with the same bytes; or a disk damaged them: file by file, the path stays."""
        if _is_sound(target, manifest):
            return
        target.chmod(_RENAMED_DIRECTORY)
        for name in _FILES:
            (self._directory / name).replace(target / name)
        sync(target)


class LocalArtifactStore:
    """Artifacts in a directory.

    Args:
        root: directory of the store; made if it is not there.

    Raises:
        Transient: the directory cannot be made.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        with file_system_errors():
            for part in ("sha256", "staging", "reports"):
                (self._root / part).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def stage(self) -> Iterator[StagedArtifact]:
        """See `Store.stage`."""
        with staging_directory(self._root / "staging") as directory:
            yield StagedArtifact(directory, self._root)

    def path(self, digest: str) -> Path:
        """Directory of the artifact.

        Raises:
            NotFound: the store has no such artifact.
        """
        directory = self._directory(digest)
        if not is_digest(digest) or not directory.is_dir():
            raise NotFound(f"the store has no artifact {digest[:80]}")
        return directory

    def manifest(self, digest: str) -> Manifest:
        """See `Store.manifest`."""
        with _reading(digest):
            return Manifest.from_json((self.path(digest) / MANIFEST_FILE).read_bytes(), digest=digest)

    def read(self, digest: str, name: str, *, offset: int = 0, expected: FileDigest | None = None) -> Iterator[bytes]:
        """See `Store.read`."""
        is_hashed, subject = expected is None, f"{name} of {digest}"
        expected = expected or self.manifest(digest).file(name)
        with _reading(digest), (self.path(digest) / name).open("rb", buffering=0) as file:
            file.seek(offset)
            chunks = iter(lambda: file.read(_CHUNK_BYTES), b"")
            yield from verified(chunks, expected, offset=offset, subject=subject, is_hashed=is_hashed)

    def keep_report(self, registration_id: str, report: ValidationReport) -> None:
        """Keep the whole report of a registration.

        Raises:
            Transient: the file system cannot take it now.
        """
        with file_system_errors():
            (self._root / "reports" / f"{registration_id}.json").write_text(report.to_json(), encoding="utf-8")

    def reports(self) -> dict[str, datetime]:
        """See `Store.reports`."""
        with file_system_errors():
            found = [(path.stem, path.stat().st_mtime) for path in (self._root / "reports").glob("*.json")]
        return {name: datetime.fromtimestamp(changed_s, UTC) for name, changed_s in found}

    def remove_report(self, registration_id: str) -> None:
        """See `Store.remove_report`."""
        with file_system_errors():
            (self._root / "reports" / f"{registration_id}.json").unlink(missing_ok=True)

    def digests(self) -> list[str]:
        """See `Store.digests`."""
        with file_system_errors():
            found = (f"sha256:{path.name}" for path in (self._root / "sha256").iterdir())
            return sorted(digest for digest in found if is_digest(digest))

    def size_bytes(self, digest: str) -> int:
        """See `Store.size_bytes`."""
        with file_system_errors(), suppress(FileNotFoundError):
            return sum(path.stat().st_size for path in self._directory(digest).iterdir())
        return 0

    def remove(self, digest: str, *, deadline: float) -> None:
        """See `Store.remove`: one rename takes it away, and what is left of it lies in staging."""
        directory = self.path(digest)
        with file_system_errors():
            doomed = Path(tempfile.mkdtemp(dir=self._root / "staging"))
            directory.chmod(_RENAMED_DIRECTORY)
            if time.monotonic() > deadline:
                raise Transient(f"artifact store: too slow to remove {digest}")
            rename_into_place(directory, doomed)
            sync(directory.parent)
        shutil.rmtree(doomed, ignore_errors=True)

    def remove_stale_staging(self, *, older_than_s: float = STALE_S) -> int:
        """See `Store.remove_stale_staging`."""
        return remove_stale(self._root / "staging", older_than_s=older_than_s, pattern="*")

    def remove_stale_uploads(self, *, older_than_s: float = STALE_S) -> int:  # noqa: ARG002 - the port's
        """See `Store.remove_stale_uploads`: nothing is sent anywhere."""
        return 0

    def _directory(self, digest: str) -> Path:
        return self._root / "sha256" / digest.removeprefix("sha256:")


def _is_sound(target: Path, manifest: Manifest) -> bool:
    """Whether the artifact is there with the bytes that its digest stands for: they are read, once for each reuse."""
    try:
        if (target / MANIFEST_FILE).read_bytes() != manifest.to_json():
            return False
        return all(FileDigest.read(target / name) == manifest.file(name) for name in (CONFIG_FILE, WEIGHTS_FILE))
    except FileNotFoundError:
        return False


def _seal(target: Path) -> None:
    """Finish what comes after the rename, also for a worker that was killed there; then it outlives a power failure."""
    if stat.S_IMODE(target.stat().st_mode) != _READ_ONLY_DIRECTORY:
        target.chmod(_READ_ONLY_DIRECTORY)
        sync(target.parent)


@contextmanager
def _reading(digest: str) -> Iterator[None]:
    try:
        with file_system_errors():
            yield
    except Transient as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise ArtifactDamaged(f"a file of {digest} is missing") from error
        raise
