"""Judging an adapter's structure: bytes, time and memory, against reading the same header with json and against PEFT.

The adapters have the shapes of a Llama-3-8B with a LoRA on every projection, at rank 16 (84 MB) and 64 (336 MB). What
is compared with json is time on the processor; what is compared with those who read files is time on the clock.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lora_registry.adapter_config import parse_adapter_config
from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE
from lora_registry.base_profile import BaseProfile
from lora_registry.engine_profiles import BUILT_IN, find_profiles
from lora_registry.judgement import judge
from lora_registry.safetensors_header import parse_header
from lora_workers.dry_run import DryRun
from tests.benchmarks.figures import Figure, of_rounds
from tests.benchmarks.large_adapters import base_profile, write_large_adapter
from tests.benchmarks.stand import ROOT, Stand

_RANKS = (16, 64)
_CALLS = 10
_MIB = 1 << 20
_PEERS = ROOT / ".venv-peers" / "bin" / "python"
"""The environment that `make bench` makes for what others have made."""


def run(stand: Stand) -> list[Figure]:
    """All figures for both adapters."""
    base = base_profile()
    figures = []
    for rank in _RANKS:
        adapter = write_large_adapter(stand.directory / f"rank-{rank}", rank=rank)
        dry_run = DryRun(base, max_lora_rank=512)
        ours_s = _seconds(lambda dry_run=dry_run, adapter=adapter: dry_run.check(str(adapter)))
        figures += [
            _bytes_read(dry_run, adapter, rank),
            *_times(base, adapter, rank, rounds=10 if stand.quick else 50),
            *_peers(adapter, rank, ours_s=ours_s),
        ]
    return figures + _corpus(stand)


def _corpus(stand: Stand) -> list[Figure]:
    """The slowest verdict on anything valid, broken or hostile."""
    directory = stand.directory / "corpus"
    directory.mkdir()
    taken = _process("corpus", directory)
    if taken is None:
        print("    peft is not installed: the corpus is not checked")
        return []
    name = f"structure, corpus of {len(taken)}: slowest verdict"
    return [
        Figure(name, "ms", 1000 * max(taken), at_most=1000),
        Figure("structure, corpus: median verdict", "ms", 1000 * statistics.median(taken)),
    ]


def _bytes_read(dry_run: DryRun, adapter: Path, rank: int) -> Figure:
    report = dry_run.check(str(adapter))
    assert report.verdict == "valid", report.findings
    size = (adapter / WEIGHTS_FILE).stat().st_size
    return Figure(f"structure, rank {rank}: bytes read of the file", "%", 100 * report.bytes_read / size, at_most=0.1)


def _times(base: BaseProfile, adapter: Path, rank: int, *, rounds: int) -> list[Figure]:
    """In process, profile warm: the judgement of bytes in memory, and a whole check from the disk with all engines."""
    raw_config = (adapter / CONFIG_FILE).read_bytes()
    size = (adapter / WEIGHTS_FILE).stat().st_size
    with (adapter / WEIGHTS_FILE).open("rb") as file:
        raw = file.read(int.from_bytes(file.read(8), "little"))

    def judged() -> None:
        header = parse_header(raw, data_bytes=size - 8 - len(raw))
        judge(parse_adapter_config(raw_config), header, base, max_lora_rank=512)

    whole = DryRun(base, profiles=find_profiles(BUILT_IN), max_lora_rank=512)
    verdicts, checks, bare = [], [], []
    for _ in range(rounds):
        bare.append(1000 * _seconds(lambda: json.loads(raw), clock=time.thread_time))
        verdicts.append(1000 * _seconds(judged, clock=time.thread_time))
        checks.append(1000 * _seconds(lambda: whole.check(str(adapter)), clock=time.thread_time))
    return [
        of_rounds(f"structure, rank {rank}: verdict, to json.loads of the header", "ms", verdicts, bare, at_most=6),
        of_rounds(f"structure, rank {rank}: check from disk, 4 engines, to json.loads", "ms", checks, bare),
    ]


def _peers(adapter: Path, rank: int, *, ours_s: float) -> list[Figure]:
    peak_mib = (_measured("memory", adapter) or 0.0) / _MIB
    figures = [Figure(f"structure, rank {rank}: peak memory over import", "MiB", peak_mib, at_most=64)]
    for peer, measure in (("peft", partial(_measured, "peft")), ("adaptersentry", _scanned)):
        theirs_s = measure(adapter)
        if theirs_s is None:
            print(f"    {peer} is not installed: no comparison with it")
            continue
        name = f"structure, rank {rank}: {peer} takes longer than a check"
        figures.append(Figure(name, "ms", 1000 * ours_s, 1000 * theirs_s, ratio=theirs_s / ours_s, at_least=50))
    return figures


def _measured(kind: str, adapter: Path) -> float | None:
    taken = _process(kind, adapter)
    return None if taken is None else statistics.median(taken)


def _process(kind: str, directory: Path) -> list[float] | None:
    return _run(sys.executable, "-m", "tests.benchmarks.structure_process", kind, str(directory))


def _scanned(adapter: Path) -> float | None:
    python = _PEERS if _PEERS.exists() else sys.executable
    taken = _run(str(python), str(Path(__file__).with_name("adaptersentry_process.py")), str(adapter))
    return None if taken is None else statistics.median(taken)


def _run(*command: str) -> list[float] | None:
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=600, check=True)
    taken: list[float] | None = json.loads(ran.stdout.splitlines()[-1])
    return taken


def _seconds(call: Callable[[], object], *, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call: the median of some."""
    taken = []
    for _ in range(_CALLS):
        begun = clock()
        call()
        taken.append(clock() - begun)
    return statistics.median(taken)
