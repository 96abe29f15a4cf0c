"""One process of ours, its settings in the environment.

python -m tests.benchmarks.our_process dispatcher|STAGE
"""

from __future__ import annotations

import sys

from lora_registry.settings import load_settings
from lora_registry.stages import Stage
from lora_workers.dispatcher import Dispatcher
from lora_workers.worker import run_worker

if __name__ == "__main__":
    role = sys.argv[1]
    if role == "dispatcher":
        Dispatcher(load_settings()).run()
    else:
        sys.exit(run_worker(load_settings(), [Stage(role)]))
