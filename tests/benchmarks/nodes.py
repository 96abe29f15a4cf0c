"""Many nodes that follow one publisher: agents against bare loops that copy files, and what agents cost Redis idle."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack

from lora_registry.nodes import NodeState
from lora_registry.settings import Settings
from tests.benchmarks.figures import Figure, of_rounds
from tests.benchmarks.stand import Stand, child
from tests.helpers.node_stand import StoringRegistry
from tests.helpers.registry import BASE
from tests.helpers.waiting import wait_until

_CONTENT_BYTES = 200_000
"""Of an adapter: enough to be copied and hashed, and small enough for 200 copies on one disk."""
_EVERY_S = 0.02
"""Looks at the acknowledgements of 200 nodes take the server's and a core's time, so they are few."""
_SENT = ("evalsha", "xrange", "hget", "ping")
"""Commands that a node sends while nothing happens; the rest of what the server counts is inside the heartbeat."""
_TIMEOUT_S = 120.0


def run(stand: Stand) -> list[Figure]:
    """200 nodes; a quick run: 20."""
    nodes, rounds = (20, 3) if stand.quick else (200, 5)
    idle_s = 10.0 if stand.quick else 30.0
    bare = _measure(stand, "bare", nodes, rounds)
    ours = _measure(stand, "agents", nodes, rounds, idle_s=idle_s)
    return [
        of_rounds(f"published to acknowledged by all of {nodes} nodes", "s", ours.times, bare.times, at_most=2.0),
        Figure(f"idle: commands that each of {nodes} nodes sends", "1/s", ours.idle_rate, at_most=1.0),
        Figure("idle: the same with what scripts do inside", "1/s", ours.idle_rate_inside),
    ]


class _Measured:
    """What was measured of one kind of nodes."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.idle_rate = self.idle_rate_inside = 0.0


def _measure(stand: Stand, kind: str, nodes: int, rounds: int, *, idle_s: float = 0.0) -> _Measured:
    directory = stand.directory / f"nodes-{kind}"
    settings = stand.settings(f"{{nodes-{kind}}}").model_copy(update={"artifact_store": str(directory / "artifacts")})
    registry = StoringRegistry(stand.connect(), settings)
    registry.padding_bytes = _CONTENT_BYTES
    registry.admit()
    measured = _Measured()
    with ExitStack() as started:
        reports = [
            started.enter_context(child("tests.benchmarks.many_nodes", kind, *each))
            for each in _shares(settings, nodes, str(directory))
        ]
        for report in reports:
            report.readline()
        _wait_for_subscribers(registry, nodes)
        for number in range(rounds + 1):
            record = registry.publish_version(f"bot-{number}", content=str(number))
            begun = registry.announced_at
            wait_until(
                lambda name=record.served_name: _count(registry, kind, name) >= nodes,  # type: ignore[misc]
                what=f"{kind}: {record.served_name} on {nodes} nodes",
                timeout_s=_TIMEOUT_S,
                every_s=_EVERY_S,
            )
            measured.times.append(time.monotonic() - begun)
        if idle_s:
            sent, inside = _commands_per_s(registry, idle_s)
            measured.idle_rate, measured.idle_rate_inside = sent / nodes, inside / nodes
    measured.times = measured.times[1:]  # the first round warms up
    return measured


def _shares(settings: Settings, nodes: int, directory: str) -> list[tuple[str, ...]]:
    """Arguments of one process for each core: real nodes are a process each, and share no interpreter."""
    processes = len(os.sched_getaffinity(0))
    return [
        (settings.redis_url, settings.key_prefix, str(first), str(nodes), str(processes), directory)
        for first in range(processes)
    ]


def _count(registry: StoringRegistry, kind: str, served_name: str) -> int:
    if kind == "bare":
        count: int = registry.client.hlen(f"{registry.settings.key_prefix}:bare:{served_name}")  # type: ignore[assignment]
        return count
    return sum(ack.state is NodeState.ROUTABLE for ack in registry.nodes.acks(served_name))


def _wait_for_subscribers(registry: StoringRegistry, nodes: int) -> None:
    channel = registry.keys.channel(BASE)
    wait_until(
        lambda: registry.client.pubsub_numsub(channel)[0][1] >= nodes, what="all nodes listen", timeout_s=_TIMEOUT_S
    )


def _commands_per_s(registry: StoringRegistry, for_s: float) -> tuple[float, float]:
    """What the server did in a while in which nothing was published: commands sent, and those with scripts' own."""
    before, begun = _calls(registry), time.monotonic()
    time.sleep(for_s)
    after, took_s = _calls(registry), time.monotonic() - begun
    done = {name: count - before.get(name, 0) for name, count in after.items()}
    return sum(done.get(name, 0) for name in _SENT) / took_s, sum(done.values()) / took_s


def _calls(registry: StoringRegistry) -> dict[str, int]:
    stats = registry.client.info("commandstats")
    return {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}  # type: ignore[union-attr]
