"""Many nodes, a process each: agents with a directory for an engine, or bare loops that subscribe and copy two files.

python -m tests.benchmarks.many_nodes agents|bare URL PREFIX NODES DIRECTORY

All are forked from this one process, which has imported what they need: so they share most of their memory, and no
node shares an interpreter with another, as in production. Both kinds are started alike.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE
from lora_registry.connection import connect, open_bell
from lora_registry.keys import Keys
from lora_registry.settings import Settings
from lora_workers import local_artifacts  # noqa: F401 - imported once for all, and not by each when it first fetches
from lora_workers.node.agent import Agent
from lora_workers.node.drivers import open_driver
from lora_workers.node.lookup import LazyOrigin
from lora_workers.node.options import NodeOptions
from lora_workers.processes import die_with_parent
from tests.helpers.registry import BASE


def run_agent(settings: Settings, directory: Path, number: int) -> None:
    """An agent as it runs in production."""
    engine = str(directory / "engine")
    options = NodeOptions(
        base=BASE, engine="directory", engine_url=engine, cache=directory / "cache", node_id=f"node-{number}"
    )
    Agent(options, settings, driver=open_driver("directory", engine), origin=LazyOrigin(settings)).run()


def run_loop(settings: Settings, directory: Path, number: int) -> None:
    """What one would write in an afternoon: hear of a digest, copy its files, say so."""
    store = settings.artifact_directory or Path()
    client = connect(settings.redis_url, name="bare")
    with open_bell(client) as bell:
        bell.subscribe(Keys(settings.key_prefix).channel(BASE))
        while True:
            message = bell.get_message(timeout=5.0)
            if message is None or "version.published" not in message["data"]:
                continue
            record = json.loads(message["data"])["data"]
            to = directory / record["served_name"]
            to.mkdir(parents=True)
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                shutil.copyfile(store / "sha256" / record["digest"].removeprefix("sha256:") / name, to / name)
            client.hset(f"{settings.key_prefix}:bare:{record['served_name']}", str(number), time.time())


def main(kind: str, url: str, prefix: str, nodes: int, directory: str) -> None:
    """Start them all, and go on until killed."""
    root = Path(directory)
    settings = Settings(redis_url=url, key_prefix=prefix, artifact_store=str(root / "artifacts"))
    run = run_agent if kind == "agents" else run_loop
    gc.freeze()  # what is there already stays shared between the processes
    for number in range(nodes):
        if os.fork() == 0:
            die_with_parent()
            run(settings, root / f"{kind}-{number}", number)
            return
    signal.pause()


if __name__ == "__main__":
    kind, url, prefix, nodes, directory = sys.argv[1:]
    main(kind, url, prefix, int(nodes), directory)
