"""Adapters with real numbers in them: safetensors bytes from numpy arrays, and their sizes by plain linear algebra."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from lora_registry.adapter_config import parse_adapter_config
from lora_registry.base_profile import BaseProfile
from lora_registry.numeric_report import NumericReport
from lora_workers.numeric.devices import device_label
from lora_workers.numeric.meter import CpuMeter
from lora_workers.numeric.numeric_pass import WeightsPass
from lora_workers.numeric.slab_meter import SlabMeter
from tests.helpers.adapters import Adapter, make_base, with_header

Array = NDArray[np.float64]
TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def random_values(adapter: Adapter, *, seed: int = 0, size: float = 0.05) -> dict[str, Array]:
    """Normal numbers for every tensor; DoRA magnitudes are positive."""
    random = np.random.default_rng(seed)
    return {
        name: np.abs(random.normal(0, 1, shape)) + 1 if "magnitude" in name else random.normal(0, size, shape)
        for name, shape in adapter.shapes.items()
    }


def cast(values: Mapping[str, Array], dtype: str) -> dict[str, Array]:
    """The values as they are in `dtype`."""
    return {name: torch.tensor(each).to(TORCH_DTYPES[dtype]).double().numpy() for name, each in values.items()}


def weights_bytes(values: Mapping[str, Array], *, dtype: str = "F32", padding: int = 0) -> bytes:
    """A safetensors file of these values, with `padding` blanks in its header."""
    fields, data = {}, bytearray()
    for name, each in values.items():
        raw = torch.tensor(each).to(TORCH_DTYPES[dtype]).contiguous().view(torch.uint8).numpy().tobytes()
        fields[name] = {"dtype": dtype, "shape": list(each.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return with_header(json.dumps(fields).encode() + b" " * padding, data=bytes(data))


def measure(
    adapter: Adapter,
    values: Mapping[str, Array],
    *,
    dtype: str = "F32",
    base: BaseProfile | None = None,
    chunks: tuple[int, ...] = (),
    padding: int = 0,
    batched: bool = False,
) -> NumericReport:
    """What the pass finds in an adapter with these values.

    Args:
        adapter: its configuration counts.
        values: its tensors.
        dtype: of all of them.
        base: what it is for; the tiny Llama.
        chunks: lengths of the chunks, over and over; none: the whole file at once.
        padding: blanks in the header, so that the data begin anywhere.
        batched: take what runs on GPUs, on the CPU.
    """
    raw = weights_bytes(values, dtype=dtype, padding=padding)
    device = torch.device("cpu")
    started = WeightsPass(
        parse_adapter_config(adapter.config_bytes),
        base or make_base(),
        size_bytes=len(raw),
        measure=lambda plan: SlabMeter(plan, device, slab_bytes=1 << 12) if batched else CpuMeter(plan),
        device=device_label(device),
    )
    for chunk in cut(raw, chunks):
        started.feed(memoryview(chunk))
    return started.finish()


def cut(raw: bytes, lengths: tuple[int, ...]) -> list[bytearray]:
    """The bytes in chunks of these lengths, over and over."""
    chunks, at, turn = [], 0, 0
    while at < len(raw):
        length = lengths[turn % len(lengths)] if lengths else len(raw)
        chunks.append(bytearray(raw[at : at + length]))
        at, turn = at + length, turn + 1
    return chunks
