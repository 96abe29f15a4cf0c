"""What a source does for the stages. The sources themselves, one file per scheme, are in `lora_workers.sources`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol, Self

from lora_registry.artifacts import FileDigest

ReadRange = Callable[[int, int], bytes]
"""Gives the bytes at (offset, length) of a pinned file; fewer only at its end."""

Tap = Callable[[memoryview], None]
"""Sees the chunks of a file while it is copied; a chunk is valid only until the call returns."""


@dataclass(frozen=True)
class PinnedFile:
    """One file of a source, pinned.

    Attributes:
        location: where it is, in the scheme's own terms.
        version: what must still be true of it when it is copied (for a local file: device, inode, size, mtime).
        size_bytes: its size.
        name: its name beside the adapter, where `location` may have another one (a link into the Hub's cache).
        sha256: what the publisher's marker file says its bytes hash to; empty if it says nothing.
        credential: name of the credential to read it with, never a secret; empty: the scheme's default.
    """

    location: str
    version: str
    size_bytes: int
    name: str = ""
    sha256: str = ""
    credential: str = ""

    @property
    def known_sha256(self) -> str:
        """What its bytes hash to, where that is known before they are read: by the marker file or the version."""
        kind, _, value = self.version.partition(":")
        return self.sha256 or (value if kind == "sha256" else "")


@dataclass(frozen=True)
class Listing:
    """Where files lie: what is there, each of them pinned.

    Attributes:
        url: the place, with the commit in it where it has one: what is read through it later is the same.
        files: by their names, relative to the place, with "/" between folders.
        is_final: nothing will ever be added (it is a commit that was asked for by its id).
    """

    url: str
    files: Mapping[str, PinnedFile]
    is_final: bool = False


@dataclass(frozen=True)
class PinnedSource:
    """A source whose bytes can no longer change unnoticed: its two files.

    Attributes:
        scheme: of its URL.
        config, weights: the two files of the artifact.
        tokenizer: files of a tokenizer beside them, which are compared and not kept; empty if the source offers none.
        credential: name of the credential that it is read with.
        url: where it is, with the commit in it where it has one; a local source leaves it empty, and the stage fills
            in the place that it was asked for.
        may_grow_s: how long after the event weights that are too short may still be on their way; 0: they are final.
    """

    scheme: str
    config: PinnedFile
    weights: PinnedFile
    tokenizer: tuple[PinnedFile, ...] = ()
    credential: str = ""
    url: str = ""
    may_grow_s: float = 0.0

    def to_json(self) -> str:
        """How the ledger keeps it between the stages."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        kept = json.loads(text)
        files = {
            "config": _file_from(kept["config"]),
            "weights": _file_from(kept["weights"]),
            "tokenizer": tuple(_file_from(file) for file in kept.get("tokenizer", ())),
        }
        return cls(**_known(cls, kept | files))


def _file_from(kept: dict[str, Any]) -> PinnedFile:
    return PinnedFile(**_known(PinnedFile, kept))


def _known(kind: type, kept: dict[str, Any]) -> dict[str, Any]:
    """What this release knows of what another one wrote."""
    return {each.name: kept[each.name] for each in fields(kind) if each.name in kept}


class Source(Protocol):
    """One scheme: pins what it resolves, and copies what is pinned."""

    def resolve(self, url: str, *, credential: str = "") -> PinnedSource:
        """Find the adapter's two files and pin them.

        Args:
            url: where the publisher says it is.
            credential: name of the credential to read it with; empty: the default of the scheme, if there is one.

        Raises:
            Rejected: there is no adapter there, or it may not be read.
            Deferred: not all of it is there yet.
            Transient: the place is out of reach.
        """

    def list(self, url: str, *, credential: str = "") -> Listing:
        """All files of a place, pinned, whatever they are.

        Raises:
            Rejected: there is no such place, or it may not be read.
            Transient: the place is out of reach.
        """

    def ranged(self, file: PinnedFile) -> AbstractContextManager[ReadRange]:
        """Open a pinned file to read ranges of it, and nothing else of it.

        Raises:
            Rejected: it changed or may not be read.
            Transient: the place is out of reach.
        """

    def read(self, file: PinnedFile, *, limit_bytes: int) -> bytes:
        """The whole of a small pinned file.

        Raises:
            Rejected: it changed, may not be read, or is larger than `limit_bytes`.
            Transient: the place is out of reach.
        """

    def copy(self, file: PinnedFile, to: str, *, tap: Tap | None = None) -> FileDigest:
        """Copy a pinned file to the local path `to` and digest the bytes on the way, reading them once.

        Args:
            file: what was pinned.
            to: local path.
            tap: shown every byte that is written, in order.

        Raises:
            Rejected: it changed or may not be read.
            Transient: the place is out of reach.
        """
