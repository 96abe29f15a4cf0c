"""What the node has told the registry of each version, and what is still to be told while that is out of reach."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable

from lora_registry.errors import RedisUnavailable
from lora_registry.nodes import SERVED, NodeRegistry, NodeState, Said
from lora_workers.node.failures import NodeFailure

logger = logging.getLogger(__name__)


class Acknowledgements:
    """Says each change once, in order, and what came together in one command; while the server is away it keeps the
    last word on each version.

    Args:
        nodes: the registry's side.
        node_id: the node.
        answered: versions that were served in an earlier life.
    """

    def __init__(self, nodes: NodeRegistry, node_id: str, answered: Iterable[str] = ()) -> None:
        self._nodes = nodes
        self._node_id = node_id
        self._last: dict[str, Said] = {}
        self._known: set[str] = set()
        self._answered = set(answered)
        self._untold: list[Said] = []
        self._untold_since = 0.0

    @property
    def known(self) -> frozenset[str]:
        """Versions that the registry is told about and that are not gone."""
        return frozenset(self._known)

    def state(self, served_name: str) -> NodeState | None:
        """How far the node is with a version; None if it never said."""
        said = self._last.get(served_name)
        return said.state if said else None

    def answered(self, served_name: str) -> bool:
        """Whether a version was served here, and not given up since."""
        return served_name in self._answered

    def say(self, served_name: str, state: NodeState, code: str = "", reason: str = "") -> None:
        """Say how far the node is, at the next `flush`; what was said already is not said again."""
        said = Said(served_name, state, code, reason)
        if self._last.get(served_name) == said:
            return
        logger.info("%s is %s%s", served_name, state, f": {code} {reason}" if code else "")
        self._last[served_name] = said
        if state is NodeState.RETIRED:
            self._known.discard(served_name)
        else:
            self._known.add(served_name)
        if state in SERVED:
            self._answered.add(served_name)
        elif state in (NodeState.RETIRED, NodeState.SKIPPED):
            self._answered.discard(served_name)
        if not self._untold:
            self._untold_since = time.monotonic()
        self._untold.append(said)

    def fail(self, served_name: str, failure: NodeFailure) -> None:
        """Say that, and why, a version is not served."""
        self.say(served_name, NodeState.FAILED, failure.code, f"{failure.message} {failure.remedy}")

    def say_again(self) -> None:
        """Say everything again: the registry forgot it."""
        self._untold = list(self._last.values())

    def flush(self, *, after_s: float = 0.0) -> float:
        """Say what is still to be said, if the server can be reached and it has waited for so long.

        Returns:
            Seconds until it has; infinity if there is nothing, or the server is out of reach.
        """
        if not self._untold:
            return math.inf
        left_s = self._untold_since + after_s - time.monotonic()
        if left_s > 0:
            return left_s
        try:
            self._tell(self._untold)
        except RedisUnavailable as error:
            logger.warning("%d acknowledgements wait until Redis answers: %s", len(self._untold), error)
            self._untold = list({said.served_name: said for said in self._untold}.values())
            return math.inf
        self._untold = []
        for name in self._last.keys() - self._known:
            del self._last[name]
        return math.inf

    def _tell(self, untold: list[Said]) -> None:
        refused = [said for said, _ in self._nodes.ack_all(self._node_id, untold)]
        unsaid = {said.served_name for said in refused if said == self._last[said.served_name]}
        if unsaid:  # after a failure, for example: they begin anew; else the last word was taken
            seen = [Said(name, NodeState.SEEN) for name in unsaid]
            self._nodes.ack_all(self._node_id, [*seen, *(said for said in refused if said.served_name in unsaid)])
