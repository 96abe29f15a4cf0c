"""One measurement in a process of its own: python -m tests.benchmarks.structure_process KIND DIRECTORY

memory    bytes of peak memory that checking the adapter takes over what is there before
peft      seconds that PEFT takes to load it onto the base model on the meta device
corpus    seconds of a check, engines included, of each adapter of the tests' corpus, which is made in DIRECTORY

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


def corpus(directory: Path) -> list[float] | None:
    """Checks of everything valid, broken and hostile, and of 60,000 tensors that mean nothing; profiles are warm."""
    if importlib.util.find_spec("peft") is None:
        return None
    from lora_registry.engine_profiles import BUILT_IN, find_profiles
    from lora_workers.dry_run import DryRun
    from tests.corpus.broken import BROKEN
    from tests.corpus.make import make_corpus, read_profiles
    from tests.corpus.valid import VALID

    make_corpus(directory)
    profiles = read_profiles(directory / "bases")
    engines = find_profiles(BUILT_IN)
    dry_runs = {name: DryRun(base, profiles=engines, max_lora_rank=512) for name, base in profiles.items()}
    bases = {case.name: case.base for case in VALID}
    adapters = [(directory / "valid" / case.name, case.base) for case in VALID]
    adapters += [(directory / "broken" / case.name, case.base or bases[case.valid]) for case in BROKEN]
    adapters.append((_with_many_tensors(directory), VALID[0].base))
    return [_seconds(lambda at=at, base=base: dry_runs[base].check(str(at))) for at, base in adapters]  # type: ignore[misc]


def _with_many_tensors(directory: Path) -> Path:
    to = directory / "many"
    to.mkdir()
    entries = {f"t{n}": {"dtype": "U8", "shape": [1], "data_offsets": [n, n + 1]} for n in range(60_000)}
    header = json.dumps(entries).encode()
    (to / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(60_000))
    (to / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}'
    )
    return to


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


if __name__ == "__main__":
    print(json.dumps({"memory": memory, "peft": peft, "corpus": corpus}[sys.argv[1]](Path(sys.argv[2]))))
