"""What the node has told the registry of each version, and what is still to be told while that is out of reach."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from lora_registry.errors import Conflict, RedisUnavailable
from lora_registry.nodes import NodeRegistry, NodeState
from lora_workers.node.failures import NodeFailure

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Said:
    state: NodeState
    code: str = ""
    reason: str = ""


class Acknowledgements:
    """Says each change once; while the server is away it keeps the last word on each version.

    Args:
        nodes: the registry's side.
        node_id: the node.
    """

    def __init__(self, nodes: NodeRegistry, node_id: str) -> None:
        self._nodes = nodes
        self._node_id = node_id
        self._wanted: dict[str, _Said] = {}
        self._said: dict[str, _Said] = {}

    @property
    def known(self) -> frozenset[str]:
        """Versions that the registry is told about and that are not gone."""
        return frozenset(name for name, said in self._wanted.items() if said.state is not NodeState.RETIRED)

    def state(self, served_name: str) -> NodeState | None:
        """How far the node is with a version; None if it never said."""
        said = self._wanted.get(served_name)
        return said.state if said else None

    def say(self, served_name: str, state: NodeState, code: str = "", reason: str = "") -> None:
        """Say how far the node is; what was said already is not said again."""
        self._keep(served_name, _Said(state, code, reason))

    def fail(self, served_name: str, failure: NodeFailure) -> None:
        """Say that, and why, a version is not served."""
        self._keep(served_name, _Said(NodeState.FAILED, failure.code, f"{failure.message} {failure.remedy}"))

    def say_again(self) -> None:
        """Say everything again: the registry forgot it."""
        self._said.clear()
        self.flush()

    def flush(self) -> None:
        """Say what is still to be said, if the server can be reached."""
        for name, wanted in list(self._wanted.items()):
            if self._said.get(name) != wanted and not self._tell(name, wanted):
                return

    def _keep(self, name: str, wanted: _Said) -> None:
        if self._wanted.get(name) != wanted:
            logger.info("%s is %s%s", name, wanted.state, f": {wanted.code} {wanted.reason}" if wanted.code else "")
        self._wanted[name] = wanted
        if self._said.get(name) != wanted:
            self._tell(name, wanted)

    def _tell(self, name: str, wanted: _Said) -> bool:
        try:
            try:
                self._nodes.ack(self._node_id, name, wanted.state, code=wanted.code, reason=wanted.reason)
            except Conflict:  # after a failure, for example: it begins anew
                self._nodes.ack(self._node_id, name, NodeState.SEEN)
                self._nodes.ack(self._node_id, name, wanted.state, code=wanted.code, reason=wanted.reason)
        except RedisUnavailable as error:
            logger.warning("%s stays %s until Redis answers: %s", name, wanted.state, error)
            return False
        self._said[name] = wanted
        if wanted.state is NodeState.RETIRED:
            del self._wanted[name], self._said[name]
        return True
