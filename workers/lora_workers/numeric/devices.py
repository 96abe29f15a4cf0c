"""Which device a worker computes on. It imports torch, so call it only where the computing is done."""

from __future__ import annotations

from typing import Literal

import torch

from lora_registry.errors import Configuration

DeviceName = Literal["auto", "cpu", "cuda"]


def open_device(name: DeviceName, *, index: int = 0) -> torch.device:
    """The device called `name`, ready to compute: auto is a GPU where there is one.

    Args:
        name: auto, cpu or cuda.
        index: which of the visible GPUs, counted modulo their number.

    Raises:
        Configuration: cuda was asked for and there is none.
    """
    # More threads of one small product wait for each other longer than they compute.
    torch.set_num_threads(1)
    count = 0 if name == "cpu" else torch.cuda.device_count()
    if not count:
        if name == "cuda":
            raise Configuration("LORA_REGISTRY_DEVICE=cuda: torch sees no CUDA device; use cpu or auto")
        return torch.device("cpu")
    return torch.device("cuda", index % count)


def device_label(device: torch.device) -> str:
    """The device as reports call it: cpu, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
