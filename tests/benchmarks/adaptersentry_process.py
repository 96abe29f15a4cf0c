"""Seconds that adaptersentry takes to scan an adapter: python adaptersentry_process.py DIRECTORY

It runs in an environment of its own (`make bench` makes it), because adaptersentry brings scipy and scikit-learn, which
slow down transformers' import; so nothing of this project is imported. It prints JSON: a list of seconds, or null where
adaptersentry is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

_ROUNDS = 3


def main() -> None:
    """Scan the weights' file; the import is not counted."""
    if importlib.util.find_spec("adaptersentry") is None:
        print("null")
        return
    from adaptersentry import scan

    weights = Path(sys.argv[1]) / "adapter_model.safetensors"
    taken = []
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        scan(weights)
        taken.append(time.perf_counter() - begun)
    print(json.dumps(taken))


if __name__ == "__main__":
    main()
