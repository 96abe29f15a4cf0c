"""What a source does for the stages. The sources themselves, one file per scheme, are in `lora_workers.sources`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol, Self

from lora_registry.artifacts import FileDigest

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
    """

    location: str
    version: str
    size_bytes: int
    name: str = ""


@dataclass(frozen=True)
class PinnedSource:
    """A source whose bytes can no longer change unnoticed: its two files.

    Attributes:
        scheme: of its URL.
        config, weights: the two files of the artifact.
        tokenizer: files of a tokenizer beside them, which are compared and not kept; empty if the source offers none.
    """

    scheme: str
    config: PinnedFile
    weights: PinnedFile
    tokenizer: tuple[PinnedFile, ...] = ()

    def to_json(self) -> str:
        """How the ledger keeps it between the stages."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        kept = json.loads(text)
        tokenizer = tuple(PinnedFile(**file) for file in kept.get("tokenizer", ()))
        return cls(kept["scheme"], PinnedFile(**kept["config"]), PinnedFile(**kept["weights"]), tokenizer)


class Source(Protocol):
    """One scheme: pins what it resolves, and copies what is pinned."""

    def resolve(self, url: str, *, credential: str = "") -> PinnedSource:
        """Find the adapter's two files and pin them.

        Args:
            url: where the publisher says they are.
            credential: name of the credential to read them with; empty for none.

        Raises:
            Rejected: there is no adapter there, or it may not be read.
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
