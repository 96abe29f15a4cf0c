"""Real adapters in directories: the packaged ones, and as many distinct copies of them as a test needs."""

from __future__ import annotations

import shutil
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
