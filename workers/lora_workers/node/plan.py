"""What a node does next: what it wants is compared with what is, and the differences are actions. No I/O.

It is not told what happened (an engine restarted, an unload failed, something else loaded an adapter): each time it
looks at the state alone, so whatever happened is mended the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from lora_registry.catalog_records import VersionRecord
from lora_registry.nodes import NodeState
from lora_workers.node.wishes import Wish


@dataclass(frozen=True)
class Situation:
    """What is, at one moment.

    Attributes:
        wishes: what the node wants.
        listed: what the engine lists: name → path; None where it does not tell paths.
        ready: digests that are verified in the cache → where they lie.
        fetching: digests on their way.
        is_ours: whether a path that the engine lists is in this cache; the rest is left alone.
        under_way: served names that the engine is being called for; each is left alone until that ends.
        confirmed: served names that answered a request since they were loaded.
        resting: served name → when it may be tried again, after a failure.
        leaving: served name → since when nobody wants it.
        busy: served names that requests are running on.
        refused: served names that the engine would not serve as they are.
        known: served names that the registry was told about and not yet told that they are gone.
        now: seconds of a monotonic clock, as all times here.
        drain_s: how long an adapter stays loaded that nobody wants any more.
        longest_drain_s: after so long it goes, even if requests never end.
        busy_look_s: how often it is looked at then.
        lazy: whether the engine loads what it is asked for by itself: then it may hold more than it was given.
        stand_ins: served names that do not answer yet → those that answer for them if they can.
    """

    wishes: tuple[Wish, ...]
    listed: Mapping[str, str | None]
    ready: Mapping[str, str]
    is_ours: Callable[[str | None], bool]
    now: float
    fetching: frozenset[str] = frozenset()
    under_way: frozenset[str] = frozenset()
    confirmed: frozenset[str] = frozenset()
    resting: Mapping[str, float] = field(default_factory=dict)
    leaving: Mapping[str, float] = field(default_factory=dict)
    busy: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    known: frozenset[str] = frozenset()
    drain_s: float = 30.0
    longest_drain_s: float = 600.0
    busy_look_s: float = 0.5
    lazy: bool = False
    stand_ins: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @cached_property
    def kept(self) -> frozenset[str]:
        """Served names that do not leave the engine."""
        return frozenset({wish.name for wish in self.wishes if wish.eager or self.lazy} - self.refused)

    @property
    def here(self) -> dict[str, VersionRecord]:
        """Served name → version, of what is wanted, may be served, and is verified in the cache."""
        able = (wish for wish in self.wishes if wish.record.digest in self.ready and wish.name not in self.refused)
        return {wish.name: wish.record for wish in able}

    @cached_property
    def held_up(self) -> frozenset[str]:
        """Served names that are wanted and that the engine is not given now, or has not taken yet."""
        return frozenset(
            wish.name
            for wish in self.wishes
            if wish.name in self.refused
            or self.rests(wish.name)
            or wish.record.digest not in self.ready
            or (wish.name in self.under_way and wish.name not in self.listed)
        )

    def answers_for(self, name: str) -> frozenset[str]:
        """Served names that answer for one that does not."""
        return self.stand_ins.get(name, frozenset()) & self.confirmed & self.kept

    def rests(self, name: str) -> bool:
        """Whether a failure of it is so fresh that it is left alone."""
        return self.resting.get(name, self.now) > self.now


@dataclass(frozen=True)
class Fetch:
    """Have the artifact in the cache, verified."""

    record: VersionRecord


@dataclass(frozen=True)
class Load:
    """Load it into the engine from this path."""

    record: VersionRecord
    path: str


@dataclass(frozen=True)
class Confirm:
    """The engine has it: ask for one token, and say that it is routable."""

    record: VersionRecord
    path: str


@dataclass(frozen=True)
class Unload:
    """Unload it: it is not wanted there any more, or it lies at another path than it should."""

    name: str


@dataclass(frozen=True)
class Leave:
    """It is not wanted in the engine since now: its drain time begins."""

    name: str


@dataclass(frozen=True)
class Return:
    """It is wanted again before it was unloaded."""

    name: str


@dataclass(frozen=True)
class Say:
    """Tell the registry how far it is."""

    name: str
    state: NodeState


@dataclass(frozen=True)
class Refuse:
    """Ask nothing of the engine for it: say why the node skips it, and what it keeps in its stead."""

    record: VersionRecord
    instead: frozenset[str] = frozenset()


Action = Fetch | Load | Confirm | Unload | Leave | Return | Say | Refuse


def plan(situation: Situation) -> list[Action]:
    """The actions that bring what is nearer to what is wanted, in the order in which to do them.

    New versions are loaded before old ones are unloaded, and fetches begin first of all.
    """
    actions: list[Action] = [Return(name) for name in sorted(situation.kept & situation.leaving.keys())]
    actions += [action for wish in situation.wishes for action in _for_wish(wish, situation)]
    actions.sort(key=lambda action: not isinstance(action, Fetch))
    actions.extend(_for_leaving(situation))
    actions.extend(_for_retired(situation))
    return actions


def next_look_s(situation: Situation) -> float | None:
    """Seconds until something is due that no event announces; None if nothing is.

    What is due and yet still there is waited for: requests run on it.
    """
    concerned = {wish.name for wish in situation.wishes} | situation.leaving.keys()
    due = [at for name, at in situation.resting.items() if name in concerned and at > situation.now]
    soon = situation.now + situation.busy_look_s
    due += [
        max(soon, since + situation.drain_s)
        for name, since in situation.leaving.items()
        if not situation.rests(name) and name not in situation.under_way
    ]
    return min(due) - situation.now if due else None


def _for_wish(wish: Wish, situation: Situation) -> Iterator[Action]:
    name, record = wish.name, wish.record
    if name in situation.refused:
        yield Refuse(record, situation.answers_for(name))
        return
    if wish.instead_of and name not in situation.listed and situation.held_up.isdisjoint(wish.instead_of):
        return  # the engine lost it, and what it stands in for is loaded just as soon
    if situation.rests(name) or name in situation.under_way:
        return
    path = situation.ready.get(record.digest)
    if path is None:
        if record.digest not in situation.fetching:
            yield Fetch(record)
        return
    if name not in situation.listed:
        if not wish.eager:
            yield Say(name, NodeState.RESOLVABLE)
        elif name not in situation.busy:  # requests of an earlier load still run: a second one would kill vLLM
            yield Load(record, path)
        return
    if name not in situation.kept:
        return  # it leaves
    if situation.listed[name] not in (None, path):
        if name not in situation.busy:
            yield Unload(name)
    elif name not in situation.confirmed:
        yield Confirm(record, path)


def _for_leaving(situation: Situation) -> Iterator[Action]:
    for name, path in situation.listed.items():
        if name in situation.kept or name in situation.under_way or not situation.is_ours(path):
            continue
        since = situation.leaving.get(name)
        if since is None:
            yield Leave(name)
            continue
        waited = situation.now - since
        is_over = waited >= situation.longest_drain_s
        if not situation.rests(name) and (is_over or (waited >= situation.drain_s and name not in situation.busy)):
            yield Unload(name)


def _for_retired(situation: Situation) -> Iterator[Action]:
    for name in sorted(situation.known - {wish.name for wish in situation.wishes}):
        is_there = name in situation.listed and situation.is_ours(situation.listed[name])
        if not is_there and name not in situation.under_way:
            yield Say(name, NodeState.RETIRED)
