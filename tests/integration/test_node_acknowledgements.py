"""When a node tells what it has to say."""

from __future__ import annotations

import math

from lora_registry import node_codes as codes
from lora_registry.nodes import NodeState
from lora_workers.node.acknowledgements import Acknowledgements
from lora_workers.node.failures import NodeFailure
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


def test_the_last_word_stays_the_last_whatever_could_not_be_said_before_it(registry: Registry) -> None:
    """After a failure `loaded` is to be `seen` first; the failure that came together with it is not undone by that."""
    nodes = join(registry, "a")
    acks = Acknowledgements(nodes, "a")
    for failure in (
        NodeFailure(codes.NODE_ENGINE_REFUSED, may_pass=True),
        NodeFailure(codes.NODE_PROBE_FAILED, may_pass=True),
    ):
        acks.say(V1, NodeState.LOADED)
        acks.fail(V1, failure)
        acks.flush()
    assert [(ack.state, ack.code) for ack in nodes.acks(V1)] == [(NodeState.FAILED, "NODE_PROBE_FAILED")]
    acks.say(V1, NodeState.LOADED)
    acks.say(V1, NodeState.ROUTABLE)
    acks.flush()
    assert [ack.state for ack in nodes.acks(V1)] == [NodeState.ROUTABLE]
