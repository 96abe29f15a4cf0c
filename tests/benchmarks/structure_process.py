"""One measurement in a process of its own: python -m tests.benchmarks.structure_process KIND DIRECTORY

memory    bytes of peak memory that checking the adapter takes over what is there before
peft      seconds that PEFT takes to load it onto the base model on the meta device

It prints JSON: a list of measurements, or null where the library is not installed.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.large_adapters import BASE_CONFIG, base_profile

_ROUNDS = 3


def memory(directory: Path) -> list[float]:
    """Peak memory over that of the process with everything imported and the profile loaded."""
    from lora_registry.engine_profiles import BUILT_IN, find_profiles
    from lora_workers.dry_run import DryRun

    dry_run = DryRun(base_profile(), profiles=find_profiles(BUILT_IN), max_lora_rank=512)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports (Linux, proc(5))
    before = _peak_bytes()
    dry_run.check(str(directory))
    return [float(_peak_bytes() - before)]


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


def peft(directory: Path) -> list[float] | None:
    """Loading the adapter; making the base model is not counted."""
    if importlib.util.find_spec("peft") is None:
        return None
    import torch
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)

    def load() -> Callable[[], object]:
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**BASE_CONFIG))
        return lambda: PeftModel.from_pretrained(model, str(directory), low_cpu_mem_usage=True, torch_device="cpu")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [_seconds(load()) for _ in range(_ROUNDS)]


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


if __name__ == "__main__":
    print(json.dumps({"memory": memory, "peft": peft}[sys.argv[1]](Path(sys.argv[2]))))
