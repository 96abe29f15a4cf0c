"""The command: runs the benchmarks, prints the table, writes the JSON."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import (
    catalog_size,
    fan_out,
    gateway,
    get_or_allocate,
    late_joiner,
    nodes,
    numeric,
    pipeline,
    remote,
    serving,
    structure,
    webhooks,
)
from tests.benchmarks.figures import Figure, document, table
from tests.benchmarks.stand import Stand, open_stand

BENCHMARKS: dict[str, Callable[[Stand], list[Figure]]] = {
    "pipeline": pipeline.run,
    "get_or_allocate": get_or_allocate.run,
    "fan_out": fan_out.run,
    "catalog_size": catalog_size.run,
    "late_joiner": late_joiner.run,
    "gateway": gateway.run,
    "webhooks": webhooks.run,
    "structure": structure.run,
    "numeric": numeric.run,
    "remote": remote.run,
    "nodes": nodes.run,
    "serving": serving.run,
}


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="run this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller rounds, under a minute")
    parser.add_argument("--json", type=Path, help="write the figures and the machine to this file")
    given = parser.parse_args()
    figures: list[Figure] = []
    with open_stand(quick=given.quick) as stand:
        for name in given.only or BENCHMARKS:
            begun = time.monotonic()
            print(f"==> {name}", flush=True)
            figures += BENCHMARKS[name](stand)
            print(f"    {time.monotonic() - begun:.0f} s", flush=True)
        report = document(figures, quick=given.quick, directory=stand.directory)
    print(table(figures))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
