"""Serving nodes without an engine: they say what a real one would."""

from __future__ import annotations

from typing import Any

from lora_registry.nodes import NodeInfo, NodeRegistry, NodeState
from tests.helpers.registry import BASE, Registry

EAGER = (NodeState.SEEN, NodeState.FETCHED, NodeState.LOADED, NodeState.ROUTABLE)
LAZY = (NodeState.SEEN, NodeState.FETCHED, NodeState.RESOLVABLE)


def make_info(node_id: str = "node-1", **fields: Any) -> NodeInfo:
    """A node of the tests' base model."""
    return NodeInfo(**({"node_id": node_id, "base_model": BASE, "engine": "vllm"} | fields))


def join(registry: Registry, node_id: str = "node-1", *, digests: tuple[str, ...] = (), **fields: Any) -> NodeRegistry:
    """Start a node; returns what it speaks through."""
    nodes = NodeRegistry(registry.client, registry.settings)
    nodes.heartbeat(make_info(node_id, **fields), digests=digests, fresh=True)
    return nodes


def serve(nodes: NodeRegistry, node_id: str, served_name: str, *, lazy: bool = False) -> None:
    """All acknowledgements of a version that the node comes to serve."""
    for state in LAZY if lazy else EAGER:
        nodes.ack(node_id, served_name, state)
