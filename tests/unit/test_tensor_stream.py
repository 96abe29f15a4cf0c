import tracemalloc

from lora_registry.safetensors_header import TensorEntry
from lora_workers.numeric.tensor_stream import Cut, TensorStream

CHUNK_BYTES = 1 << 16


def test_a_tensor_that_chunks_cut_apart_is_held_once() -> None:
    """Tensors that are passed on whole take the room of the longest, whatever their order, and no second copy."""
    sizes = [CHUNK_BYTES // 4, 3 * CHUNK_BYTES, 8 * CHUNK_BYTES, CHUNK_BYTES // 2]
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    entries = [TensorEntry("x", "U8", (size,), end - size, end) for size, end in zip(sizes, ends, strict=True)]
    passed: list[tuple[int, int]] = []
    chunk = memoryview(bytearray(CHUNK_BYTES))
    tracemalloc.start()
    try:
        stream = TensorStream(
            len(sizes),
            lambda number: Cut(entries[number], sizes[number]),
            lambda number, piece, _: passed.append((number, len(piece))),
            most_bytes=CHUNK_BYTES,
        )
        while not stream.is_complete:
            stream.feed(chunk)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert passed == list(enumerate(sizes))
    assert peak_bytes < max(sizes) + CHUNK_BYTES // 2
