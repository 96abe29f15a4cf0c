"""The node's cache: artifacts by digest on the local disk, whole or not at all, verified, and never changed.

    <cache>/sha256/<64 hex digits>/adapter_config.json  adapter_model.safetensors  manifest.json
    <cache>/staging/…     what is being fetched; a fetch that broke off goes on from there
    <cache>/served/…, <cache>/routes.json: notes, see note_files.py

Engines read an adapter's files again at any time, and vLLM's dies if they are gone or changed: a directory keeps its
path and its bytes for as long as an engine may know it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import struct
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

from lora_registry import node_codes as codes
from lora_registry.artifacts import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, FileDigest, Manifest, is_digest
from lora_registry.errors import ArtifactDamaged, Configuration, NotFound, Transient
from lora_workers.node.disk import (
    OPEN_DIRECTORY,
    READ_ONLY_DIRECTORY,
    READ_ONLY_FILE,
    disk_failures,
    make_directory,
    write_file,
)
from lora_workers.node.failures import NodeFailure

_FILES: Final = (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE)
_CHUNK_BYTES: Final = 1 << 20
_BEGUN_FILE: Final = 0o644
_LOCK: Final = struct.Struct("hhqqi0q")
"""`struct flock`: kind, from where, first byte, bytes, process. Source: Linux, F_OFD_SETLKW(2const)."""
Fingerprint = list[tuple[int, int, int]]
_UNVERIFIED: Final[tuple[str, Fingerprint]] = ("", [])


class Origin(Protocol):
    """Where artifacts are fetched from: an artifact store."""

    def manifest(self, digest: str) -> Manifest:
        """See `lora_workers.artifact_store.Store`."""

    def read(self, digest: str, name: str, *, offset: int = 0, expected: FileDigest | None = None) -> Iterator[bytes]:
        """See `lora_workers.artifact_store.Store`."""


class Cache:
    """A cache directory; an agent and the plug-in of its engine may share it, whoever they run as.

    Args:
        root: the directory; made if it is not there.
        max_bytes: what it may hold; None: as much as the disk takes.
    """

    def __init__(self, root: Path, *, max_bytes: int | None = None) -> None:
        self.root = root.absolute()
        self._artifacts = f"{self.root / 'sha256'}/"
        self._max_bytes = max_bytes
        self._verified: dict[str, tuple[str, Fingerprint]] = {}
        """Digest → its path, and what its files looked like."""
        self._room = threading.Lock()
        self._coming: dict[str, int] = {}
        """Digest → bytes that its fetch in this process will take up."""

    def path(self, digest: str) -> Path:
        """Where the artifact lies, or would."""
        if not is_digest(digest):
            raise ValueError(f"{digest[:80]!r} is no digest")
        return Path(self._artifacts + digest.removeprefix("sha256:"))

    def digest_at(self, path: str | None) -> str | None:
        """Digest of the artifact of this cache that lies there, or would; None: it is no place in this cache."""
        if path is None or not path.startswith(self._artifacts):
            return None
        digest = f"sha256:{path.removeprefix(self._artifacts)}"
        return digest if is_digest(digest) else None

    def find(self, digest: str) -> str | None:
        """Where the artifact lies, as engines are told it; None: this process did not verify it, or it changed since.

        An agent asks it of everything that it wants, at every look.
        """
        path, fingerprint = self._verified.get(digest, _UNVERIFIED)
        return path if path and fingerprint == _fingerprint(path) else None

    def fetch(self, digest: str, origin: Origin, *, keep: Callable[[], Collection[str]] = tuple) -> Path:
        """Have the artifact here: verify what is there, fetch what is missing, mend what is damaged.

        Args:
            digest: the artifact.
            origin: where it comes from.
            keep: digests that must stay when room has to be made.

        Returns:
            Its directory.

        Raises:
            NodeFailure: it cannot be fetched or kept.
        """
        path = self.path(digest)
        with _failures():
            if not self._is_whole(digest):  # else who may only read the cache needs no lock
                with self._locked(path.name):
                    if not self._is_whole(digest):
                        self._bring(digest, origin, keep)
        with suppress(OSError):
            os.utime(path)  # the one that was not used for longest goes first
        self._verified[digest] = str(path), _fingerprint(str(path)) or []
        return path

    def digests(self) -> set[str]:
        """All artifacts that are here, whole or damaged."""
        return {f"sha256:{path.name}" for path in self._found("sha256")}

    def _found(self, part: str) -> list[Path]:
        """What in a part of the cache is called like an artifact."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return [path for path in (self.root / part).iterdir() if is_digest(f"sha256:{path.name}")]
        return []

    @contextmanager
    def of_one_agent(self) -> Iterator[None]:
        """Keep other agents out meanwhile: each would remove what only the other's engine reads.

        Raises:
            Configuration: another one is at work.
        """
        descriptor = None
        try:
            with suppress(OSError):  # a cache that cannot be written is said with each artifact
                make_directory(self.root, "staging")
                descriptor = os.open(self.root / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if descriptor is not None and not _is_locked(descriptor):
                raise Configuration(
                    f"another agent works with the cache {self.root}", remedy="Give each agent a --cache of its own."
                )
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def remove(self, digest: str) -> None:
        """Remove an artifact that no engine knows any more.

        Raises:
            NodeFailure: the cache cannot be written.
        """
        with _failures(), suppress(FileNotFoundError):
            self._remove(self.path(digest))

    # Fetching

    def _bring(self, digest: str, origin: Origin, keep: Callable[[], Collection[str]]) -> None:
        manifest = origin.manifest(digest)
        target, described = self.path(digest), manifest.to_json()
        staging = make_directory(self.root, "staging") / target.name
        make_directory(self.root, "sha256")
        begun_bytes = _begin(staging)
        wanted_bytes = manifest.config.size_bytes + manifest.weights.size_bytes + len(described)
        with self._room:
            self._make_room(wanted_bytes - begun_bytes, lambda: {*keep(), digest})
            self._coming[digest] = wanted_bytes
        try:
            for name, expected in ((CONFIG_FILE, manifest.config), (WEIGHTS_FILE, manifest.weights)):
                _bring_file(origin, digest, name, expected, staging / name)
            # Not synced, as the two files are: one that a power failure takes, like a rename, costs a fetch.
            write_file(staging / MANIFEST_FILE, described)
            _settle(staging, target)
        finally:
            del self._coming[digest]

    def _is_whole(self, digest: str) -> bool:
        directory = self.path(digest)
        with suppress(OSError, ArtifactDamaged):
            manifest = Manifest.from_json((directory / MANIFEST_FILE).read_bytes(), digest=digest)
            return all(
                FileDigest.read(directory / name) == expected
                for name, expected in ((CONFIG_FILE, manifest.config), (WEIGHTS_FILE, manifest.weights))
            )
        return False

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """One thread at a time fetches an artifact; the agent and the engine's own plug-in may share a cache.

        Each artifact is a byte of one file. The lock is the descriptor's, not the process's: threads count, too.
        """
        byte = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, int(name[:15], 16), 1, 0)
        lock = make_directory(self.root, "staging") / "lock"
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW, byte)
            yield
        finally:
            os.close(descriptor)

    # Room

    def _make_room(self, wanted_bytes: int, keep: Callable[[], Collection[str]]) -> None:
        """Remove what was not used for longest, and is not to be kept, until there is room.

        `keep` is asked only if there is none: it may ask an engine.

        Raises:
            NodeFailure: there is none.
        """
        while (short := self._short_of(wanted_bytes)) > 0:
            oldest = min(self._removable(keep()), key=lambda path: path.stat().st_mtime, default=None)
            if oldest is None:
                raise NodeFailure(
                    codes.NODE_CACHE_FULL,
                    f"{short} bytes short of room in {self.root}, and everything in it is in use",
                    may_pass=True,
                )
            self._remove(oldest)

    def _short_of(self, wanted_bytes: int) -> int:
        coming = sum(self._coming.values())
        short = wanted_bytes + coming - shutil.disk_usage(self.root).free
        if self._max_bytes is None:
            return short
        held = sum(_size_of(path) for path in self._kept() if f"sha256:{path.name}" not in self._coming)
        return max(short, held + coming + wanted_bytes - self._max_bytes)

    def _removable(self, keep: Collection[str]) -> list[Path]:
        return [path for path in self._kept() if f"sha256:{path.name}" not in {*keep, *self._coming}]

    def _kept(self) -> list[Path]:
        """Artifacts, and the beginnings of such whose fetch broke off."""
        return self._found("sha256") + self._found("staging")

    def _remove(self, directory: Path) -> None:
        self._verified.pop(f"sha256:{directory.name}", None)
        doomed = Path(tempfile.mkdtemp(dir=self.root / "staging", prefix="doomed-"))
        directory.chmod(OPEN_DIRECTORY)  # else nobody but root may move it
        directory.rename(doomed / directory.name)
        shutil.rmtree(doomed, ignore_errors=True)


def _is_locked(descriptor: int) -> bool:
    """Whether this process has the lock now; no other one has, then."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _begin(staging: Path) -> int:
    """Make the directory for a fetch; returns how many bytes an earlier one left in it."""
    try:
        staging.mkdir()
    except FileExistsError:
        for path in staging.iterdir():
            path.chmod(_BEGUN_FILE)
        return _size_of(staging)
    return 0


def _bring_file(origin: Origin, digest: str, name: str, expected: FileDigest, path: Path) -> None:
    """Fetch one file, from where an earlier try broke off.

    Raises:
        NodeFailure: it has other bytes. And what `origin` raises.
        OSError: the cache cannot take it.
    """
    for _ in range(2):
        resumed, fetched = _resume(origin, digest, name, expected, path)
        if fetched == expected:
            return
        path.unlink(missing_ok=True)
        if not resumed:  # else its beginning may be what is wrong
            break
    raise NodeFailure(
        codes.NODE_BYTES_DIFFER, f"{name} of {digest} came with other bytes than were validated", may_pass=True
    )


def _resume(origin: Origin, digest: str, name: str, expected: FileDigest, path: Path) -> tuple[bool, FileDigest]:
    """Append what is missing; returns whether there was a beginning, and the digest of what is there now."""
    with path.open("ab") as file:
        offset = file.tell()
        sha256 = _sha256_of(path) if offset else hashlib.sha256()
        try:
            for chunk in origin.read(digest, name, offset=offset, expected=expected):
                file.write(chunk)
                file.flush()
                sha256.update(chunk)  # while it is at hand, rather than read again
        except ArtifactDamaged:
            if not offset:
                raise
            # Its beginning is longer than the file: begin again.
        fetched = FileDigest(sha256.hexdigest(), file.tell())
        if fetched == expected:  # engines read it, perhaps before a node that starts again has verified it
            os.fchmod(file.fileno(), READ_ONLY_FILE)
            os.fsync(file.fileno())
        return offset > 0, fetched


def _settle(staging: Path, target: Path) -> None:
    """Move it to its place. A damaged one is mended file by file: its path never goes away."""
    if target.is_dir():
        target.chmod(OPEN_DIRECTORY)
        for name in _FILES:
            (staging / name).replace(target / name)
        staging.rmdir()
    else:
        target.unlink(missing_ok=True)  # something else of that name
        staging.rename(target)
    target.chmod(READ_ONLY_DIRECTORY)


def _sha256_of(path: Path) -> hashlib._Hash:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def _fingerprint(directory: str) -> Fingerprint | None:
    """What changes when a file is written, replaced or removed."""
    try:
        stats = [os.stat(f"{directory}/{name}") for name in _FILES]  # noqa: PTH116 - at every look, of every artifact
    except OSError:
        return None
    return [(each.st_ino, each.st_size, each.st_mtime_ns) for each in stats]


def _size_of(directory: Path) -> int:
    with suppress(OSError):
        return sum(path.stat().st_size for path in directory.iterdir())
    return 0


@contextmanager
def _failures() -> Iterator[None]:
    """Map what the file system says of the cache, and the store of an artifact, to NodeFailure."""
    try:
        with disk_failures():
            yield
    except NotFound as error:
        raise NodeFailure(codes.NODE_ARTIFACT_MISSING, error.message, may_pass=False) from error
    except ArtifactDamaged as error:
        raise NodeFailure(codes.NODE_BYTES_DIFFER, error.message, may_pass=True) from error
    except Transient as error:
        raise NodeFailure(codes.NODE_FETCH_FAILED, error.message, may_pass=True) from error
