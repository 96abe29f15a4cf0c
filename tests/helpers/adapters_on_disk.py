"""Real adapters in directories: the packaged ones, and as many distinct copies of them as a test needs."""

from __future__ import annotations

import json
import shutil
import struct
from importlib import resources
from pathlib import Path

DEMO_DATA = Path(str(resources.files("lora_workers"))) / "demo_data"
WEIGHTS = "adapter_model.safetensors"


def copy_adapter(to: Path, *, name: str = "support-bot", variant: int = 0) -> Path:
    """Copy a packaged adapter to directory `to`; each variant has other bytes in its last tensor."""
    shutil.copytree(DEMO_DATA / "adapters" / name, to)
    if variant:
        weights = to / WEIGHTS
        raw = bytearray(weights.read_bytes())
        raw[-4:-2] = (variant % 65536).to_bytes(2, "little")  # the low bytes of a number: it stays finite
        weights.write_bytes(bytes(raw))
    return to


def change_a_byte(directory: Path) -> None:
    """Change one byte of an adapter's weights in place."""
    with (directory / WEIGHTS).open("r+b") as file:
        file.seek(-4, 2)
        byte = file.read(1)
        file.seek(-4, 2)
        file.write(bytes([byte[0] ^ 1]))


def read_floats(weights: Path) -> dict[str, tuple[float, ...]]:
    """The values of a file of float32 tensors, by name."""
    raw = weights.read_bytes()
    return {name: struct.unpack(f"<{(end - begin) // 4}f", raw[begin:end]) for name, begin, end in _tensors(raw)}


def fill(directory: Path, value: float, *, ending: str) -> None:
    """Fill the float32 tensors of an adapter whose names end so with one value."""
    raw = bytearray((directory / WEIGHTS).read_bytes())
    for name, begin, end in _tensors(raw):
        if name.endswith(ending):
            raw[begin:end] = struct.pack("<f", value) * ((end - begin) // 4)
    (directory / WEIGHTS).write_bytes(raw)


def _tensors(raw: bytes | bytearray) -> list[tuple[str, int, int]]:
    """Name, first byte and end of each tensor of a safetensors file."""
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    offsets = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    assert all(header[name]["dtype"] == "F32" for name in offsets)
    return [(name, 8 + length + begin, 8 + length + end) for name, (begin, end) in offsets.items()]
