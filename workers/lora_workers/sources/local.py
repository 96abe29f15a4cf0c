"""Local directories, under the roots that the operator allows.

A path is resolved to its real place before it is compared with the roots, so neither `..` nor a symlink leads out.
Each file is opened once, without following a link and without waiting (a pipe would never answer); what was pinned is
compared with the descriptor that is then read.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lora_registry import file_codes, source_codes
from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE, FileDigest
from lora_registry.code import Code
from lora_registry.errors import Rejected, Transient
from lora_registry.readiness import Readiness, check_digest
from lora_registry.ready_marker import MAX_MARKER_BYTES
from lora_registry.sources import Listing, PinnedFile, PinnedSource, Tap
from lora_registry.tokenizer_maps import TOKENIZER_FILES
from lora_workers.sources.digesting import CHUNK_BYTES, ChunkDigest

_MOST_NAMES = 10_000
_MOST_FOLDERS = 1000
_REJECTED_ERRNO: dict[int, Code] = {
    errno.EACCES: source_codes.SOURCE_PERMISSION,
    errno.EPERM: source_codes.SOURCE_PERMISSION,
    errno.ENOENT: source_codes.SOURCE_NOT_FOUND,
    errno.ENOTDIR: source_codes.SOURCE_NOT_A_DIRECTORY,
    errno.ELOOP: file_codes.FILE_NOT_REGULAR,
    errno.ENXIO: file_codes.FILE_NOT_REGULAR,
    errno.ENAMETOOLONG: source_codes.SOURCE_NOT_FOUND,
}


class LocalSource:
    """Adapters in directories that this process can read.

    Args:
        roots: absolute directories that adapters may lie in; none allows nothing.
        readiness: when a directory counts as complete; by default it is rejected at once where it is not.
    """

    def __init__(self, roots: Sequence[Path], *, readiness: Readiness | None = None) -> None:
        self._roots = tuple(os.path.realpath(root) for root in roots)
        self._readiness = readiness or Readiness()

    def resolve(self, url: str, *, credential: str = "") -> PinnedSource:
        """Find and pin the two files of the adapter in directory `url` (an absolute path or `file://` URL).

        Raises:
            Rejected: outside the roots, missing, unreadable, or no adapter.
            Deferred: not all of it is there yet, and the readiness grants it time.
            Transient: the file system failed.
        """
        listing = self.list(url, credential=credential)
        files = self._readiness.check(url, listing, lambda file: self.read(file, limit_bytes=MAX_MARKER_BYTES))
        tokenizer = tuple(self._tokenizer(listing.files))
        growing_s = self._readiness.deadline_s
        return PinnedSource("file", files[CONFIG_FILE], files[WEIGHTS_FILE], tokenizer, may_grow_s=growing_s)

    def list(self, url: str, *, credential: str = "") -> Listing:
        """The files of a directory, and an adapter's in a folder of it if it has none; each is pinned when it is
        asked for.

        Raises:
            Rejected: outside the roots, missing or unreadable.
            Transient: the file system failed.
        """
        del credential  # the file system knows this process's user only
        directory = self._contained(url.removeprefix("file://"), subject=url)
        with _mapped(url), os.scandir(directory) as listing:
            found = [entry.name for _, entry in zip(range(_MOST_NAMES), listing, strict=False)]
        # Where an upload is waited for, a checkpoint below it is not yet what the adapter was taken for.
        if not self._readiness.deadline_s and CONFIG_FILE not in found and WEIGHTS_FILE not in found:
            found += _adapters_below(directory, found)
        names = [_as_text(name) for name in found]
        return Listing(url, _Pins(names, lambda name: self._pin(directory, name)))

    def read(self, file: PinnedFile, *, limit_bytes: int) -> bytes:
        """The whole of a small pinned file; one byte more than `limit_bytes` shows its reader that it is too large.

        Raises:
            Rejected: it changed or may not be read.
            Transient: the file system failed.
        """
        with _opened(file) as descriptor, _mapped(file.location):
            content = os.pread(descriptor, limit_bytes + 1, 0)
        if len(content) == file.size_bytes:
            check_digest(file, hashlib.sha256(content).hexdigest())
        return content

    @contextmanager
    def ranged(self, file: PinnedFile) -> Iterator[Callable[[int, int], bytes]]:
        """Open a pinned file once, to read its bytes at (offset, length).

        Raises:
            Rejected: it changed or may not be read.
            Transient: the file system failed.
        """
        with _opened(file) as descriptor, _mapped(file.location):
            yield lambda offset, length: os.pread(descriptor, length, offset)

    def copy(self, file: PinnedFile, to: str, *, tap: Tap | None = None) -> FileDigest:
        """Copy a pinned file to `to`, digest its bytes on the way and show them to `tap`.

        Raises:
            Rejected: it changed, while it was copied at the latest, or may not be read.
            Transient: the file system failed.
        """
        buffer = memoryview(bytearray(CHUNK_BYTES))
        with _opened(file) as source, _mapped(file.location), Path(to).open("wb") as target, ChunkDigest(tap) as digest:
            left = file.size_bytes
            while left >= 0 and (count := os.readv(source, [buffer])):  # it may grow all the while
                digest.update(buffer[:count])
                target.write(buffer[:count])
                left -= count
            _check_pin(file, os.fstat(source))
        copied = digest.result()
        check_digest(file, copied.sha256)
        return copied

    def _tokenizer(self, files: Mapping[str, PinnedFile]) -> Iterator[PinnedFile]:
        """The tokenizer's files; one that may not be read is left out, since nothing of it is kept."""
        for name in TOKENIZER_FILES:
            if name in files:
                with suppress(Rejected):
                    yield files[name]

    def _contained(self, path: str, *, subject: str) -> str:
        if not Path(path).is_absolute() or "\0" in path:
            raise _rejected(source_codes.SOURCE_UNSUPPORTED, subject)
        real = os.path.realpath(path)
        if not any(real == root or real.startswith(root.rstrip("/") + "/") for root in self._roots):
            raise _rejected(source_codes.SOURCE_OUTSIDE_ROOTS, subject)
        return real

    def _pin(self, directory: str, name: str) -> PinnedFile:
        # A file may be a link (the Hub's cache keeps blobs beside its snapshots), but not out of the roots.
        real = self._contained(f"{directory}/{name}", subject=name)
        with _mapped(name):
            found = Path(real).lstat()
            readable = os.access(real, os.R_OK)
        if not stat.S_ISREG(found.st_mode):
            raise _rejected(file_codes.FILE_NOT_REGULAR, name)
        if not readable:
            raise _rejected(source_codes.SOURCE_PERMISSION, name, actual=f"mode {stat.S_IMODE(found.st_mode):04o}")
        return PinnedFile(real, _version(found), found.st_size, name)


class _Pins(Mapping[str, PinnedFile]):
    """The files of a directory by name, each pinned when it is asked for: most of them nobody wants."""

    def __init__(self, names: Sequence[str], pin: Callable[[str], PinnedFile]) -> None:
        self._names = dict.fromkeys(names)
        self._pin = pin

    def __getitem__(self, name: str) -> PinnedFile:
        if name not in self._names:
            raise KeyError(name)
        return self._pin(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _adapters_below(directory: str, names: Sequence[str]) -> list[str]:
    """Those of an adapter's two files that lie one folder deeper."""
    folders = [name for name in names[:_MOST_FOLDERS] if Path(directory, name).is_dir()]
    below = [f"{folder}/{file}" for folder in folders for file in (CONFIG_FILE, WEIGHTS_FILE)]
    return [name for name in below if os.path.lexists(f"{directory}/{name}")]


def _as_text(name: str) -> str:
    """A file's name as text that can be stored and shown, whatever bytes it is made of."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _version(found: os.stat_result) -> str:
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def _check_pin(file: PinnedFile, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _rejected(file_codes.FILE_NOT_REGULAR, Path(file.location).name)
    if _version(found) != file.version:
        raise _rejected(source_codes.SOURCE_CHANGED, Path(file.location).name)


@contextmanager
def _opened(file: PinnedFile) -> Iterator[int]:
    name = Path(file.location).name
    with _mapped(name):
        descriptor = os.open(file.location, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_pin(file, os.fstat(descriptor))
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _mapped(subject: str) -> Iterator[None]:
    """Map the file system's errors: what the publisher can mend is Rejected, the rest is Transient."""
    try:
        yield
    except OSError as error:
        code = _REJECTED_ERRNO.get(error.errno or 0)
        if code is None:
            raise Transient(f"{subject}: {error.strerror}") from error
        raise _rejected(code, subject) from error


def _rejected(code: Code, subject: str, *, actual: str = "") -> Rejected:
    finding = code.finding(subject, actual=actual)
    return Rejected(f"{subject}: {finding.message}", findings=(finding,))
