"""One measurement of the numeric pass, in a process of its own: `python -m tests.benchmarks.numeric_process WHAT`.

time      seconds of hashing and measuring, and of hashing alone, round by round, as JSON; then the same in time on the
          processor, of all threads together
memory    growth of the process's memory, and the largest pair of halves: "N of M bytes"
cuda      seconds from page cache to verdict, and of copying the same bytes to the GPU, as JSON; none: null
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from lora_registry.adapter_config import AdapterConfig, parse_adapter_config
from lora_registry.base_headers import profile_from_headers
from lora_registry.base_profile import BaseProfile
from lora_registry.numeric_report import NumericReport
from lora_registry.safetensors_header import parse_header
from lora_workers.numeric.devices import DeviceName
from lora_workers.numeric.numeric_pass import NumericChecks
from lora_workers.sources.digesting import CHUNK_BYTES, ChunkDigest
from tests.helpers.adapters import Adapter, Shapes, llama_shapes, make_adapter, make_base, make_base_config, with_header

_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_SPREAD = 0.02


class Weights:
    """An adapter on every linear layer of a model of Llama-3-8B's shapes, in bfloat16.

    Args:
        rank: its rank.
        layers: layers of the base model.
    """

    def __init__(self, *, rank: int, layers: int = 32) -> None:
        self.rank = rank
        self.base = _base(layers)
        self.adapter: Adapter = make_adapter(rank=rank, targets=_TARGETS, base=self.base, dtype="BF16")
        self.config: AdapterConfig = parse_adapter_config(self.adapter.config_bytes)
        header, data_bytes = _header(self.adapter.shapes)
        self.start = with_header(header + b" " * (-len(header) % 8))
        self.size_bytes = len(self.start) + data_bytes

    @property
    def largest_pair_bytes(self) -> int:
        """Bytes of the largest module's two halves in the file."""
        sizes = [2 * rows * columns for rows, columns in self.adapter.shapes.values()]
        return max(first + second for first, second in zip(sizes[::2], sizes[1::2], strict=True))

    def parts(self) -> Iterator[bytes]:
        """The file, tensor by tensor."""
        yield self.start
        for shape in self.adapter.shapes.values():
            yield (torch.randn(shape) * _SPREAD).bfloat16().view(torch.uint8).numpy().tobytes()

    def run(self, checks: NumericChecks, chunks: Iterator[memoryview], *, hashed: bool) -> NumericReport:
        """One pass over the file."""
        started = checks(self.config, self.base, size_bytes=self.size_bytes)
        with ChunkDigest(started.feed) as digest:
            for chunk in chunks:
                digest.update(chunk) if hashed else started.feed(chunk)
        report = started.finish()
        if report.findings or report.bytes_read != self.size_bytes:
            raise SystemExit(f"the pass went wrong: {report}")
        return report


def main() -> None:
    """Measure one thing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("time", "memory", "cuda"))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    weights = Weights(rank=given.rank, layers=given.layers)
    if given.what == "memory":
        print(f"{_memory(weights)} of {weights.largest_pair_bytes} bytes")
    else:
        print(json.dumps(_time(weights, given.rounds) if given.what == "time" else _cuda(weights, given.rounds)))


def _time(weights: Weights, rounds: int) -> list[tuple[float, float, float, float]]:
    raw = memoryview(bytearray().join(weights.parts()))
    checks = _warm("cpu", weights.rank)

    def hash_alone() -> None:
        sha256 = hashlib.sha256()
        for chunk in _cut(raw):
            sha256.update(chunk)

    weights.run(checks, _cut(raw), hashed=True)
    taken = []
    for _ in range(rounds):
        ours, ours_cpu = _seconds_and_cpu(lambda: weights.run(checks, _cut(raw), hashed=True))
        bare, bare_cpu = _seconds_and_cpu(hash_alone)
        taken.append((ours, bare, ours_cpu, bare_cpu))
    return taken


def _memory(weights: Weights) -> int:
    checks = _warm("cpu", weights.rank)
    with tempfile.TemporaryDirectory(prefix="lora-bench-") as directory:
        path = Path(directory) / "weights"
        with path.open("wb") as file:
            file.writelines(weights.parts())
        ctypes.CDLL(None).malloc_trim(0)  # what making the file left behind must not be used again unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew; Source: proc(5)
        before = _status_bytes("VmRSS")
        weights.run(checks, _read(path), hashed=True)
        return _status_bytes("VmHWM") - before


def _cuda(weights: Weights, rounds: int) -> list[tuple[float, float]] | None:
    if not torch.cuda.is_available():
        return None
    checks = _warm("cuda", weights.rank)
    with tempfile.TemporaryDirectory(prefix="lora-bench-") as directory:
        path = Path(directory) / "weights"
        with path.open("wb") as file:
            file.writelines(weights.parts())
        pinned = torch.empty(weights.size_bytes, dtype=torch.uint8, pin_memory=True)

        def copy_alone() -> None:
            pinned.to("cuda", non_blocking=True)
            torch.cuda.synchronize()

        weights.run(checks, _read(path), hashed=False)
        copy_alone()
        return [
            (_seconds(lambda: weights.run(checks, _read(path), hashed=False)), _seconds(copy_alone))
            for _ in range(rounds)
        ]


def _warm(device: DeviceName, rank: int) -> NumericChecks:
    """Checks that have run once, so that the libraries' own workspace is there."""
    checks = NumericChecks(device)
    tiny = Weights(rank=rank, layers=1)
    tiny.run(checks, _cut(memoryview(bytearray().join(tiny.parts()))), hashed=True)
    return checks


def _cut(raw: memoryview) -> Iterator[memoryview]:
    return (raw[at : at + CHUNK_BYTES] for at in range(0, len(raw), CHUNK_BYTES))


def _read(path: Path) -> Iterator[memoryview]:
    """The file's chunks, each in place of the one before, as a source reads them."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := os.readv(file.fileno(), [buffer]):
            yield buffer[:count]


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _seconds_and_cpu(call: Callable[[], object]) -> tuple[float, float]:
    begun = time.process_time()
    seconds = _seconds(call)
    return seconds, time.process_time() - begun


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _base(layers: int) -> BaseProfile:
    header, data_bytes = _header(llama_shapes(hidden=4096, kv=1024, intermediate=14336, vocab=128256, layers=layers))
    config = make_base_config(num_hidden_layers=layers)
    return profile_from_headers(make_base().name, config, [parse_header(header, data_bytes=data_bytes)])


def _header(shapes: Shapes) -> tuple[bytes, int]:
    """A header of these tensors in bfloat16, and the bytes that follow it."""
    fields, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        fields[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    return json.dumps(fields).encode(), end


if __name__ == "__main__":
    main()
