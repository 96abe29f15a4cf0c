"""Many nodes, a process each: agents with a directory for an engine, or loops that do without one.

python -m tests.benchmarks.many_nodes agents|bare|careful URL PREFIX NODES DIRECTORY

All are forked from this one process, which has imported what they need: so they share most of their memory, and no
node shares an interpreter with another, as in production. All kinds are started alike.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from lora_registry.artifacts import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, Manifest
from lora_registry.connection import command, connect, open_bell
from lora_registry.keys import Keys
from lora_registry.nodes import NodeInfo, NodeRegistry, NodeState, Said
from lora_registry.settings import Settings
from lora_workers import local_artifacts  # noqa: F401 - imported once for all, and not by each when it first fetches
from lora_workers.node.agent import Agent
from lora_workers.node.drivers import open_driver
from lora_workers.node.lookup import LazyOrigin
from lora_workers.node.options import NodeOptions
from lora_workers.processes import die_with_parent
from tests.helpers.registry import BASE

_STEPS = (NodeState.SEEN, NodeState.FETCHED, NodeState.LOADED, NodeState.ROUTABLE)


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


def run_careful_loop(settings: Settings, directory: Path, number: int) -> None:
    """The least that does for a version what an agent does when all goes well: it reads the log, verifies and syncs the
    files, puts them in place with one rename, notes the name, links it, reads back, and acknowledges each step.

    It lacks what an agent is for: it wants everything, judges nothing, mends nothing, and ends at the first error.
    """
    node, keys, sequence = f"node-{number}", Keys(settings.key_prefix), 0
    store, client = settings.artifact_directory or Path(), connect(settings.redis_url, name="careful")
    nodes = NodeRegistry(client, settings)
    nodes.heartbeat(NodeInfo(node_id=node, base_model=BASE, engine="directory"), digests=[], fresh=True)
    for part in ("staging", "sha256", "served", "engine"):
        (directory / part).mkdir(parents=True)
    with open_bell(client) as bell:
        bell.subscribe(keys.channel(BASE))
        while True:
            if bell.get_message(timeout=5.0) is None:
                continue
            for _, entry in command(client, "XRANGE", keys.log(BASE), f"{sequence + 1}-0", "+"):
                event = json.loads(entry["message"])
                sequence = int(event["sequence"])
                if "version.published" in event["type"]:
                    served_name = _hold(event["data"], store, directory)
                    nodes.ack_all(node, [Said(served_name, state) for state in _STEPS])


def _hold(record: dict[str, Any], store: Path, directory: Path) -> str:
    served_name, digest = record["served_name"], record["digest"]
    name = digest.removeprefix("sha256:")
    source, staging, target = store / "sha256" / name, directory / "staging" / name, directory / "sha256" / name
    manifest = Manifest.from_json((source / MANIFEST_FILE).read_bytes(), digest=digest)
    staging.mkdir()
    for file_name in (CONFIG_FILE, WEIGHTS_FILE):
        sha256 = hashlib.sha256()
        with (source / file_name).open("rb", buffering=0) as read, (staging / file_name).open("wb") as written:
            while chunk := read.read(1 << 20):
                sha256.update(chunk)
                written.write(chunk)
            written.flush()
            os.fchmod(written.fileno(), 0o444)
            os.fsync(written.fileno())
        assert sha256.hexdigest() == manifest.file(file_name).sha256
    (staging / MANIFEST_FILE).write_bytes(manifest.to_json())
    staging.rename(target)
    target.chmod(0o555)
    note = directory / "served" / f"{served_name}.json"
    aside = note.with_name(f".{note.name}")
    aside.write_text(json.dumps(record))
    aside.rename(note)
    link = directory / "engine" / served_name
    link.symlink_to(target)
    assert link.readlink() == target
    for file_name in (CONFIG_FILE, WEIGHTS_FILE):
        with (link / file_name).open("rb"):
            pass
    return served_name


def main(kind: str, url: str, prefix: str, nodes: int, directory: str) -> None:
    """Start them all, and go on until killed."""
    root = Path(directory)
    settings = Settings(redis_url=url, key_prefix=prefix, artifact_store=str(root / "artifacts"))
    run = {"agents": run_agent, "bare": run_loop, "careful": run_careful_loop}[kind]
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
