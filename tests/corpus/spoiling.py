"""What spoils an adapter: its configuration, its tensors, its header, its files."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
Q0 = f"{PREFIX}model.layers.0.self_attn.q_proj"
Tensors = dict[str, tuple[str, list[int], bytes]]
"""Dtype, shape and bytes by name."""
Spoil = Callable[[Path], None]


def read_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a legal file, and its metadata."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    data = raw[8 + length :]
    return {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])]) for name, entry in header.items()
    }, metadata


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """Write a file; its tensors may be wrong, its layout is right."""
    header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    write_raw(path, json.dumps(header).encode(), data)


def write_raw(path: Path, header: bytes, data: bytes = b"", *, length: int | None = None) -> None:
    """Write a file with exactly this header."""
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


def zeros(*shape: int, dtype: str = "F32", width: int = 4) -> tuple[str, list[int], bytes]:
    """A tensor of zeros."""
    size = width
    for length in shape:
        size *= length
    return (dtype, list(shape), bytes(size))


def with_config(**changes: Any) -> Spoil:
    """Other fields in adapter_config.json."""

    def spoil(directory: Path) -> None:
        path = directory / CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def without_field(name: str) -> Spoil:
    """A field less in adapter_config.json."""

    def spoil(directory: Path) -> None:
        fields = json.loads((directory / CONFIG).read_text())
        del fields[name]
        (directory / CONFIG).write_text(json.dumps(fields))

    return spoil


def with_config_text(old: str, new: str) -> Spoil:
    """A text replaced in adapter_config.json."""

    def spoil(directory: Path) -> None:
        text = (directory / CONFIG).read_text()
        assert old in text
        (directory / CONFIG).write_text(text.replace(old, new, 1))

    return spoil


def with_config_bytes(raw: bytes) -> Spoil:
    """Other bytes as adapter_config.json."""
    return lambda directory: (directory / CONFIG).write_bytes(raw) and None


def with_tensors(change: Callable[[Tensors], Tensors]) -> Spoil:
    """Other tensors."""

    def spoil(directory: Path) -> None:
        tensors, metadata = read_tensors(directory / WEIGHTS)
        write_tensors(directory / WEIGHTS, change(tensors), metadata)

    return spoil


def renamed(old: str, new: str) -> Spoil:
    """A part of every tensor's name replaced."""
    return with_tensors(lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()})


def added(name: str, *shape: int, dtype: str = "F32", width: int = 4) -> Spoil:
    """A tensor added or replaced."""
    return with_tensors(lambda tensors: tensors | {name: zeros(*shape, dtype=dtype, width=width)})


def without(ending: str) -> Spoil:
    """Without the tensors whose names end so."""
    return with_tensors(lambda tensors: {name: value for name, value in tensors.items() if not name.endswith(ending)})


def with_header(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Another header over the same data."""

    def spoil(directory: Path) -> None:
        raw = (directory / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        change(header)
        write_raw(directory / WEIGHTS, json.dumps(header).encode(), raw[8 + length :])

    return spoil


def with_weights(change: Callable[[bytes], bytes]) -> Spoil:
    """Other bytes as the weights' file."""
    return lambda directory: (directory / WEIGHTS).write_bytes(change((directory / WEIGHTS).read_bytes())) and None


def with_raw_header(text: bytes, data: bytes = b"", *, length: int | None = None) -> Spoil:
    """Exactly this header."""
    return lambda directory: write_raw(directory / WEIGHTS, text, data, length=length)


def moved_weights(name: str) -> Spoil:
    """The weights under another name."""
    return lambda directory: (directory / WEIGHTS).rename(directory / name) and None


def both(*spoils: Spoil) -> Spoil:
    """One after the other."""

    def spoil(directory: Path) -> None:
        for each in spoils:
            each(directory)

    return spoil


def linked_to(target: str, name: str) -> Spoil:
    """A link in a file's place."""

    def spoil(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).symlink_to(target)

    return spoil


def pipe(name: str) -> Spoil:
    """A pipe in a file's place."""

    def spoil(directory: Path) -> None:
        (directory / name).unlink()
        os.mkfifo(directory / name)

    return spoil


def folder(directory: Path) -> None:
    """A directory in the weights' place."""
    (directory / WEIGHTS).unlink()
    (directory / WEIGHTS).mkdir()


def without_file(name: str) -> Spoil:
    """A file less."""
    return lambda directory: (directory / name).unlink()
