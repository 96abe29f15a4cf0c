"""Many nodes that follow one publisher: agents against loops that do without one, and what agents cost Redis idle.

The bare loops hear of a version and copy its files. The careful ones verify, sync, read back and acknowledge as agents
do, and nothing else: how far they are from the bare ones is what those guarantees cost however they are written.

Each node is a process, as it is in production; all share this machine's cores and its one disk, and there is nothing
that one of them waits for but these.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lora_registry.nodes import NodeState
from tests.benchmarks.figures import Figure, of_rounds
from tests.benchmarks.stand import Stand, child
from tests.helpers.node_stand import StoringRegistry
from tests.helpers.registry import BASE
from tests.helpers.waiting import wait_until

_CONTENT_BYTES = 200_000
"""Of an adapter: 40 MB for 200 copies. With one of real size the one disk would be measured that 200 nodes share here
and nowhere else: the agents wait until their copies are on it, the bare loops do not."""
_EVERY_S = 0.1
"""Looks at what 200 nodes said take the server's and a core's time, so they are few; the nodes say when it was."""
_SENT = ("evalsha", "xrange", "hget", "ping")
"""Commands that a node sends while nothing happens; the rest of what the server counts is inside the heartbeat."""
_TIMEOUT_S = 120.0


def run(stand: Stand) -> list[Figure]:
    """200 nodes of each kind, in turns; a quick run: 20."""
    nodes, rounds = (20, 3) if stand.quick else (200, 5)
    with _following(stand, "agents", nodes) as ours:
        with _following(stand, "bare", nodes) as bare, _following(stand, "careful", nodes) as careful:
            for number in range(rounds + 1):
                for side in (ours, bare, careful):
                    side.publish(number)
        sent, inside = ours.idle_commands_per_s(10.0 if stand.quick else 30.0)
    agents, copied, guaranteed = (side.times[1:] for side in (ours, bare, careful))  # the first round warms up
    return [
        of_rounds(f"published to acknowledged by all of {nodes} nodes", "s", agents, copied, at_most=2.0),
        of_rounds("the same, against careful loops", "s", agents, guaranteed),
        of_rounds("careful loops, against bare ones", "s", guaranteed, copied),
        Figure(f"idle: commands that each of {nodes} nodes sends", "1/s", sent / nodes, at_most=1.0),
        Figure("idle: the same with what scripts do inside", "1/s", inside / nodes),
    ]


class _Side:
    """Nodes of one kind and a registry for them.

    Attributes:
        times: for each version, seconds from when it began to be published until the last node said that it has it.
    """

    def __init__(self, stand: Stand, kind: str, nodes: int) -> None:
        self.directory = stand.directory / f"nodes-{kind}"
        store = str(self.directory / "artifacts")
        self.settings = stand.settings(f"{{nodes-{kind}}}").model_copy(update={"artifact_store": store})
        self.times: list[float] = []
        self._kind, self._nodes = kind, nodes
        self._registry = StoringRegistry(stand.connect(), self.settings)
        self._registry.padding_bytes = _CONTENT_BYTES
        self._registry.admit()

    def wait_for_subscribers(self) -> None:
        """Until all nodes listen: exactly so many, since Valkey 9.1 was seen to count 437,754,215 in between."""
        client, channel = self._registry.client, self._registry.keys.channel(BASE)
        wait_until(
            lambda: client.pubsub_numsub(channel)[0][1] == self._nodes, what="all nodes listen", timeout_s=_TIMEOUT_S
        )

    def publish(self, number: int) -> None:
        """Publish a version, and note how long it takes to the last node."""
        os.sync()  # what the other kind left to be written is not this one's to wait for
        served_name = self._registry.publish_version(f"bot-{number}", content=str(number)).served_name
        wait_until(
            lambda: len(self._said_at(served_name)) >= self._nodes,
            what=f"{self._kind}: {served_name} on {self._nodes} nodes",
            timeout_s=_TIMEOUT_S,
            every_s=_EVERY_S,
        )
        self.times.append(max(self._said_at(served_name)) - self._registry.announced_at)

    def idle_commands_per_s(self, for_s: float) -> tuple[float, float]:
        """What the server does in a while in which nothing is published: commands sent, and those with scripts' own."""
        before, begun = self._calls(), time.monotonic()
        time.sleep(for_s)
        after, took_s = self._calls(), time.monotonic() - begun
        done = {name: count - before.get(name, 0) for name, count in after.items()}
        return sum(done.get(name, 0) for name in _SENT) / took_s, sum(done.values()) / took_s

    def _said_at(self, served_name: str) -> list[float]:
        """When each node said that it has a version, in seconds since 1970-01-01."""
        registry = self._registry
        if self._kind == "bare":
            said = registry.client.hvals(f"{registry.settings.key_prefix}:bare:{served_name}")
            return [float(at) for at in said]  # type: ignore[union-attr]
        return [ack.since_s for ack in registry.nodes.acks(served_name) if ack.state is NodeState.ROUTABLE]

    def _calls(self) -> dict[str, int]:
        stats = self._registry.client.info("commandstats")
        return {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}  # type: ignore[union-attr]


@contextmanager
def _following(stand: Stand, kind: str, nodes: int) -> Iterator[_Side]:
    """Nodes of one kind at work."""
    side = _Side(stand, kind, nodes)
    arguments = (kind, side.settings.redis_url, side.settings.key_prefix, str(nodes), str(side.directory))
    with child("tests.benchmarks.many_nodes", *arguments):
        side.wait_for_subscribers()
        yield side
