"""The digest of a file that passes by in chunks, taken while a tap looks at the same chunk in a second thread."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from lora_registry.artifacts import FileDigest
from lora_registry.sources import Tap

CHUNK_BYTES = 1 << 18
"""How much a source reads at once: small beside a tensor, large beside what handing it to a second thread costs."""
_WORTH_A_THREAD_BYTES = 1 << 16


class ChunkDigest:
    """SHA-256 and size of all chunks; a context, because of its thread.

    Args:
        tap: shown each chunk, large ones in the second thread. Hashing lets go of the interpreter at once and for
            long; a tap does so only for moments, which no thread that waits to begin hashing would wake up in.
    """

    def __init__(self, tap: Tap | None = None) -> None:
        self._tap = tap
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0
        self._thread: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.shutdown()

    def update(self, chunk: memoryview) -> None:
        """Take the next chunk; it may be overwritten as soon as this returns. What the tap raises is passed on."""
        self._size_bytes += len(chunk)
        if self._tap is None or len(chunk) < _WORTH_A_THREAD_BYTES:
            self._sha256.update(chunk)
            if self._tap is not None:
                self._tap(chunk)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="tap")
        seen = self._thread.submit(self._tap, chunk)
        self._sha256.update(chunk)
        seen.result()

    def result(self) -> FileDigest:
        """The digest of all chunks so far."""
        return FileDigest(self._sha256.hexdigest(), self._size_bytes)
