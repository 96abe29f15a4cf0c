"""A process of many nodes: agents with a directory for an engine, or bare loops that subscribe and copy two files.

python -m tests.benchmarks.many_nodes agents|bare URL PREFIX FIRST NODES EVERY DIRECTORY

Of NODES nodes it starts each EVERY-th from number FIRST on.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path

from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE
from lora_registry.connection import connect, open_bell
from lora_registry.keys import Keys
from lora_registry.settings import Settings
from lora_workers.node.agent import Agent
from lora_workers.node.drivers import open_driver
from lora_workers.node.lookup import LazyOrigin
from lora_workers.node.options import NodeOptions
from tests.helpers.registry import BASE


def start_agent(settings: Settings, directory: Path, number: int) -> None:
    """An agent as it runs in production."""
    engine = str(directory / "engine")
    options = NodeOptions(
        base=BASE, engine="directory", engine_url=engine, cache=directory / "cache", node_id=f"node-{number}"
    )
    agent = Agent(options, settings, driver=open_driver("directory", engine), origin=LazyOrigin(settings))
    threading.Thread(target=agent.run, daemon=True).start()


def start_loop(settings: Settings, directory: Path, number: int) -> None:
    """What one would write in an afternoon: hear of a digest, copy its files, say so."""
    store = settings.artifact_directory or Path()
    client = connect(settings.redis_url, name="bare")

    def follow() -> None:
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
                client.hset(f"{settings.key_prefix}:bare:{record['served_name']}", str(number), "loaded")

    threading.Thread(target=follow, daemon=True).start()


def main(kind: str, url: str, prefix: str, numbers: range, directory: str) -> None:
    """Start them all, say so, and go on until killed."""
    root = Path(directory)
    settings = Settings(redis_url=url, key_prefix=prefix, artifact_store=str(root / "artifacts"))
    start = start_agent if kind == "agents" else start_loop
    for number in numbers:
        start(settings, root / f"{kind}-{number}", number)
    print("started", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    kind, url, prefix, first, nodes, every, directory = sys.argv[1:]
    main(kind, url, prefix, range(int(first), int(nodes), int(every)), directory)
