"""A digest taken while a tap looks: the tap has seen each chunk when the next may overwrite it."""

from __future__ import annotations

import hashlib

import pytest

from lora_workers.sources.digesting import CHUNK_BYTES, ChunkDigest

CHUNKS = [bytes([fill]) * size for fill, size in ((1, CHUNK_BYTES), (2, 100), (3, CHUNK_BYTES), (4, CHUNK_BYTES - 1))]


def test_tap_has_seen_a_chunk_before_the_buffer_is_used_again() -> None:
    """Large or small: the tap, though it takes far longer than the hash, ends before `update` returns."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    seen: list[bytes] = []

    def look(chunk: memoryview) -> None:
        for _ in range(20):
            hashlib.sha256(chunk)
        seen.append(bytes(chunk))

    with ChunkDigest(look) as digest:
        for number, chunk in enumerate(CHUNKS, start=1):
            buffer[: len(chunk)] = chunk
            digest.update(buffer[: len(chunk)])
            assert seen == CHUNKS[:number]

    whole = b"".join(CHUNKS)
    assert (digest.result().sha256, digest.result().size_bytes) == (hashlib.sha256(whole).hexdigest(), len(whole))


@pytest.mark.parametrize("size", [100, CHUNK_BYTES])
def test_what_a_tap_raises_is_passed_on(size: int) -> None:
    """A look that fails ends the copy, from whichever thread."""

    def fail(_: memoryview) -> None:
        raise LookupError("the tap failed")

    with ChunkDigest(fail) as digest, pytest.raises(LookupError, match="the tap failed"):
        digest.update(memoryview(bytes(size)))
