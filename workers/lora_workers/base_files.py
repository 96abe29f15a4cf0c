"""The files of a base model, in a local directory or at any source: listed, and read in ranges."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from lora_registry.errors import Rejected
from lora_registry.sources import PinnedFile, Source

REMEDY = "Name a readable directory, repository or prefix with the base model's config.json and *.safetensors files."
_MOST_NAMES = 100_000


class BaseFiles(Protocol):
    """Where a base model lies."""

    @property
    def source(self) -> str:
        """What its profile says of where it came from, with the commit where there is one."""

    def names(self) -> Collection[str]:
        """Names of its files, without those in folders below."""

    def size_bytes(self, name: str) -> int:
        """Size of a file.

        Raises:
            Rejected: it cannot be read.
        """

    def read(self, name: str, offset: int, length: int) -> bytes:
        """The bytes at (offset, length); fewer only at the end. Several threads may read at once.

        Raises:
            Rejected: it cannot be read.
            Transient: the place is out of reach.
        """


class LocalBaseFiles:
    """A base model in a local directory.

    Args:
        directory: where it is.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def source(self) -> str:
        """The directory."""
        return str(self._directory)

    def names(self) -> Collection[str]:
        """See `BaseFiles.names`."""
        try:
            with os.scandir(self._directory) as entries:
                return {entry.name for _, entry in zip(range(_MOST_NAMES), entries, strict=False)}
        except OSError as error:
            raise _unreadable(self._directory, error) from error

    def size_bytes(self, name: str) -> int:
        """See `BaseFiles.size_bytes`."""
        try:
            return (self._directory / name).stat().st_size
        except OSError as error:
            raise _unreadable(self._directory / name, error) from error

    def read(self, name: str, offset: int, length: int) -> bytes:
        """See `BaseFiles.read`."""
        try:
            descriptor = os.open(self._directory / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                return os.pread(descriptor, length, offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unreadable(self._directory / name, error) from error


class SourceBaseFiles:
    """A base model at a source.

    Args:
        source: what reads it.
        url: where it is.
        credential: name of the credential to read it with.

    Raises:
        Rejected: there is no such place, or it may not be read.
        Transient: the place is out of reach.
    """

    def __init__(self, source: Source, url: str, *, credential: str = "") -> None:
        self._source = source
        self._listing = source.list(url, credential=credential)

    @property
    def source(self) -> str:
        """The place, with its commit."""
        return self._listing.url

    def names(self) -> Collection[str]:
        """See `BaseFiles.names`."""
        return {name for name in self._listing.files if "/" not in name}

    def size_bytes(self, name: str) -> int:
        """See `BaseFiles.size_bytes`."""
        return self._file(name).size_bytes

    def read(self, name: str, offset: int, length: int) -> bytes:
        """See `BaseFiles.read`."""
        with self._source.ranged(self._file(name)) as read:
            return read(offset, length)

    def _file(self, name: str) -> PinnedFile:
        if name not in self._listing.files:
            raise Rejected(f"{self.source} has no file {name}", remedy=REMEDY)
        return self._listing.files[name]


def _unreadable(path: Path, error: OSError) -> Rejected:
    return Rejected(f"{path} cannot be read: {error.strerror}", remedy=REMEDY)
