"""Which device a worker computes on. It imports torch, so call it only where the computing is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from lora_registry.errors import Configuration, ProcessUnfit, Transient

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


@contextmanager
def compute_errors() -> Iterator[None]:
    """Map what goes wrong with the device, which says nothing about the adapter.

    Raises:
        Transient: there is not enough memory now.
        ProcessUnfit: the device failed. Every later call of this process fails too, because CUDA's errors are kept
            with its context (CUDA Runtime API, "sticky" errors).
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise Transient(f"the GPU has not enough free memory: {_first_line(error)}") from error
    except MemoryError as error:
        raise Transient("there is not enough free memory to look at the numbers") from error
    except RuntimeError as error:
        if isinstance(error, torch.AcceleratorError) or "CUDA" in str(error):
            raise ProcessUnfit(f"the GPU failed: {_first_line(error)}") from error
        if "DefaultCPUAllocator" in str(error):
            raise Transient(f"there is not enough free memory: {_first_line(error)}") from error
        raise


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
