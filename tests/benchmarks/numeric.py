"""Numbers of weights measured while they are hashed, against hashing them alone; adapters of Llama-3-8B's shapes.

On a GPU: from the page cache to the verdict, against copying the same bytes to it from pinned memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from lora_workers.extras import is_installed
from tests.benchmarks.figures import Figure, of_rounds
from tests.benchmarks.stand import ROOT, Stand, environment_of

_MIB = 1 << 20
_GB = 1e9


def run(stand: Stand) -> list[Figure]:
    """Each measurement in a process of its own."""
    if not is_installed("numeric"):
        print("    skipped: torch is not installed", flush=True)
        return []
    rounds = 5 if stand.quick else 15
    figures = []
    for rank, goal in ((16, 2.5), (64, None)):
        rows = [[1e3 * each for each in row] for row in json.loads(_measure("time", rank, rounds))]
        ours, bare, ours_cpu, bare_cpu = zip(*rows, strict=True)
        name = f"numeric pass with SHA-256, r={rank} ({84 * rank // 16} MB)"
        figures += [
            of_rounds(name, "ms", ours, bare, at_most=goal),
            of_rounds(f"{name}, on the processor", "ms", ours_cpu, bare_cpu),
            _memory(rank),
        ]
    return figures + _cuda(rounds)


def _memory(rank: int) -> Figure:
    grown, _, pair, _ = _measure("memory", rank, 1).split()
    ours, bare = int(grown) / _MIB, int(pair) / _MIB
    return Figure(f"peak memory of it, to the largest pair, r={rank}", "MiB", ours, bare, ours / bare, at_most=2)


def _cuda(rounds: int) -> list[Figure]:
    taken = json.loads(_measure("cuda", 64, rounds))
    if taken is None:
        print("    skipped: GB/s on a GPU; there is no CUDA device here", flush=True)
        return []
    size = 336e6 / _GB
    ours, bare = zip(*taken, strict=True)
    name = "numeric pass on the GPU from the page cache, r=64 (336 MB)"
    return [of_rounds(name, "GB/s", [size / each for each in ours], [size / each for each in bare], at_least=0.7)]


def _measure(what: str, rank: int, rounds: int) -> str:
    command = [sys.executable, "-m", "tests.benchmarks.numeric_process", what, "--rank", str(rank)]
    done = subprocess.run(
        [*command, "--rounds", str(rounds)],
        cwd=ROOT,
        env=os.environ | environment_of(None),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout
