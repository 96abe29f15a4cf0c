"""Serving nodes: who is there, what each can serve, what it holds, and how far it is with which version.

A node says all this itself. What it said counts while it lives, that is, while its heartbeats come; a node that was
started again begins anew.

    eager   seen → fetched → loaded → routable          lazy   seen → fetched → resolvable

or `failed` and `skipped`, with a code and a reason; `retired` once it is unloaded and not wanted any more. A node may
go back (an engine that restarts goes from routable to fetched) and may leave out a step that it passed, since an
acknowledgement can be lost with a server. What failed, was skipped or retired is not served unless it was seen or
fetched again: a node says `seen` each time it begins to want a version. Whoever waits takes `failed` for the last word,
so a node tries again what may pass in a moment before it says that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

import redis
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from lora_registry import scripts
from lora_registry.errors import Conflict, InvalidName, NotFound
from lora_registry.keys import Keys
from lora_registry.names import check_base_name
from lora_registry.settings import Settings

MAX_REASON = 500
MAX_RETIRED = 1000
"""Versions that a node retired and that are still told of it."""
NODE_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
NodeId = Annotated[str, StringConstraints(pattern=NODE_ID)]


class NodeState(StrEnum):
    """How far a node is with a version."""

    SEEN = "seen"
    """It heard of the version and wants it."""
    FETCHED = "fetched"
    """The bytes are in its cache, and their digest was verified."""
    LOADED = "loaded"
    """The engine said that it took the adapter."""
    ROUTABLE = "routable"
    """The engine lists the served name with the right path, and answered a request with it."""
    RESOLVABLE = "resolvable"
    """A request for the served name will load it."""
    FAILED = "failed"
    """It cannot serve it, the reason says why; what may pass in a moment is tried again before this is said."""
    SKIPPED = "skipped"
    """It does not serve it: its engine would refuse it or serve it wrongly, or it has no place for it."""
    RETIRED = "retired"
    """Nobody wants it there any more, and it has unloaded it."""


SERVED = frozenset({NodeState.ROUTABLE, NodeState.RESOLVABLE})
"""States in which requests are answered."""

_S = NodeState
_ON_THE_WAY = frozenset({_S.SEEN, _S.FETCHED, _S.LOADED, _S.ROUTABLE, _S.RESOLVABLE})
_AFTER: dict[NodeState, frozenset[NodeState]] = {
    **dict.fromkeys(_ON_THE_WAY, frozenset(_S)),
    _S.FAILED: frozenset({_S.SEEN, _S.FETCHED, _S.FAILED, _S.SKIPPED, _S.RETIRED}),
    _S.SKIPPED: frozenset({_S.SEEN, _S.FAILED, _S.SKIPPED, _S.RETIRED}),
    _S.RETIRED: frozenset({_S.SEEN, _S.SKIPPED, _S.RETIRED}),
}
_STATES_BEFORE = {
    after: f",{','.join(before for before in NodeState if after in _AFTER[before])}," for after in NodeState
}


class NodeInfo(BaseModel):
    """What a node says of itself.

    Attributes:
        node_id: its name among all nodes.
        base_model: base model that it serves.
        engine: `vllm`, `sglang`, … as engine profiles call it.
        engine_version: as the engine calls it; empty: unknown.
        max_lora_rank: largest rank that it was started for; None: not limited, or not known.
        target_modules: last parts of the names of the modules that it was started for; None: all.
        slots: adapters that it holds loaded at a time; 0: not known.
        tensor_parallel_size: devices that share one model.
        dtype: what it serves in; `auto`: the base model's.
        eager: whether it loads what it wants at once, and not at the first request.
        flags: other options of the engine that rules ask for.
        select: selector of the versions that it wants (see selection.py); empty: all of its base model.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    node_id: NodeId
    base_model: str
    engine: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    engine_version: str = ""
    max_lora_rank: Annotated[int, Field(gt=0)] | None = None
    target_modules: tuple[str, ...] | None = None
    slots: Annotated[int, Field(ge=0)] = 0
    tensor_parallel_size: Annotated[int, Field(gt=0, le=1024)] = 1
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    eager: bool = True
    flags: tuple[str, ...] = ()
    select: str = ""

    @field_validator("base_model")
    @classmethod
    def _check_base(cls, base_model: str) -> str:
        return check_base_name(base_model)


@dataclass(frozen=True)
class Node:
    """A node as the registry knows it.

    Attributes:
        info: what it said of itself.
        alive: whether its heartbeats come.
        since_s: when it joined, in seconds since 1970-01-01.
        expires_s: when it counts as dead, or since when it does, in seconds since 1970-01-01.
        artifacts: how many artifacts it holds.
    """

    info: NodeInfo
    alive: bool
    since_s: float
    expires_s: float
    artifacts: int


@dataclass(frozen=True)
class Said:
    """What a node says of a version.

    Attributes:
        served_name: the version.
        state: how far it is.
        code: what stopped it, if it failed or was skipped; without spaces.
        reason: the same in words; cut at 500 characters.
    """

    served_name: str
    state: NodeState
    code: str = ""
    reason: str = ""

    @property
    def parts(self) -> list[str]:
        """What the script is told of it."""
        reason = " ".join(self.reason.split())[:MAX_REASON]
        return [self.served_name, self.state, self.code or "-", reason, _STATES_BEFORE[self.state]]


@dataclass(frozen=True)
class Ack:
    """What a node last said of a version.

    Attributes:
        node_id: the node. served_name: the version.
        state: how far it is.
        since_s: since when, in seconds since 1970-01-01.
        code: what stopped it, if it failed or was skipped.
        reason: the same in words.
    """

    node_id: str
    served_name: str
    state: NodeState
    since_s: float
    code: str = ""
    reason: str = ""


class NodeRegistry:
    """Typed access to what nodes say.

    Args:
        client: connection to the registry's server.
        settings: the registry's settings.
    """

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._settings = settings
        self._keys = Keys(settings.key_prefix)
        self._told: dict[str, str] = {}
        """Node → fingerprint of what was last said of it here, so that news is said at once."""

    def heartbeat(self, info: NodeInfo, *, digests: Collection[str], fresh: bool = False) -> bool:
        """Say that the node lives, what it is and what it holds; one command as long as nothing of that changed.

        Args:
            info: the node; to be said every `settings.heartbeat_s`.
            digests: artifacts that it holds: they are not collected while it does, nor for a while after it died.
            fresh: whether the node was just started: what an earlier life acknowledged counts no more.

        Returns:
            Whether the registry had forgotten the node, and with it what it acknowledged: to be said again.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        described, held = info.model_dump_json(), json.dumps(sorted(set(digests)))
        fingerprint = hashlib.sha256(f"{described}\n{held}".encode()).hexdigest()[:32]
        is_news = fresh or self._told.get(info.node_id) != fingerprint
        if not is_news and self._beat(info.node_id, fingerprint) != "tell":
            return False
        answer = self._beat(info.node_id, fingerprint, described, held, len(set(digests)), int(fresh))
        self._told[info.node_id] = fingerprint
        return answer == "new" and not fresh

    def _beat(self, node_id: str, fingerprint: str, *told: str | int) -> str:
        keys, settings = self._keys, self._settings
        answer: str = scripts.call(
            self._redis,
            "heartbeat",
            keys=[keys.nodes_alive, keys.node(node_id), keys.node_acks(node_id), keys.node_retired(node_id)],
            args=[node_id, int(settings.node_timeout_s * 1e6), settings.node_retention_s, fingerprint, *told],
        )
        return answer

    def leave(self, node_id: str) -> None:
        """Say that the node ends: it is forgotten at once, with what it acknowledged.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        keys = self._keys
        scripts.call(
            self._redis,
            "leave",
            keys=[keys.nodes_alive, keys.node(node_id), keys.node_acks(node_id), keys.node_retired(node_id)],
            args=[node_id, keys.ack_bell("")],
        )

    def ack(self, node_id: str, served_name: str, state: NodeState, *, code: str = "", reason: str = "") -> None:
        """Say how far the node is with a version; saying it again changes nothing, its time included.

        Args:
            node_id: the node.
            served_name: the version.
            state: how far it is.
            code: what stopped it, if it failed or was skipped; without spaces.
            reason: the same in words; cut at 500 characters.

        Raises:
            Conflict: a version that failed, was skipped or retired is to be seen first.
            RedisUnavailable: the server is out of reach.
        """
        for _, before in self.ack_all(node_id, [Said(served_name, state, code, reason)]):
            raise Conflict(
                f"{served_name} is {before} on node {node_id}, and cannot be {state} next",
                remedy="Acknowledge that it is seen, and begin again.",
            )

    def ack_all(self, node_id: str, said: Sequence[Said]) -> list[tuple[Said, str]]:
        """Say how far the node is with versions, in this order and in one command; see `ack`.

        Returns:
            What was not taken, and the state before, which it may not follow: the version is to be seen first.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        keys = self._keys
        args: list[str | int] = [self._settings.node_retention_s, MAX_RETIRED, keys.ack_bell("")]
        args += [part for each in said for part in each.parts]
        acks = [keys.node_acks(node_id), keys.node_retired(node_id)]
        answers = scripts.call(self._redis, "ack", keys=acks, args=args)
        return [(each, answer) for each, answer in zip(said, answers, strict=True) if answer not in ("ok", "same")]

    def nodes(self, base_model: str | None = None) -> list[Node]:
        """Nodes that live, and those that died within `settings.node_retention_s`, by name.

        One that says of itself what this version cannot read is left out.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        found = [_parse_node(*each) for each in self._read("nodes")]
        wanted = [node for node in found if node and base_model in (None, node.info.base_model)]
        return sorted(wanted, key=lambda node: node.info.node_id)

    def node(self, node_id: str) -> Node:
        """One node.

        Raises:
            NotFound: there is none of that name (any more).
            RedisUnavailable: the server is out of reach.
        """
        for each in self._read("nodes", node_id):
            if node := _parse_node(*each):
                return node
        raise NotFound(f"no node {node_id[:100]!r} is known", remedy="List them with `lora-registry nodes`.")

    def acks(self, *served_names: str) -> list[Ack]:
        """What the nodes that live said of some versions, by node and version.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        found = [_parse_ack(*each) for each in self._read("acks", *served_names)]
        return sorted(filter(None, found), key=lambda ack: (ack.node_id, ack.served_name))

    def acks_of(self, node_id: str) -> list[Ack]:
        """What one node, alive or dead, said of all versions, by version.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        found = [_parse_ack(*each) for each in self._read("acks_of", node_id)]
        return sorted(filter(None, found), key=lambda ack: ack.served_name)

    def digests_in_use(self) -> set[str]:
        """Artifacts that nodes hold, the ones that died not long ago included: they may only have lost their network.

        Raises:
            Conflict: a node says it in a way that this version cannot read, so that nothing is known to be unused.
            RedisUnavailable: the server is out of reach.
        """
        try:
            return {str(digest) for (held,) in self._read("digests") for digest in json.loads(held)}
        except (ValueError, TypeError) as error:
            raise Conflict("a node says what it holds in a way that cannot be read", remedy=_BRING_UP) from error

    def _read(self, what: str, *args: str) -> list[list[str]]:
        found: list[list[str]] = scripts.call(self._redis, "nodes", keys=[], args=[self._keys.nodes, what, *args])
        return found


_BRING_UP = "Bring registry and nodes to one version, or have the node leave."


def _parse_node(info: str, artifacts: str, since_us: str, expires_us: str, alive: str) -> Node | None:
    try:
        return Node(
            NodeInfo.model_validate_json(info),
            alive=alive == "1",
            since_s=float(since_us) / 1e6,
            expires_s=float(expires_us) / 1e6,
            artifacts=int(artifacts),
        )
    except (ValueError, InvalidName):
        return None


def _parse_ack(node_id: str, served_name: str, stored: str) -> Ack | None:
    """Parse the stored form `<state> <since in us> <code or -> <reason>`; None: it is none that is known here."""
    try:
        state, since_us, code, reason = stored.split(" ", 3)
        return Ack(node_id, served_name, NodeState(state), float(since_us) / 1e6, "" if code == "-" else code, reason)
    except ValueError:
        return None


def describe_ack(ack: Ack) -> dict[str, Any]:
    """What `rollout --json` prints of it: plain JSON types only."""
    return {
        "node": ack.node_id,
        "version": ack.served_name,
        "state": ack.state.value,
        "since_s": ack.since_s,
        "code": ack.code,
        "reason": ack.reason,
    }
