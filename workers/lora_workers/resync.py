"""Resync: looks at watched places now and then, and repairs what no webhook told.

What is new there goes the way of a delivery, so whatever a webhook, a training job or another resync has registered
already is no second version. Any number may run: a delivery of one content after one registration has one id.
"""

from __future__ import annotations

import hashlib
import logging
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol

import redis

from lora_registry import hook_codes
from lora_registry.code import Code
from lora_registry.errors import NotFound, RateLimited, RegistryError, Rejected, Transient
from lora_registry.hook_deliveries import DeliveryVerdict, HookDeliveries, Known, Recalled
from lora_registry.settings import SECONDS_PER_DAY, Settings
from lora_workers.hooks.heads import Head, newest
from lora_workers.watched_places import Found, WatchingHook

MOST_REPEATS: Final = 3
"""How often a content is asked for again whose registrations were dead-lettered."""
LONGEST_PAUSE_S: Final = float(SECONDS_PER_DAY)
"""Content that was rejected for what may pass, such as a quota, is asked for again after pauses that double to this."""
_PATIENCE: Final = 3
"""So many places of a hook in a row that cannot be looked at end its round: the store is away."""
_RETRY_S: Final = 5.0
_LOOK_S: Final = 0.2
logger = logging.getLogger(__name__)
Clock = Callable[[], float]


class Places(Protocol):
    """See `WatchedPlaces`."""

    def below(self, hook: WatchingHook, place: str) -> Found:
        """See `WatchedPlaces.below`."""

    def look(self, hook: WatchingHook, place: str, *, quiet_s: float) -> Found:
        """See `WatchedPlaces.look`."""


class Sight(StrEnum):
    """What a round made of a place, or of an adapter there."""

    QUEUED = "queued"
    CURRENT = "current"
    LEFT = "left"
    """It is known and was refused, or nobody knows whether it is the newest."""
    MISSING = "missing"
    """It cannot be had, and trying again soon would not help."""
    UNREACHABLE = "unreachable"
    """It cannot be had now; the next round looks again."""


_ASKED_AGAIN: Final = (Known.HINDERED, Known.DEAD_LETTERED)
_SIGHTS: Final = {DeliveryVerdict.QUEUED: Sight.QUEUED, DeliveryVerdict.IGNORED: Sight.LEFT}


@dataclass(frozen=True)
class Seen:
    """One result of a round.

    Attributes:
        hook: whose place it is.
        place: the place, or the source of an adapter there.
        sight: what was made of it.
        reason: why, unless it is queued or current.
        delivery: id in the hook's history; empty if it is not there.
    """

    hook: str
    place: str
    sight: Sight
    reason: str = ""
    delivery: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types only."""
        return asdict(self) | {"sight": self.sight.value}


@dataclass
class _Pace:
    """How a hook's last round ended: not before when there may be another, and where that begins."""

    not_before: float = 0.0
    resume_at: str = ""
    failures: int = field(default=0)


class Resync:
    """Looks at the watched places of some hooks.

    Args:
        hooks: those that watch something, by their names.
        client: connection to the registry's server.
        settings: the registry's settings.
        places: asks the stores.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        hooks: Mapping[str, WatchingHook],
        client: redis.Redis,
        settings: Settings,
        *,
        places: Places,
        clock: Clock = time.monotonic,
    ) -> None:
        self._hooks = dict(hooks)
        self._settings = settings
        self._places = places
        self._deliveries = HookDeliveries(client, settings)
        self._clock = clock
        self._paces = {name: _Pace() for name in self._hooks}

    def once(self, *, is_over: Callable[[], bool] = lambda: False) -> list[Seen]:
        """Look at everything once; what is new is queued when this returns.

        A hook whose store limits requests, or is away, is left where it was, and its next round goes on from there.

        Args:
            is_over: says that the round is to end early.

        Raises:
            QueueFull: too much is pending already.
            RedisUnavailable: the server is out of reach.
            Configuration: the credentials file was changed for the worse.
        """
        return [seen for name, hook in self._hooks.items() for seen in self._round(name, hook, is_over)]

    def _round(self, name: str, hook: WatchingHook, is_over: Callable[[], bool]) -> Iterator[Seen]:
        pace = self._paces[name]
        if pace.not_before > self._clock():
            yield Seen(name, ", ".join(hook.watch), Sight.UNREACHABLE, "The store asked to wait longer.")
            return
        pace.failures = 0
        places: list[str] = []
        for watched in hook.watch:
            found, seen = self._attempt(name, watched, lambda watched=watched: self._places.below(hook, watched))  # type: ignore[misc]
            yield from seen
            places += found.places
            if self._is_away(pace) or is_over():
                return
        places = sorted(dict.fromkeys(places))
        start = next((index for index, place in enumerate(places) if place >= pace.resume_at), 0)
        pace.resume_at = ""
        quiet_s = self._settings.hook_quiet_s if hook.quiet_s is None else hook.quiet_s
        for place in places[start:] + places[:start]:
            look = lambda place=place: self._places.look(hook, place, quiet_s=quiet_s)  # noqa: E731 - called at once
            found, seen = self._attempt(name, place, look)
            yield from seen
            yield from self._compare(name, place, found)
            if self._is_away(pace) or is_over():
                pace.resume_at = place
                return

    def _is_away(self, pace: _Pace) -> bool:
        return pace.failures >= _PATIENCE or pace.not_before > self._clock()

    def _attempt(self, name: str, place: str, ask: Callable[[], Found]) -> tuple[Found, list[Seen]]:
        """Ask a store: what it says, and what is wrong with it."""
        pace = self._paces[name]
        try:
            found = ask()
        except Rejected as error:
            pace.failures = 0
            code = f"{error.findings[0].code}: " if error.findings else ""
            return Found(), [self._note(name, place, Sight.MISSING, f"{code}{error.message}")]
        except Transient as error:
            pace.failures += 1
            if isinstance(error, RateLimited):
                pace.not_before = self._clock() + max(error.retry_after_s, self._settings.backoff_first_s)
            logger.warning("hook %s: %s", name, error)
            return Found(), [Seen(name, place, Sight.UNREACHABLE, error.message)]
        pace.failures = 0
        return found, [self._note(name, place, Sight.LEFT, _said(found.lacks))] if found.lacks else []

    def _compare(self, name: str, place: str, found: Found) -> Iterator[Seen]:
        clear, unclear = newest(found.heads)
        for head in clear:
            yield self._settle(name, head, self._deliveries.recall(head.event))
        rivals: dict[tuple[str, str], list[tuple[Head, Recalled]]] = {}
        for head in unclear:
            rivals.setdefault(head.adapter, []).append((head, self._deliveries.recall(head.event)))
        for (adapter, _), known in rivals.items():
            latest = max(recalled.order for _, recalled in known)
            unknown = [each for each in known if each[1].known is Known.NEW]
            if len(unknown) > 1:
                yield self._note(name, f"{place} ({adapter})", Sight.LEFT, _said(hook_codes.WATCH_UNCLEAR))
                known = [each for each in known if each not in unknown]
            for head, recalled in known:
                if recalled.known in _ASKED_AGAIN and recalled.order < latest:  # the adapter would go back to it
                    yield Seen(name, head.event.event.source, Sight.LEFT, "It failed, and a later one was asked for.")
                else:
                    yield self._settle(name, head, recalled)

    def _settle(self, name: str, head: Head, recalled: Recalled) -> Seen:
        """Ask for what is new, and now and then for what failed by no fault of its own."""
        source, known = head.event.event.source, recalled.known
        if known is Known.CURRENT:
            return Seen(name, source, Sight.CURRENT)
        if known is Known.REFUSED:
            told = _rejected(recalled) if recalled.registration_id else "Its event was refused."
            return Seen(name, source, Sight.LEFT, told)
        after = {Known.DEAD_LETTERED: "again", Known.HINDERED: "later"}.get(known, recalled.registration_id)
        delivery_id = _delivery_id(source, head.event.origin, head.event.content, after)
        if known is Known.DEAD_LETTERED and self._times(name, delivery_id) >= MOST_REPEATS:
            return Seen(name, source, Sight.LEFT, _said(hook_codes.WATCH_GIVEN_UP), delivery_id)
        if known is Known.HINDERED:
            left_s = self._pause_s(name, delivery_id) - recalled.ended_s
            if left_s > 0:
                told = f"{_rejected(recalled)} It is asked for again in {left_s:.0f} s."
                return Seen(name, source, Sight.LEFT, told)
        heard = self._deliveries.hear(name, delivery_id, [head.event], body=head.request)
        return Seen(name, source, _SIGHTS.get(heard.verdict, Sight.CURRENT), heard.reason, delivery_id)

    def _pause_s(self, name: str, delivery_id: str) -> float:
        doubled = min(self._times(name, delivery_id), 20)
        longest_s = min(LONGEST_PAUSE_S, self._settings.retention_s / 2)  # what is forgotten would count as served
        return min(self._settings.resync_interval_s * 2.0**doubled, longest_s)

    def _times(self, name: str, delivery_id: str) -> int:
        try:
            return self._deliveries.delivery(name, delivery_id).times
        except NotFound:
            return 0

    def _note(self, name: str, place: str, sight: Sight, reason: str) -> Seen:
        """Put a reason into the hook's history, where its repetitions count up."""
        delivery_id = _delivery_id(place, reason)
        self._deliveries.hear(name, delivery_id, [], reason=reason)
        return Seen(name, place, sight, reason, delivery_id)


def run(
    resync: Resync, *, every_s: float, report: Callable[[list[Seen]], None], is_over: Callable[[], bool] | None = None
) -> None:
    """Look again and again, until SIGTERM or SIGINT; whatever is away is waited for.

    Args:
        resync: what looks.
        every_s: pause between the rounds.
        report: is handed what each round saw.
        is_over: says when to end; default: when a signal came.
    """
    is_over = is_over or _stop_signals()
    while not is_over():
        pause_s = every_s
        try:
            report(resync.once(is_over=is_over))
        except RegistryError as error:
            logger.warning("the round was not finished: %s", error)
            pause_s = min(every_s, _RETRY_S)
        end = time.monotonic() + pause_s
        while not is_over() and time.monotonic() < end:
            time.sleep(max(0.0, min(_LOOK_S, end - time.monotonic())))


def counted(round_: list[Seen]) -> dict[str, int]:
    """How often each sight was had."""
    counts = Counter(each.sight for each in round_)
    return {sight.value: counts[sight] for sight in Sight}


def _stop_signals() -> Callable[[], bool]:
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: received.append(number))
    return lambda: bool(received)


def _rejected(recalled: Recalled) -> str:
    return f"Its registration {recalled.registration_id} was rejected: {', '.join(recalled.codes)}."


def _said(code: Code) -> str:
    return f"{code.code}: {code.cause}"


def _delivery_id(place: str, *parts: str) -> str:
    """What the history calls it: its digest comes first, since ids are cut at their end."""
    return f"resync-{hashlib.sha256(chr(10).join([place, *parts]).encode()).hexdigest()[:12]}-{place}"[:200]
