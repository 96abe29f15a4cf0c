"""The node agent: the loop beside an engine that makes what the engine has the same as what the registry says.

It follows the catalog, fetches into the cache, drives the engine, reads back, and acknowledges. What to do is decided
in plan.py, from the state alone; here it is done. While Redis is away the last catalog counts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Final

from lora_registry import node_codes as codes
from lora_registry.announcements import CatalogView
from lora_registry.catalog import Catalog
from lora_registry.catalog_records import VersionRecord
from lora_registry.connection import connect
from lora_registry.errors import RedisUnavailable, RegistryError
from lora_registry.nodes import NodeRegistry, NodeState
from lora_registry.selection import parse_selector
from lora_registry.settings import Settings
from lora_registry.subscriber import Subscriber
from lora_workers.node.acknowledgements import Acknowledgements
from lora_workers.node.cache import Cache, Origin
from lora_workers.node.drivers import Driver, EngineDescription
from lora_workers.node.engine_calls import EngineCalls
from lora_workers.node.engine_fit import EngineFit
from lora_workers.node.failures import NodeFailure
from lora_workers.node.fetches import Fetches
from lora_workers.node.note_files import NoteFiles
from lora_workers.node.notes import Notes
from lora_workers.node.options import NodeOptions
from lora_workers.node.plan import (
    Action,
    Confirm,
    Fetch,
    Leave,
    Load,
    Refuse,
    Return,
    Say,
    Situation,
    Unload,
    next_look_s,
    plan,
)
from lora_workers.node.retries import Retries
from lora_workers.node.stand_ins import StandIns
from lora_workers.node.wishes import Wants, Wish, wishes_of

logger = logging.getLogger(__name__)

_BUSY_LOOK_S: Final = 0.5
_FETCHED_SOON_S: Final = 0.25
"""What is fetched by then is acknowledged in one command with what came before."""
_LONGEST_DRAIN: Final = 20
"""So many drain times: then an adapter is unloaded even if requests for it never end."""
_PATIENCE: Final = 3
"""What may pass is acknowledged as failed when it came so often in a row: a promotion takes that for the last word."""
_DYING_S: Final = 10.0
"""An engine that goes away so soon after a call failed may have died of it: some answer 500 first."""
_UP: Final = frozenset({NodeState.LOADED, NodeState.ROUTABLE})
_NOT_ON_THE_WAY: Final = frozenset({None, NodeState.FAILED, NodeState.SKIPPED, NodeState.RETIRED})


class Agent:
    """One node.

    Args:
        options: what the operator said.
        settings: the registry's settings.
        driver: the engine.
        origin: the artifact store.

    Raises:
        Configuration: the engine profile cannot be read.
        Rejected: the selector is none.
    """

    def __init__(self, options: NodeOptions, settings: Settings, *, driver: Driver, origin: Origin) -> None:
        self._options = options
        self._settings = settings
        self._driver = driver
        self._origin = origin
        client = connect(settings.redis_url, name="lora-node")
        self._nodes = NodeRegistry(client, settings)
        self._fit = EngineFit(options, Catalog(client, settings))
        self._note_files = NoteFiles(options.cache)
        routes = self._note_files.recall_routes()
        self._acks = Acknowledgements(self._nodes, options.node_id, answered=routes.values())
        self._selector = parse_selector(options.select)
        self._wants = Wants(self._selector, options.node_id, client)
        self._cache = Cache(options.cache, max_bytes=options.max_cache_bytes)
        self._notes = Notes(self._note_files)
        self._wake, self._stopping, self._forgotten = threading.Event(), threading.Event(), threading.Event()
        self._fetches = Fetches(self._fetch, done=self._wake.set)
        self._calls = EngineCalls(is_at_once=driver.is_at_once, told=self._wake.set)
        self._retries = Retries(options)
        self._stand_ins = StandIns(self._acks, self._is_able, routes)
        self._view: CatalogView | None = None
        self._seen: CatalogView | None = None
        self._generation = ""
        self._has_joined = False
        self._fatal: BaseException | None = None
        self._digests: frozenset[str] = frozenset()
        self._wished: frozenset[str] = frozenset()
        self._slotted = frozenset(routes.values())
        self._suspects: dict[str, float] = {}
        self._is_engine_gone = False
        self._kept: frozenset[str] = frozenset()  # read by the engine's calls, too
        self._confirmed: set[str] = set()
        self._leaving: dict[str, float] = {}
        self._unloaded: set[str] = set()
        self._engine_failures = 0

    # Life

    def run(self) -> None:
        """Work until `stop` is called.

        Raises:
            Configuration: Redis refuses the user, or another agent works with the cache.
        """
        with self._cache.of_one_agent():
            for work in (self._follow, self._beat):
                threading.Thread(target=self._guard, args=(work,), daemon=True, name=work.__name__).start()
            while not self._stopping.is_set():
                self._wait(self._step())
            if self._view:
                self._note_routes(self._view, at_once=True)
            self._fetches.close()
            self._calls.close()
        self._driver.close()
        if self._fatal:
            raise self._fatal
        try:
            self._nodes.leave(self._options.node_id)
        except RegistryError as error:
            logger.warning("the registry was not told that the node ends: %s", error)

    def _wait(self, wait_s: float) -> None:
        """Until something happens, or so long; what is to be said and waits for more is said meanwhile."""
        untold_s = self._acks.flush(after_s=_FETCHED_SOON_S if self._fetches.digests else 0.0)
        if untold_s < wait_s and not self._wake.wait(untold_s):
            self._acks.flush()
            wait_s -= untold_s
        self._wake.wait(wait_s)
        self._wake.clear()

    def stop(self) -> None:
        """End `run` soon. The engine keeps what it has."""
        self._stopping.set()
        self._wake.set()

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again in `run`
            self._fatal = error
            self.stop()

    def _follow(self) -> None:
        subscriber = Subscriber(self._options.base, url=self._settings.redis_url, key_prefix=self._settings.key_prefix)
        for _ in subscriber.follow():
            if self._stopping.is_set():
                return
            if self._view is not subscriber.view:  # of what came together the first update has the whole view
                self._view = subscriber.view
                self._wake.set()

    def _beat(self) -> None:
        """Heartbeats, from when the node has joined. What it holds meanwhile is told by the next one, which is soon
        against the grace of a garbage collection."""
        while not self._stopping.wait(self._settings.heartbeat_s):
            if self._has_joined:
                self._heartbeat(fresh=False)

    def _heartbeat(self, *, fresh: bool) -> bool:
        """Say that the node lives; `fresh` makes the registry forget what an earlier life acknowledged."""
        assert self._fit.info  # noqa: S101 - a node that joined said what it is
        try:
            if self._nodes.heartbeat(self._fit.info, digests=self._digests, fresh=fresh):
                self._forgotten.set()
                self._wake.set()
        except RedisUnavailable as error:
            logger.warning("no heartbeat: %s", error)
            return False
        return True

    # One look

    def _step(self) -> float:
        """Look once and act; returns seconds until the next look if nothing happens."""
        self._take_fetched()
        self._take_told()
        if not self._driver.is_at_once:  # it may take long: whoever looks sees meanwhile how far it is
            self._acks.flush()
        view, listed = self._view, self._look_at_engine()
        if view is None:
            return self._options.reconcile_s
        if not self._has_joined:
            self._has_joined = self._heartbeat(fresh=True)
            if not self._has_joined:
                return self._options.retry_first_s
        self._catch_up(view)
        situation = self._situation(view, listed)
        self._notes.write(view, situation.here)
        self._note_routes(view)
        if listed is not None:
            self._kept = situation.kept
        for action in plan(situation):
            if self._stopping.is_set():
                return 0.0
            if listed is not None or isinstance(action, Fetch):  # an engine that is away is asked nothing
                self._do(action)
        self._take_told()
        return self._pause(situation)

    def _note_routes(self, view: CatalogView, *, at_once: bool = False) -> None:
        if view.versions:  # a catalog that holds nothing is no word on what aliases stood for
            self._notes.write_routes(self._stand_ins.routes, at_once=at_once)

    def _pause(self, situation: Situation) -> float:
        """Until something is due that no event announces, by what the actions left."""
        options = self._options
        left = replace(situation, resting=self._retries.resting, leaving=self._leaving)
        due_s = next_look_s(left)
        pauses = [options.reconcile_s]
        if due_s is not None:
            pauses.append(max(0.0, due_s - (time.monotonic() - situation.now)))
        if situation.busy:
            pauses.append(_BUSY_LOOK_S)
        if self._engine_failures:
            pauses.append(options.retry_first_s)
        return min(pauses)

    def _look_at_engine(self) -> dict[str, str | None] | None:
        """What the engine lists; None while it does not answer."""
        try:
            listed = self._driver.listed()
            if self._fit.info is None or self._engine_failures:
                self._describe(self._driver.describe())
        except NodeFailure as failure:
            self._miss_engine(failure)
            return None
        self._engine_failures = 0
        self._is_engine_gone = False
        return listed

    def _describe(self, told: EngineDescription) -> None:
        """Take in what the engine is: one that was started again may do what it did not."""
        self._fit.describe(told)
        self._retries.try_all()

    def _miss_engine(self, failure: NodeFailure) -> None:
        """The engine does not answer: say so if it lasts. The node is there all the same, and fetches."""
        self._engine_failures += 1
        now = time.monotonic()
        self._retries.died(name for name, failed_at in self._suspects.items() if now - failed_at < _DYING_S)
        self._suspects.clear()
        if self._engine_failures == 1:
            logger.warning("%s", failure.message)
        if self._fit.info is None:
            self._describe(EngineDescription(self._options.engine))
        for name in self._acks.known if self._engine_failures >= _PATIENCE else ():
            if self._acks.state(name) in _UP:
                self._acks.fail(name, failure)
                self._confirmed.discard(name)  # that it answers again is to be said anew

    def _catch_up(self, view: CatalogView) -> None:
        """Forget what is published no more, and tell the registry what it does not know, or not any more."""
        if view is not self._seen:
            self._unloaded &= view.served_names
            self._seen = view
        if self._generation != view.cursor.generation or self._forgotten.is_set():
            self._generation = view.cursor.generation
            self._forgotten.clear()
            self._acks.say_again()
        if not self._engine_failures:
            self._fit.compare_bases()

    def _situation(self, view: CatalogView, listed: dict[str, str | None] | None) -> Situation:
        options, held = self._options, listed or {}
        wanted = self._wants.of(view)
        refused = frozenset(each.record.served_name for each in wanted if self._fit.refusal(each.record)[1])
        under_way = self._calls.under_way
        stand_ins = self._stand_ins.of(view, wanted, listed)
        wishes = wishes_of(
            wanted,
            eager=options.eager,
            slots=self._fit.info.slots if self._fit.info else 0,
            held=held.keys() | under_way.keys(),
            had={name for name in self._slotted if name in held or not self._retries.has_failed(name)},
            refused=refused,
            stand_ins=stand_ins,
        )
        ready = self._ready(wishes)
        self._notice_wishes(wishes, {*held.values(), *under_way.values()}.difference(ready.values()))
        if listed is not None:
            self._slotted = frozenset(wish.name for wish in wishes if wish.eager)
            self._notice_losses(listed)
        return Situation(
            wishes=wishes,
            listed=held,
            ready=ready,
            is_ours=self._is_ours,
            now=time.monotonic(),
            fetching=self._fetches.digests,
            confirmed=frozenset(self._confirmed),
            resting=dict(self._retries.resting),
            leaving=dict(self._leaving),
            under_way=frozenset(under_way),
            busy=self._busy(wishes, held, ready) if listed is not None else frozenset(),
            refused=refused,
            known=self._acks.known,
            drain_s=options.drain_s,
            longest_drain_s=options.drain_s * _LONGEST_DRAIN,
            busy_look_s=_BUSY_LOOK_S,
            lazy=not options.eager,
            stand_ins={name: frozenset(each.served_name for each in old) for name, old in stand_ins.items()},
        )

    def _ready(self, wishes: tuple[Wish, ...]) -> dict[str, str]:
        """Digests of what is wanted that are verified in the cache → where they lie."""
        digests = {wish.record.digest for wish in wishes} - self._fetches.digests
        return {digest: path for digest in digests if (path := self._cache.find(digest))}

    def _busy(
        self, wishes: tuple[Wish, ...], listed: Mapping[str, str | None], ready: Mapping[str, str]
    ) -> frozenset[str]:
        """What requests run on, where that matters; everything if the engine does not tell."""
        is_asked = self._leaving or any(
            wish.name in self._unloaded
            if wish.name not in listed
            else listed[wish.name] not in (None, ready.get(wish.record.digest, listed[wish.name]))
            for wish in wishes
        )
        if not is_asked:
            return frozenset()
        try:
            return self._driver.busy()
        except NodeFailure as failure:
            logger.warning("nothing is unloaded meanwhile: %s", failure.message)
            return frozenset({*listed, *(wish.name for wish in wishes)})

    def _notice_wishes(self, wishes: tuple[Wish, ...], paths: Collection[str | None]) -> None:
        """Begin anew with what is wanted since now, whatever became of it when it was wanted before.

        Args:
            wishes: what is wanted.
            paths: what the engine has or is given besides.
        """
        wished = frozenset(wish.name for wish in wishes)
        for name in wished ^ self._wished:
            self._retries.forget(name)
        for name in wished - self._wished:
            if self._acks.state(name) in _NOT_ON_THE_WAY:
                self._acks.say(name, NodeState.SEEN)
        self._wished = wished
        held = {digest for path in paths if (digest := self._cache.digest_at(path))}
        self._digests = frozenset({wish.record.digest for wish in wishes} | held)

    def _notice_losses(self, listed: dict[str, str | None]) -> None:
        """What the engine has no more, without having been asked to unload it: it was restarted."""
        self._confirmed &= listed.keys()
        for name in [name for name in self._leaving if name not in listed]:
            del self._leaving[name]
        for name in self._acks.known - self._calls.under_way.keys():
            if self._acks.state(name) in _UP and name not in listed:
                self._acks.say(name, NodeState.FETCHED)

    def _is_able(self, record: VersionRecord) -> bool:
        return self._selector.matches(record) and not self._fit.refusal(record)[1]

    def _is_ours(self, path: str | None) -> bool:
        return self._cache.digest_at(path) is not None

    # Doing it

    def _do(self, action: Action) -> None:
        match action:
            case Fetch(record):
                self._fetches.begin(record)
            case Load(record, path):
                self._begin(record.served_name, self._load(record.served_name, path), path=path)
            case Confirm(record, path):
                self._begin(record.served_name, self._confirm(record.served_name, path), path=path)
            case Unload(name):
                self._unloaded.add(name)  # whatever becomes of it: the answer may get lost
                self._begin(name, self._unload(name, is_kept=name in self._kept))
            case Leave(name):
                self._leaving[name] = time.monotonic()
            case Return(name):
                del self._leaving[name]
            case Refuse(record, instead):
                self._skip(record, instead)
            case Say(name, state):
                self._say(name, state)

    # Calls of the engine, made when it is their turn: by then there may be no need of them any more.

    def _begin(self, name: str, call: Iterator[NodeState], *, path: str | None = None) -> None:
        self._calls.begin(name, self._unless_gone(call), path=path)

    def _unless_gone(self, call: Iterator[NodeState]) -> Iterator[NodeState]:
        """What waited for its turn while the engine went away is not to blame, and is begun anew when that is back."""
        if self._is_engine_gone:
            return
        try:
            yield from call
        except NodeFailure as failure:
            self._is_engine_gone |= failure.code == codes.NODE_ENGINE_UNREACHABLE.code
            raise

    def _load(self, name: str, path: str) -> Iterator[NodeState]:
        if name not in self._kept:
            return
        self._driver.load(name, path)
        yield NodeState.LOADED
        yield from self._confirm(name, path)

    def _confirm(self, name: str, path: str) -> Iterator[NodeState]:
        if self._driver.listed().get(name, "") not in (None, path):
            raise NodeFailure(codes.NODE_NOT_LISTED, may_pass=True)
        self._driver.probe(name)
        yield NodeState.ROUTABLE

    def _unload(self, name: str, *, is_kept: bool) -> Iterator[NodeState]:
        if (name in self._kept) is not is_kept:
            return
        self._driver.unload(name)
        yield NodeState.RETIRED

    def _take_told(self) -> None:
        """Note what the calls of the engine came to; only here, so that they share nothing with the loop."""
        for name, what in self._calls.take_told():
            if isinstance(what, NodeFailure):
                self._suspects[name] = time.monotonic()
                self._fail(name, what)
            elif what is NodeState.RETIRED:
                self._note_unloaded(name)
            else:
                self._acks.say(name, what)
                if what is NodeState.ROUTABLE:
                    self._confirmed.add(name)
                    self._retries.forget(name)
                    self._suspects.pop(name, None)

    def _note_unloaded(self, name: str) -> None:
        self._retries.forget(name)
        self._confirmed.discard(name)
        self._leaving.pop(name, None)
        if name not in self._wished:
            self._say(name, NodeState.RETIRED)
        elif self._acks.state(name) in _UP:
            self._acks.say(name, NodeState.FETCHED)

    def _skip(self, record: VersionRecord, instead: Collection[str]) -> None:
        code, reason = self._fit.refusal(record)
        self._confirmed.discard(record.served_name)  # if the engine has it all the same, that is to be said anew
        if instead:
            reason += f" Meanwhile {', '.join(sorted(instead))} answers for it."
        self._acks.say(record.served_name, NodeState.SKIPPED, code, reason)

    def _say(self, name: str, state: NodeState) -> None:
        if state is NodeState.RETIRED:
            if not self._is_published(name):
                self._note_files.forget(name)  # the plug-in may have noted it
            self._retries.forget(name)
            self._fit.forget(name)
            self._suspects.pop(name, None)
        if state is NodeState.RESOLVABLE and self._options.eager:
            slots_taken = codes.NODE_SLOTS_TAKEN
            self._acks.say(name, NodeState.SKIPPED, slots_taken.code, f"{slots_taken.cause} {slots_taken.remedy}")
        else:
            self._acks.say(name, state)

    def _is_published(self, name: str) -> bool:
        return self._view is not None and name in self._view.served_names

    def _fail(self, name: str, failure: NodeFailure) -> None:
        count = self._retries.failed(name, failure)
        if failure.may_pass and count < _PATIENCE:
            logger.info("%s: %s, tried again soon: %s", name, failure.code, failure.message)
        elif name in self._acks.known:
            self._acks.fail(name, failure)
            self._confirmed.discard(name)  # if the engine has it all the same, that is to be said anew

    # Fetching

    def _fetch(self, record: VersionRecord) -> None:
        self._cache.fetch(record.digest, self._origin, keep=self._in_use)

    def _in_use(self) -> set[str]:
        """Digests that must stay in the cache: what is wanted, and what the engine may read again."""
        try:
            listed = self._driver.listed()
        except NodeFailure:
            return self._cache.digests()  # nobody knows what it has
        held = {digest for path in listed.values() if (digest := self._cache.digest_at(path))}
        return held | self._digests | self._fetches.digests

    def _take_fetched(self) -> None:
        for record, failure in self._fetches.take_ended():
            if failure:
                self._fail(record.served_name, failure)
                continue
            self._retries.forget(record.served_name)
            self._notes.write_again(record.served_name)  # it may have been lost with the files
            if record.served_name in self._wished and self._acks.state(record.served_name) not in _UP:
                self._acks.say(record.served_name, NodeState.FETCHED)
