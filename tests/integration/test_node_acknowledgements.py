"""When a node tells what it has to say."""

from __future__ import annotations

import math

from lora_registry.nodes import NodeState
from lora_workers.node.acknowledgements import Acknowledgements
from tests.helpers.nodes import join
from tests.helpers.registry import Registry

V1, V2 = "support-bot.v1", "support-bot.v2"


def test_what_was_said_just_now_may_wait_for_more(registry: Registry) -> None:
    """Nothing is told before it has waited; then all of it is, and nothing is left to wait for."""
    nodes = join(registry, "a")
    acks = Acknowledgements(nodes, "a")
    assert acks.flush(after_s=60.0) == math.inf

    acks.say(V1, NodeState.SEEN)
    left_s = acks.flush(after_s=60.0)
    acks.say(V1, NodeState.FETCHED)
    assert 0 < acks.flush(after_s=60.0) <= left_s <= 60.0
    assert nodes.acks(V1) == []

    assert acks.flush() == math.inf
    assert [ack.state for ack in nodes.acks(V1)] == [NodeState.FETCHED]


def test_waiting_is_counted_anew_after_everything_was_told(registry: Registry) -> None:
    """What is said after a flush does not inherit the age of what went before."""
    nodes = join(registry, "a")
    acks = Acknowledgements(nodes, "a")
    acks.say(V1, NodeState.SEEN)
    acks.flush()
    acks.say(V2, NodeState.SEEN)
    assert acks.flush(after_s=60.0) > 0
    assert nodes.acks(V2) == []
