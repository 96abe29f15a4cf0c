"""What all sources but local directories have in common: two files among others, pinned, read once, verified."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lora_registry import source_codes
from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE, FileDigest
from lora_registry.code import Code
from lora_registry.errors import Rejected, Transient
from lora_registry.readiness import Readiness, check_digest
from lora_registry.sources import Listing, PinnedFile, PinnedSource, ReadRange, Tap
from lora_registry.tokenizer_maps import TOKENIZER_FILES
from lora_workers.sources.digesting import ChunkDigest


@dataclass(frozen=True)
class StoredObject:
    """An object of a bucket as a listing shows it.

    Attributes:
        key: its whole key.
        etag: its ETag, without quotes.
        modified_s: when it was written, in seconds since 1970.
    """

    key: str
    etag: str
    modified_s: float


class Store(Protocol):
    """One kind of place far away; each method maps its library's errors to this package's."""

    def list(self, url: str, *, credential: str) -> Listing:
        """See `Source.list`. Listing costs as little as it can: see `pin`."""

    def pin(self, file: PinnedFile) -> PinnedFile:
        """A file of a listing, pinned as well as the place can."""

    def read(self, file: PinnedFile, offset: int, length: int) -> bytes:
        """The bytes at (offset, length), all of which are there."""

    def stream(self, file: PinnedFile) -> Iterator[bytes]:
        """All bytes of a pinned file in one pass; the end is reached only if it was the pinned file throughout."""


class RemoteSource:
    """A source over a store.

    Args:
        scheme: of its URLs.
        store: where the files are.
        readiness: when an upload counts as done.
    """

    def __init__(self, scheme: str, store: Store, readiness: Readiness) -> None:
        self._scheme = scheme
        self._store = store
        self._readiness = readiness

    def resolve(self, url: str, *, credential: str = "") -> PinnedSource:
        """See `Source.resolve`."""
        listing = self._store.list(url, credential=credential)
        try:
            files = self._readiness.check(printable(url), listing, self._read_whole)
            config, weights = self._store.pin(files[CONFIG_FILE]), self._store.pin(files[WEIGHTS_FILE])
        except Rejected as error:
            if any(finding.code == source_codes.SOURCE_CHANGED.code for finding in error.findings):
                raise Transient(f"{printable(url)} changes while it is looked at") from error
            raise
        return PinnedSource(
            self._scheme,
            config,
            weights,
            tokenizer=tuple(listing.files[name] for name in TOKENIZER_FILES if name in listing.files),
            credential=credential,
            url=listing.url,
            may_grow_s=0.0 if listing.is_final else self._readiness.deadline_s,
        )

    def list(self, url: str, *, credential: str = "") -> Listing:
        """See `Source.list`."""
        return self._store.list(url, credential=credential)

    def read(self, file: PinnedFile, *, limit_bytes: int) -> bytes:
        """See `Source.read`."""
        content = self._store.read(file, 0, min(file.size_bytes, limit_bytes + 1))
        if len(content) == file.size_bytes:
            check_digest(file, hashlib.sha256(content).hexdigest())
        return content

    @contextmanager
    def ranged(self, file: PinnedFile) -> Iterator[ReadRange]:
        """See `Source.ranged`."""

        def read(offset: int, length: int) -> bytes:
            length = min(length, file.size_bytes - offset)
            return self._store.read(file, offset, length) if length > 0 else b""

        yield read

    def copy(self, file: PinnedFile, to: str, *, tap: Tap | None = None) -> FileDigest:
        """See `Source.copy`."""
        left = file.size_bytes
        try:
            with Path(to).open("wb") as target, ChunkDigest(tap) as digest:
                for chunk in self._store.stream(file):
                    view = memoryview(chunk)
                    digest.update(view)
                    left -= len(view)
                    if left < 0:  # it may never end
                        raise Transient(f"{file.name}: more came than {file.size_bytes} bytes")
                    target.write(view)
        except OSError as error:
            raise Transient(f"{file.name} cannot be copied: {error.strerror or error}") from error
        copied = digest.result()
        if copied.size_bytes != file.size_bytes:
            raise Transient(f"{file.name}: {copied.size_bytes} bytes came instead of {file.size_bytes}")
        check_digest(file, copied.sha256)
        return copied

    def _read_whole(self, file: PinnedFile) -> bytes:
        return self._store.read(file, 0, file.size_bytes)


def rejected(code: Code, subject: str, *, expected: object = "", actual: object = "") -> Rejected:
    """The rejection with one finding of `code`."""
    finding = code.finding(subject, expected=expected, actual=actual)
    return Rejected(f"{subject}: {finding.message}", findings=(finding,), remedy=finding.remedy)


def changed(file: PinnedFile) -> Rejected:
    """The rejection of a file that is not the pinned one any more."""
    return rejected(source_codes.SOURCE_CHANGED, file.name)


def check_path(path: str, *, url: str) -> str:
    """The path of a URL below its bucket or repository, without a "/" at its end.

    Raises:
        Rejected: it has empty, `.` or `..` parts, control characters or a chained URL.
    """
    path = path.removesuffix("/")
    parts = path.split("/") if path else []
    is_legal = path.isprintable() and "\\" not in path and "::" not in path and len(path) <= 1024
    if not is_legal or any(part in ("", ".", "..") for part in parts):
        raise rejected(source_codes.SOURCE_URL_INVALID, printable(url))
    return path


def printable(url: str) -> str:
    """A URL to show: without control characters, without user name and password, at most 200 characters."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    shown = f"{scheme}{separator}{host.rpartition('@')[2] if scheme != 'hf' else host}{slash}{path}"
    with suppress(ValueError):
        shown = shown.partition("?")[0] if scheme in ("http", "https") else shown
    return "".join(each if each.isprintable() else "?" for each in shown)[:200]
