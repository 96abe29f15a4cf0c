"""Garbage collection against registrations of the same bytes: no interleaving announces a missing artifact."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_registry import fit_codes
from lora_registry.artifacts import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, FileDigest, Manifest
from lora_registry.catalog import Published
from lora_registry.catalog_records import VersionRecord
from lora_registry.errors import ArtifactBusy, Configuration, LeaseLost, RegistryError, ServerNotAdmitted, Transient
from lora_registry.ledger import REMOVAL_S, Lease
from lora_registry.marks import Marks
from lora_registry.names import AdapterName
from lora_registry.nodes import NodeRegistry
from lora_registry.registrations import Outcome
from lora_registry.report import ValidationReport
from lora_registry.stages import Stage
from lora_workers.artifact_store import Store
from lora_workers.garbage import GarbageCollection
from lora_workers.local_artifacts import LocalArtifactStore
from lora_workers.object_artifacts import ObjectArtifactStore
from tests.helpers.nodes import join
from tests.helpers.registry import Registry
from tests.helpers.s3_server import ACCESS_KEY, SECRET_KEY, UNVERSIONED, S3Server
from tests.helpers.sources import unique
from tests.helpers.waiting import wait_until

CONFIG = b'{"r":8}'


def digest_of(content: bytes) -> FileDigest:
    """What a source says of bytes that it copied."""
    return FileDigest(hashlib.sha256(content).hexdigest(), len(content))


def artifact(content: bytes = b"one") -> str:
    """The digest of an artifact with these weights."""
    return Manifest.of(CONFIG, digest_of(content)).digest


def keep(store: Store, content: bytes = b"one") -> str:
    """Keep an artifact with these weights."""
    with store.stage() as staged:
        Path(staged.weights_path).write_bytes(content)
        return staged.keep(CONFIG, digest_of(content))


def is_whole(store: Store, digest: str) -> bool:
    """Whether every byte of the artifact can be read."""
    try:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            b"".join(store.read(digest, name))
    except RegistryError:
        return False
    return True


def collection(
    registry: Registry, store: Any, *, catalog: Any = None, marks: Any = None, reports_for_s: float = 3600.0
) -> GarbageCollection:
    """A collection without grace, which is the hardest case."""
    in_use = NodeRegistry(registry.client, registry.settings).digests_in_use
    return GarbageCollection(
        store,
        catalog=catalog or registry.catalog,
        marks=marks or Marks(registry.client, registry.settings),
        in_use=in_use,
        grace_s=0.0,
        reports_for_s=reports_for_s,
    )


@pytest.fixture
def store(tmp_path: Path) -> LocalArtifactStore:
    """An empty store."""
    return LocalArtifactStore(tmp_path / "artifacts")


def validated(lease: Lease, content: bytes = b"one") -> dict[str, str | int]:
    """What validate leaves."""
    return {
        "digest": artifact(content),
        "rank": 8,
        "size_bytes": len(content),
        "base_revision": "main",
        "findings": "[]",
    }


def register(registry: Registry, store: Store, content: bytes = b"one", *, name: str = "support-bot") -> str:
    """Publish a version with these bytes; returns its digest."""
    registry.submit(name, content=content.decode())
    [lease] = registry.advance(Stage.VALIDATE).values()
    registry.ledger.pin(lease, artifact(content))
    keep(store, content)
    registry.ledger.complete(lease, validated(lease, content))
    [lease] = registry.claim(Stage.PUBLISH)
    assert registry.publish(lease).outcome is Outcome.PUBLISHED
    return artifact(content)


# What is collected


def test_only_what_nothing_refers_to_is_removed(registry: Registry, store: LocalArtifactStore) -> None:
    """A version, a node that holds it, or a registration in progress keeps an artifact; the rest goes."""
    published = register(registry, store, b"published")
    held, pinned, loose = (keep(store, content) for content in (b"held", b"pinned", b"loose"))
    join(registry, digests=(held,))
    registry.submit("other", content="pinned")
    [lease] = registry.advance(Stage.VALIDATE).values()
    registry.ledger.pin(lease, pinned)
    collected = collection(registry, store).run()
    assert collected.removed == [loose]
    assert collected.removed_bytes > len(b"loose")
    assert store.digests() == sorted([published, held, pinned])
    registry.ledger.finish(lease, Outcome.REJECTED)
    assert collection(registry, store).run().removed == [pinned]


def test_dry_run_changes_nothing(registry: Registry, store: LocalArtifactStore) -> None:
    """It says what would go and what would wait, and leaves no mark."""
    register(registry, store, b"published")
    loose = keep(store, b"loose")
    before = sorted(registry.client.scan_iter(f"{registry.settings.key_prefix}:*"))
    assert collection(registry, store).preview().waiting == [loose]
    assert sorted(registry.client.scan_iter(f"{registry.settings.key_prefix}:*")) == before
    collection(registry, store).mark()
    preview = collection(registry, store).preview()
    assert (preview.removed, preview.waiting) == ([loose], [])
    assert store.digests() == sorted([loose, artifact(b"published")])


@pytest.fixture(params=["directory", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store in a directory, and one on a real S3 server."""
    if request.param == "directory":
        return LocalArtifactStore(tmp_path / "artifacts")
    server: S3Server = request.getfixturevalue("s3_server")
    options = {"key": ACCESS_KEY, "secret": SECRET_KEY, "client_kwargs": {"endpoint_url": server.endpoint_url}}
    return ObjectArtifactStore(f"s3://{UNVERSIONED}/{unique('store')}", scratch=tmp_path, options=options)


def test_report_goes_when_its_registration_is_forgotten_and_no_version_is_of_it(
    registry: Registry, any_store: Store
) -> None:
    """Not before its time; a published version's stays until that is retired; a dry run says which would go."""
    report = ValidationReport.of((fit_codes.SHAPE_MISMATCH.finding("lora_B.weight"),))
    register(registry, any_store, b"published")
    published = registry.version().registration_id
    for registration_id in (published, "reg_rejected"):
        any_store.keep_report(registration_id, report)
    assert collection(registry, any_store).run().reports == []
    aged = collection(registry, any_store, reports_for_s=-60.0)
    assert aged.preview().reports == ["reg_rejected"]
    assert sorted(any_store.reports()) == sorted([published, "reg_rejected"])
    assert aged.run().reports == ["reg_rejected"]
    assert list(any_store.reports()) == [published]
    register(registry, any_store, b"newer")
    registry.lifecycle.retire_version(AdapterName("default", "support-bot"), 1)
    assert aged.run().reports == [published]
    assert any_store.reports() == {}
    any_store.remove_report(published)


def test_grace_is_waited_out(registry: Registry, store: LocalArtifactStore) -> None:
    """What was marked just now is not removed, whatever a caller believes; a run that waits removes it."""
    register(registry, store, b"published")
    loose = keep(store, b"loose")
    marks = Marks(registry.client, registry.settings)
    slow = GarbageCollection(
        store, catalog=registry.catalog, marks=marks, in_use=set, grace_s=0.3, reports_for_s=3600.0
    )
    assert slow.run().waiting == [loose]
    assert not marks.take(loose, checked_from_us=marks.now_us(), grace_s=0.3)
    begun = time.monotonic()
    assert slow.run(wait=True).removed == [loose]
    assert time.monotonic() - begun < 5


def test_mark_goes_when_the_bytes_are_registered(registry: Registry, store: LocalArtifactStore) -> None:
    """From then on the grace would begin anew."""
    loose = keep(store)
    marked = collection(registry, store).mark(allow_all=True)
    assert list(marked.since_us) == [loose]
    register(registry, store)
    assert Marks(registry.client, registry.settings).read()[0].since_us == {}
    assert collection(registry, store).remove(marked).removed == []


def test_empty_registry_removes_nothing_by_mistake(registry: Registry, store: LocalArtifactStore) -> None:
    """A wrong URL or prefix must not cost a full store; whoever means it says so."""
    loose = keep(store)
    with pytest.raises(Configuration, match="nothing is published"):
        collection(registry, store).run()
    assert collection(registry, store).run(allow_all=True).removed == [loose]


def test_server_that_is_not_admitted_removes_nothing(registry: Registry, store: LocalArtifactStore) -> None:
    """One that was restored from a backup may have forgotten versions that were announced."""
    register(registry, store)
    loose = keep(store, b"loose")
    marks = Marks(registry.client, registry.settings)
    marks.mark([loose])
    registry.forget_server()
    with pytest.raises(ServerNotAdmitted):
        collection(registry, store).run()
    assert not marks.take(loose, checked_from_us=marks.now_us(), grace_s=0)
    registry.admit()
    assert collection(registry, store).run().removed == [loose]


def test_dead_letter_keeps_its_artifact_until_it_expires(registry: Registry, store: LocalArtifactStore) -> None:
    """It may be driven again from publish; once it is forgotten, so is its pin."""
    register(registry, store, b"published")
    impatient = registry.with_settings(max_attempts=1)
    registration_id = registry.submit("other")
    [lease] = registry.advance(Stage.VALIDATE).values()
    registry.ledger.pin(lease, artifact())
    keep(store)
    registry.ledger.complete(lease, validated(lease))
    [lease] = registry.claim(Stage.PUBLISH)
    assert impatient.ledger.fail(lease, Transient("no"))
    assert collection(registry, store).run().removed == []
    registry.ledger.redrive(registration_id)
    [lease] = registry.claim(Stage.PUBLISH)
    assert collection(registry, store).run().removed == []
    assert impatient.ledger.fail(lease, Transient("no"))
    registry.client.delete(registry.keys.registration(registration_id), registry.keys.history(registration_id))
    assert collection(registry, store).run().removed == [artifact()]
    assert registry.client.hlen(registry.keys.pins) == 0


# The pin


def test_pin_needs_the_lease(registry: Registry) -> None:
    """A worker that lost its lease pins nothing: what it writes is garbage."""
    registry.submit()
    [lease] = registry.advance(Stage.VALIDATE).values()
    with pytest.raises(LeaseLost):
        registry.ledger.pin(Lease(lease.registration, lease.stage, lease.epoch, "other"), artifact())
    assert registry.client.hlen(registry.keys.pins) == 0


@pytest.mark.parametrize("outcome", [Outcome.REJECTED, Outcome.SUPERSEDED, Outcome.UNCHANGED])
def test_pin_ends_with_the_registration(registry: Registry, outcome: Outcome) -> None:
    """Whatever the outcome."""
    registry.submit()
    [lease] = registry.advance(Stage.VALIDATE).values()
    registry.ledger.pin(lease, artifact())
    assert registry.client.hgetall(registry.keys.pins) == {lease.registration.id: artifact()}
    registry.ledger.finish(lease, outcome)
    assert registry.client.hgetall(registry.keys.pins) == {}


def test_artifact_that_is_being_removed_is_neither_pinned_nor_published(
    registry: Registry, store: LocalArtifactStore
) -> None:
    """Not even by a registration that an older release validated without a pin; a claim that was abandoned ends."""
    marks = Marks(registry.client, registry.settings)
    marks.mark([keep(store)])
    assert marks.take(artifact(), checked_from_us=marks.now_us(), grace_s=0)
    registry.submit()
    [lease] = registry.advance(Stage.VALIDATE).values()
    with pytest.raises(ArtifactBusy):
        registry.ledger.pin(lease, artifact())
    registry.ledger.complete(lease, validated(lease))
    [publishing] = registry.claim(Stage.PUBLISH)
    with pytest.raises(ArtifactBusy):
        registry.publish(publishing)
    registry.client.zadd(registry.keys.removing, {artifact(): marks.now_us() - (REMOVAL_S + 1) * 1e6})
    registry.submit("other")
    [lease] = registry.advance(Stage.VALIDATE).values()
    registry.ledger.pin(lease, artifact())
    assert not marks.release(artifact())


def test_publishing_without_a_pin_takes_the_mark_away(registry: Registry, store: LocalArtifactStore) -> None:
    """As a registration does that an older release validated: from then on a collection has to look again."""
    marks = Marks(registry.client, registry.settings)
    marks.mark([keep(store)])
    registry.submit()
    [lease] = registry.advance(Stage.VALIDATE).values()
    registry.ledger.complete(lease, validated(lease))
    [lease] = registry.claim(Stage.PUBLISH)
    registry.publish(lease)
    assert not marks.take(artifact(), checked_from_us=marks.now_us(), grace_s=0)


# All interleavings


class Turns:
    """Lets two threads take their steps in the order of a schedule; who is done is passed over."""

    def __init__(self, schedule: Sequence[str]) -> None:
        self._left = list(schedule)
        self._done: set[str] = set()
        self._changed = threading.Condition()

    def take(self, who: str) -> None:
        """Wait until it is one's turn; the turn lasts until one's next."""
        with self._changed:
            if self._left and self._left[0] == who + "!":
                self._left.pop(0)
                self._skip()
            assert self._changed.wait_for(lambda: not self._left or self._left[0] == who, timeout=20), self._left
            if self._left:
                self._left[0] = who + "!"
            self._changed.notify_all()

    def finish(self, who: str) -> None:
        """Take no further turn."""
        with self._changed:
            self._done.add(who)
            self._skip()

    def _skip(self) -> None:
        while self._left and self._left[0].rstrip("!") in self._done:
            self._left.pop(0)
        self._changed.notify_all()


class InTurn:
    """Something whose methods wait for their turn."""

    def __init__(self, inner: Any, turns: Turns, *methods: str) -> None:
        self._inner = inner
        self._turns = turns
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in self._methods:
            return method

        def call(*arguments: Any, **named: Any) -> Any:
            self._turns.take("gc")
            found = method(*arguments, **named)
            return list(found) if isinstance(found, Iterator) else found

        return call


GC_STEPS, REGISTRATION_STEPS = 8, 4


def schedules() -> list[tuple[str, ...]]:
    """Every order of the steps of a collection and of a registration from pin to publish."""
    total = GC_STEPS + REGISTRATION_STEPS
    places = itertools.combinations(range(total), REGISTRATION_STEPS)
    return [tuple("registration" if each in chosen else "gc" for each in range(total)) for chosen in places]


def collect_in_turn(registry: Registry, store: Store, turns: Turns) -> Callable[[], None]:
    """A real collection whose eight steps each wait: list, look, mark, clock, look, take, remove, release."""
    gated_marks = InTurn(Marks(registry.client, registry.settings), turns, "mark", "now_us", "take", "release")
    gated_store = InTurn(store, turns, "digests", "remove")
    gated = collection(registry, gated_store, catalog=InTurn(registry.catalog, turns, "select"), marks=gated_marks)

    def run() -> None:
        gated.remove(gated.mark(allow_all=True))

    return run


def register_in_turn(
    registry: Registry, store: Store, lease: Lease, turns: Turns, notes: list[str]
) -> Callable[[], None]:
    """What validate and publish do: pin, keep, complete, publish; a pin that is refused is tried again later."""

    def run() -> None:
        turns.take("registration")
        while True:
            try:
                registry.ledger.pin(lease, artifact())
                break
            except ArtifactBusy:
                notes.append("busy")
                turns.finish("registration")  # it comes again when the collection is through
                wait_until(lambda: not registry.client.zcard(registry.keys.removing), what="the removal", every_s=0.001)
        turns.take("registration")
        keep(store)
        turns.take("registration")
        registry.ledger.complete(lease, validated(lease))
        [publishing] = registry.claim(Stage.PUBLISH)
        turns.take("registration")
        record = VersionRecord(
            namespace="default",
            name=lease.registration.adapter.name,
            version=publishing.registration.version or 0,
            lora_int_id=publishing.registration.lora_int_id or 0,
            served_name=f"{lease.registration.adapter.name}.v1",
            base_model=lease.registration.base_model,
            base_revision="main",
            digest=artifact(),
            rank=8,
            size_bytes=3,
            source="/one",
            registration_id=lease.registration.id,
        )
        notes.append(registry.catalog.publish(publishing, record))

    return run


def run_schedule(registry: Registry, store: Store, schedule: Sequence[str], *, name: str) -> list[str]:
    """One collection and one registration of the same bytes in this order; returns what the latter met."""
    registry.submit(name)
    [lease] = registry.advance(Stage.VALIDATE).values()
    turns, notes, failures = Turns(schedule), [], list[Exception]()
    runs = {
        "gc": collect_in_turn(registry, store, turns),
        "registration": register_in_turn(registry, store, lease, turns, notes),
    }

    def follow(who: str) -> None:
        try:
            runs[who]()
        except Exception as error:  # noqa: BLE001 - shown by the test's own thread
            failures.append(error)
        finally:
            turns.finish(who)

    threads = [threading.Thread(target=follow, args=(who,)) for who in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    return notes


@pytest.mark.parametrize("already_there", [True, False])
@pytest.mark.parametrize("kind", ["directory", "objects"])
def test_no_interleaving_publishes_what_is_missing(
    registry: Registry, tmp_path: Path, kind: str, already_there: bool
) -> None:
    """A collection and a registration of the same bytes, their steps in all 495 orders: what is published is whole."""
    met = {"kept": 0, "busy": 0}
    step = 1 if kind == "directory" and already_there else 7  # the scripts are the same: the rest is a sample
    for number, schedule in enumerate(schedules()[::step]):
        store: Store
        if kind == "directory":
            store = LocalArtifactStore(tmp_path / str(number))
        else:
            store = ObjectArtifactStore(f"memory://{tmp_path.name}/{number}", scratch=tmp_path)
        if already_there:
            keep(store)
        notes = run_schedule(registry, store, schedule, name=f"adapter-{number}")
        assert Published.PUBLISHED in notes, (schedule, notes)
        assert is_whole(store, artifact()), schedule
        met["busy" if "busy" in notes else "kept"] += 1
        _forget_versions(registry)
    if already_there:
        assert met["busy"] > 0, "no schedule had the registration meet a removal"
    assert met["kept"] > 0


def _forget_versions(registry: Registry) -> None:
    """Retire everything, so that the bytes are garbage again."""
    for base in set(registry.catalog.adapters().values()):
        registry.client.delete(registry.keys.versions(base))
    registry.client.delete(registry.keys.marked)


def test_removal_that_broke_off_is_neither_published_nor_final(registry: Registry, tmp_path: Path) -> None:
    """The collector dies after the manifest: nobody reads the rest, the claim runs out, and the bytes come again."""
    store = ObjectArtifactStore(f"memory://{tmp_path.name}", scratch=tmp_path)
    keep(store)
    marks = Marks(registry.client, registry.settings)
    marks.mark([artifact()])
    assert marks.take(artifact(), checked_from_us=marks.now_us(), grace_s=0)
    store._files.rm_file(f"{store._place(artifact())}/{MANIFEST_FILE}")
    assert store.digests() == [artifact()], "what is left is still found"
    registry.submit()
    [lease] = registry.advance(Stage.VALIDATE).values()
    with pytest.raises(ArtifactBusy):
        registry.ledger.pin(lease, artifact())
    registry.client.zadd(registry.keys.removing, {artifact(): marks.now_us() - (REMOVAL_S + 1) * 1e6})
    registry.ledger.pin(lease, artifact())
    keep(store)
    assert is_whole(store, artifact())


def test_remains_of_a_removal_are_removed_by_the_next_run(registry: Registry, tmp_path: Path) -> None:
    """And so is what a killed worker had sent when it died: files without a manifest."""
    store = ObjectArtifactStore(f"memory://{tmp_path.name}", scratch=tmp_path)
    register(registry, store, b"published")
    keep(store)
    store._files.rm_file(f"{store._place(artifact())}/{MANIFEST_FILE}")
    assert collection(registry, store).run().removed == [artifact()]
    assert store.digests() == [artifact(b"published")]


def test_failed_removal_keeps_its_claim(
    registry: Registry, store: LocalArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that timed out may still be carried out, so the bytes are not kept anew before the claim runs out."""
    keep(store)

    def fail(*_: object, **__: object) -> None:
        raise Transient("timed out")

    with monkeypatch.context() as patched:
        patched.setattr(store, "remove", fail)
        with pytest.raises(Transient):
            collection(registry, store).run(allow_all=True)
    assert registry.client.zscore(registry.keys.removing, artifact()) is not None
    registry.client.zadd(registry.keys.removing, {artifact(): 0})
    assert collection(registry, store).run(allow_all=True).removed == [artifact()]


def test_reports_name_what_is_referred_to(registry: Registry, store: LocalArtifactStore) -> None:
    """A collection's result is plain data."""
    register(registry, store, b"published")
    collected = collection(registry, store).run()
    assert json.loads(json.dumps(vars(collected)))["referenced"] == 1
