"""The stages: their order is said once, and each does its part with doubles of what it is handed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.adapters import Adapter, codes_of, errors_of, llama_shapes, make_adapter, make_base

import lora_registry
from lora_registry import codes, fit_codes
from lora_registry.adapter_config import MAX_CONFIG_BYTES, canonical_config
from lora_registry.artifacts import FileDigest, Manifest
from lora_registry.base_profile import BaseProfile
from lora_registry.catalog import Published, Registered
from lora_registry.catalog_records import VersionRecord
from lora_registry.engine_profiles import EngineProfile, Ruling, find_profiles
from lora_registry.errors import Deferred, LeaseLost, NotFound, Rejected, Transient
from lora_registry.findings import Finding, Severity
from lora_registry.ledger import Lease
from lora_registry.names import AdapterName
from lora_registry.namespaces import NamespacePolicy, Quotas, SourceRule, check_size, check_source
from lora_registry.numeric_report import NumericReport, StartNumericPass
from lora_registry.registrations import Registration, load_findings, parse_registration
from lora_registry.report import ValidationReport, Verdict
from lora_registry.sources import PinnedFile, PinnedSource, ReadRange, Tap
from lora_registry.stages import ALWAYS, BATCH, ORDER, STATE_AFTER, Stage, after, passed
from lora_registry.stages.allocate import allocate
from lora_registry.stages.publish import publish
from lora_registry.stages.resolve import resolve
from lora_registry.stages.validate import validate
from lora_registry.tokenizer_maps import TokenizerMap

ROOT = Path(__file__).parents[2]
BASE = "acme/tiny-llama"
URL = "/adapters/support-bot"


class MemoryLedger:
    """Numbers registrations as the ledger does: once each, and anew after `readmit`."""

    def __init__(self) -> None:
        self.numbers: dict[str, tuple[int, int]] = {}
        self.pins: dict[str, str] = {}
        self.raised_by = 0

    def allocate(self, lease: Lease) -> tuple[int, int]:
        """The id and number of the registration, the same ones when asked again."""
        registration = lease.registration
        if lease.owner != "worker":
            raise LeaseLost
        if registration.id not in self.numbers:
            self.numbers[registration.id] = (
                len(self.numbers) + 1 + self.raised_by,
                registration.order + self.raised_by,
            )
        return self.numbers[registration.id]

    def pin(self, lease: Lease, digest: str) -> None:
        """Remember the digest."""
        if lease.owner != "worker":
            raise LeaseLost
        self.pins[lease.registration.id] = digest

    def readmit(self) -> None:
        """What the admission of a new server does to numbers."""
        self.raised_by += 1000
        self.numbers.clear()


class MemoryBases(dict[str, BaseProfile]):
    """Base models by name."""

    def get(self, name: str) -> BaseProfile:  # type: ignore[override] # as the registry's
        """The profile of a base model."""
        if name not in self:
            raise NotFound
        return self[name]

    def tokenizer_of(self, base: BaseProfile) -> TokenizerMap | None:
        """The base's tokenizer, as it was registered."""
        return self[base.name].tokenizer


class MemoryCatalog:
    """Base models, owners of adapters, and what was published."""

    def __init__(self, *bases: BaseProfile, owners: Mapping[str, str] | None = None) -> None:
        self.bases = MemoryBases({base.name: base for base in bases})
        self.owners = dict(owners or {})
        self.published: list[VersionRecord] = []
        self.ledger = MemoryLedger()

    def registered(self, adapter: AdapterName, base_model: str) -> Registered:
        """How the request stands to what is there."""
        return Registered(base_model in self.bases, str(adapter) in self.bases, self.base_of(adapter))

    def base_of(self, adapter: AdapterName) -> str | None:
        """The base model that the adapter belongs to."""
        return self.owners.get(adapter.qualified)

    def publish(self, lease: Lease, record: VersionRecord) -> Published:
        """Publish as the script does: numbers of an earlier admission, other bases and taken numbers are refused."""
        if (record.lora_int_id, record.version) != self.ledger.numbers.get(lease.registration.id):
            return Published.READMIT
        if self.owners.setdefault(record.adapter.qualified, record.base_model) != record.base_model:
            return Published.BASE_CONFLICT
        if record.field in {each.field for each in self.published}:
            return Published.TAKEN
        self.published.append(record)
        return Published.PUBLISHED


class MemoryPolicies:
    """The policy of every namespace; None: there is none, and none is needed."""

    def __init__(self, policy: NamespacePolicy | None = None) -> None:
        self.policy = policy

    def check_source(self, adapter: AdapterName, source: str) -> SourceRule:
        """The rule for the source."""
        return check_source(self.policy, adapter, source, required=False)

    def check_quotas(self, adapter: AdapterName, *, size_bytes: int) -> None:
        """The size alone; what is counted is on a real server's tests."""
        if self.policy:
            check_size(self.policy, size_bytes)


class MemorySource:
    """A place whose files are bytes; what is pinned is their digest, which a marker may state."""

    def __init__(self, *, may_grow_s: float = 0.0, marked: bool = False, **files: bytes) -> None:
        self.marked = marked
        self.files = files
        self.credentials: list[str] = []
        self.may_grow_s = may_grow_s

    def resolve(self, url: str, *, credential: str = "") -> PinnedSource:
        """Pin both files."""
        self.credentials.append(credential)
        if url != URL:
            raise Rejected("there is nothing")
        return PinnedSource("memory", self._pin("config"), self._pin("weights"), may_grow_s=self.may_grow_s)

    @contextmanager
    def ranged(self, file: PinnedFile) -> Iterator[ReadRange]:
        """Ranges of what is pinned."""
        content = self._pinned(file)
        yield lambda offset, length: content[offset : offset + length]

    def read(self, file: PinnedFile, *, limit_bytes: int) -> bytes:
        """One byte more than the limit shows that it is too large."""
        return self._pinned(file)[: limit_bytes + 1]

    def copy(self, file: PinnedFile, to: str, *, tap: Tap | None = None) -> FileDigest:
        """Copy and digest."""
        content = self._pinned(file)
        Path(to).write_bytes(content)
        if tap is not None:
            tap(memoryview(content))
        return FileDigest(hashlib.sha256(content).hexdigest(), len(content))

    def _pin(self, name: str) -> PinnedFile:
        content = self.files[name]
        sha256 = hashlib.sha256(content).hexdigest()
        return PinnedFile(name, sha256, len(content), sha256=sha256 if self.marked else "")

    def _pinned(self, file: PinnedFile) -> bytes:
        content = self.files[file.location]
        if hashlib.sha256(content).hexdigest() != file.version:
            raise Rejected("it changed")
        return content


@dataclass
class MemoryStore:
    """Keeps artifacts by digest; staging is a real directory, for the header is read from a file."""

    directory: Path
    kept: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    reports: dict[str, ValidationReport] = field(default_factory=dict)
    is_full: bool = False

    @property
    def weights_path(self) -> str:
        """Where the weights are copied to."""
        return str(self.directory / "staged")

    @contextmanager
    def stage(self) -> Iterator[MemoryStore]:
        """What was not kept is removed."""
        yield self
        Path(self.weights_path).unlink(missing_ok=True)

    def keep(self, config: bytes, weights: FileDigest) -> str:
        """Keep what was staged."""
        if self.is_full:
            raise Transient("no space left")
        manifest = Manifest(FileDigest(hashlib.sha256(config).hexdigest(), len(config)), weights)
        self.kept[manifest.digest] = (config, Path(self.weights_path).read_bytes())
        return manifest.digest

    def keep_report(self, registration_id: str, report: ValidationReport) -> None:
        """Keep a report."""
        self.reports[registration_id] = report


def make_lease(
    stage: Stage = Stage.ALLOCATE,
    *,
    name: str = "support-bot",
    namespace: str = "default",
    base: str = BASE,
    owner: str = "worker",
    **fields: Any,
) -> Lease:
    """A lease on a registration."""
    registration = Registration(
        "reg_000000000000000000000001", AdapterName(namespace, name), base, source=URL, order=3, fields=fields
    )
    return Lease(registration, stage, 1, owner)


def run_validate(
    adapter: Adapter,
    store: MemoryStore,
    *,
    base: BaseProfile | None = None,
    max_lora_rank: int = 64,
    numeric: StartNumericPass | None = None,
    profiles: tuple[EngineProfile, ...] = (),
    **files: bytes,
) -> dict[str, str | int]:
    """Resolve and validate an adapter."""
    source = MemorySource(**({"config": adapter.config_bytes, "weights": adapter.weights_bytes} | files))
    pinned = run_resolve(source)["pinned"]
    catalog: Any = MemoryCatalog(base or make_base())
    ledger: Any = MemoryLedger()
    lease = make_lease(Stage.VALIDATE, pinned=pinned)
    return validate(
        lease,
        catalog=catalog,
        source=source,
        store=store,
        ledger=ledger,
        max_lora_rank=max_lora_rank,
        profiles=profiles,
        numeric=numeric,
    )


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    """An empty store."""
    return MemoryStore(tmp_path)


# The order


def stations_of_the_docstring() -> list[str]:
    """The first words of the map in the package's docstring."""
    return re.findall(r"^    \(?(\w+)\)? +[\w/]+\.py", lora_registry.__doc__ or "", flags=re.MULTILINE)


def rows_of_the_readme() -> list[tuple[str, str]]:
    """Stage and file of each row of the README's table."""
    section = (ROOT / "README.md").read_text().partition("| stage | what it does | file |")[2].partition("\n\n")[0]
    return re.findall(r"^\| (\w+) \|.*\]\(([^)]+)\) \|$", section, flags=re.MULTILINE)


def test_docstring_of_the_package_walks_the_stages_in_order() -> None:
    """The map cannot say another order than the code."""
    assert [station for station in stations_of_the_docstring() if station in set(Stage)] == list(ORDER)


def test_table_of_the_readme_has_the_stages_in_order() -> None:
    """Every row names a file that is there, and those of this package stations of its map, in its order."""
    rows = rows_of_the_readme()
    assert [stage for stage, _ in rows if stage in set(Stage)] == list(ORDER)
    walked = iter(stations_of_the_docstring())
    assert all(stage in walked for stage, path in rows if path.startswith("pipeline/"))
    for stage, path in rows:
        assert (ROOT / path).is_file()
        if stage in set(Stage):
            assert path.endswith(f"stages/{stage}.py")


def test_every_file_of_the_map_is_there() -> None:
    """The map leads to files that exist."""
    package = Path(str(lora_registry.__file__)).parent
    named = re.findall(r"\b[\w/]+\.py\b", lora_registry.__doc__ or "")
    assert named
    assert [name for name in named if not (package / name).is_file()] == []


def test_order_batches_and_states_cover_every_stage() -> None:
    """A stage that was added cannot be left out of one of the tables."""
    assert sorted(ORDER) == sorted(Stage)
    assert set(BATCH) == set(STATE_AFTER) == set(Stage)
    assert len(set(STATE_AFTER.values())) == len(Stage)
    assert all(size >= 1 for size in BATCH.values())


def test_what_strangers_wrote_is_claimed_one_at_a_time() -> None:
    """The stages that read it, or wait for the place where it lies, share no batch."""
    assert BATCH[Stage.RESOLVE] == BATCH[Stage.VALIDATE] == 1


def test_each_stage_is_followed_by_the_next_and_the_last_by_none() -> None:
    """Following `after` from the first walks the order to its end, past the stages that are not for all."""
    walked, stage = [], ORDER[:1]
    while stage:
        walked.extend(stage)
        following = after(stage[0])
        stage = (following,) if following else ()
    assert tuple(walked) == ALWAYS == passed(canary=False)
    assert after(Stage.VALIDATE, canary=True) is Stage.CANARY
    assert after(Stage.CANARY) is after(Stage.VALIDATE) is Stage.PUBLISH
    assert passed(canary=True) == ORDER


# Allocate


def run_allocate(lease: Lease, catalog: MemoryCatalog) -> dict[str, str | int]:
    """Run the stage with the catalog's ledger."""
    ledger: Any = catalog.ledger
    stage_catalog: Any = catalog
    return allocate(lease, ledger=ledger, catalog=stage_catalog)


def test_request_that_can_be_met_is_numbered() -> None:
    """A known base and a free name: the id is allocated, and nothing else is left to later stages."""
    catalog = MemoryCatalog(make_base())
    assert run_allocate(make_lease(), catalog) == {}
    assert list(catalog.ledger.numbers) == [make_lease().registration.id]


def test_adapter_of_the_same_base_goes_on() -> None:
    """Its second registration is as welcome as its first."""
    catalog = MemoryCatalog(make_base(), owners={"default.support-bot": BASE})
    assert run_allocate(make_lease(), catalog) == {}


@pytest.mark.parametrize(
    ("lease", "code", "subject"),
    [
        (make_lease(base="acme/unknown"), "BASE_UNKNOWN", "acme/unknown"),
        (make_lease(name="small"), "NAME_CONFLICT", "small"),
        (make_lease(name="owned"), "ADAPTER_BASE_CONFLICT", "owned"),
    ],
)
def test_request_that_cannot_be_met_gets_no_number(lease: Lease, code: str, subject: str) -> None:
    """Unknown base, a base model's name, another base's adapter: rejected with one finding, and no id is spent."""
    catalog = MemoryCatalog(make_base(), make_base(name="small"), owners={"default.owned": "small"})
    with pytest.raises(Rejected) as rejected:
        run_allocate(lease, catalog)
    (finding,) = rejected.value.findings
    assert (finding.code, finding.subject) == (code, subject)
    assert catalog.ledger.numbers == {}


def test_conflict_of_bases_says_both() -> None:
    """The publisher sees whose adapter it is and whose it was to become."""
    catalog = MemoryCatalog(make_base(), owners={"default.support-bot": "acme/other"})
    with pytest.raises(Rejected) as rejected:
        run_allocate(make_lease(), catalog)
    (finding,) = rejected.value.findings
    assert (finding.expected, finding.actual) == ("acme/other", BASE)


def test_names_of_other_namespaces_are_no_base_names() -> None:
    """Engines know `team.small`, which is no base model, though `small` is."""
    assert (
        run_allocate(make_lease(name="small", namespace="team"), MemoryCatalog(make_base(), make_base(name="small")))
        == {}
    )


# Resolve


def run_resolve(
    source: MemorySource, policy: NamespacePolicy | None = None, *, max_adapter_bytes: int = 1 << 30
) -> dict[str, str | int]:
    """Resolve a registration from URL in a namespace with this policy."""
    policies: Any = MemoryPolicies(policy)
    catalog: Any = MemoryCatalog()
    return resolve(
        make_lease(Stage.RESOLVE),
        source=source,
        policies=policies,
        catalog=catalog,
        max_adapter_bytes=max_adapter_bytes,
    )


def test_resolve_reads_with_the_credential_of_the_namespace() -> None:
    """The policy's longest prefix says with which credential the source is read."""
    source = MemorySource(config=b"{}", weights=b"w")
    rules = [{"prefix": "/adapters", "credential": "all"}, {"prefix": URL, "credential": "bot"}]
    run_resolve(source, NamespacePolicy(namespace="default", sources=rules))  # type: ignore[arg-type]
    assert source.credentials == ["bot"]


def test_a_namespace_may_demand_the_marker_file_of_a_prefix() -> None:
    """It is waited for where the upload may go on, and missed where nothing will be added; elsewhere nobody asks."""
    needed = NamespacePolicy(namespace="default", sources=({"prefix": "/adapters", "needs_marker": True},))  # type: ignore[arg-type]
    weights = make_adapter().weights_bytes
    with pytest.raises(Deferred) as deferred:
        run_resolve(MemorySource(config=b"{}", weights=weights, may_grow_s=60), needed)
    assert codes_of(deferred.value.findings) == ["MARKER_MISSING", "SOURCE_INCOMPLETE"]
    with pytest.raises(Rejected) as rejected:
        run_resolve(MemorySource(config=b"{}", weights=weights), needed)
    assert codes_of(rejected.value.findings) == ["MARKER_MISSING"]
    assert run_resolve(MemorySource(config=b"{}", weights=weights, marked=True), needed)
    narrower = needed.model_copy(update={"sources": (*needed.sources, SourceRule(prefix=URL))})
    assert run_resolve(MemorySource(config=b"{}", weights=weights), narrower)


def test_resolve_looks_at_no_source_that_the_namespace_may_not_use() -> None:
    """Whoever writes an event into Redis directly, past every gateway, is refused here, before anything is read."""
    source = MemorySource(config=b"{}", weights=b"w")
    with pytest.raises(Rejected) as refused:
        run_resolve(source, NamespacePolicy(namespace="default", sources=({"prefix": "/adapters/team"},)))  # type: ignore[arg-type]
    assert codes_of(refused.value.findings) == ["SOURCE_NOT_ALLOWED"]
    assert source.credentials == []


def test_resolve_asks_another_registry_what_a_name_means() -> None:
    """The place is read and must be allowed; the name that led there needs no permission of its own."""
    source = MemorySource(config=b"{}", weights=b"w")
    allowed: Any = MemoryPolicies(NamespacePolicy(namespace="default", sources=({"prefix": URL},)))  # type: ignore[arg-type]
    catalog: Any = MemoryCatalog()
    asked: list[str] = []

    def locate(name: str) -> str:
        asked.append(name)
        return URL

    made = make_lease(Stage.RESOLVE)
    lease = replace(made, registration=replace(made.registration, source="mlflow://support-bot@champion"))
    ask = partial(resolve, lease, source=source, catalog=catalog, max_adapter_bytes=1 << 30, locate=locate)
    assert ask(policies=allowed)
    assert asked == ["mlflow://support-bot@champion"]
    elsewhere: Any = MemoryPolicies(NamespacePolicy(namespace="default", sources=({"prefix": "s3://other"},)))  # type: ignore[arg-type]
    with pytest.raises(Rejected):
        ask(policies=elsewhere)


def test_an_adapter_larger_than_its_namespaces_quota_is_not_copied() -> None:
    """It could never be published, so resolve says so; one that might be is left to the script that counts."""
    source = MemorySource(config=b"{}", weights=b"weights")
    policy = NamespacePolicy(namespace="default", any_source=True, quotas=Quotas(bytes=7))
    assert run_resolve(source, policy)
    tighter = policy.model_copy(update={"quotas": Quotas(bytes=6)})
    with pytest.raises(Rejected) as rejected:
        run_resolve(source, tighter)
    assert codes_of(rejected.value.findings) == ["QUOTA_BYTES"]


def test_an_adapter_larger_than_any_may_be_is_not_copied() -> None:
    """By the size that its place lists; nothing of it is read."""
    source = MemorySource(config=b"{}", weights=b"weights")
    assert run_resolve(source, max_adapter_bytes=7)
    with pytest.raises(Rejected) as rejected:
        run_resolve(source, max_adapter_bytes=6)
    assert codes_of(rejected.value.findings) == ["ADAPTER_TOO_LARGE"]


def test_resolve_leaves_the_pinned_source() -> None:
    """What validate reads back is what was pinned."""
    source = MemorySource(config=b"{}", weights=b"w")
    left = run_resolve(source)
    assert PinnedSource.from_json(str(left["pinned"])) == replace(source.resolve(URL), url=URL)


def test_resolve_waits_for_weights_that_are_too_short_where_they_may_still_grow() -> None:
    """The header says how long they will be; a place that never completes files leaves that to validate."""
    whole = make_adapter().weights_bytes
    with pytest.raises(Deferred) as deferred:
        run_resolve(MemorySource(config=b"{}", weights=whole[:-7], may_grow_s=60))
    assert codes_of(deferred.value.findings) == ["WEIGHTS_TRUNCATED", "SOURCE_INCOMPLETE"]
    assert deferred.value.deadline_s == 60
    for source in (
        MemorySource(config=b"{}", weights=whole, may_grow_s=60),
        MemorySource(config=b"{}", weights=whole[:-7]),
        MemorySource(config=b"{}", weights=b"nothing that grows into weights", may_grow_s=60),
    ):
        assert run_resolve(source)


def test_pin_of_a_later_release_is_read_back() -> None:
    """Workers of two releases share a ledger: what the older does not know it ignores."""
    pinned = MemorySource(config=b"{}", weights=b"w").resolve(URL)
    later = json.loads(pinned.to_json()) | {"colour": "red"}
    later["config"]["colour"] = "red"
    assert PinnedSource.from_json(json.dumps(later)) == pinned


# Validate


def test_adapter_that_fits_is_kept_as_canonical_config_and_its_very_weights(store: MemoryStore) -> None:
    """What is judged, what is kept and what the digest is taken over are the same bytes."""
    adapter = make_adapter(target_modules=["v_proj", "q_proj"])
    left = run_validate(adapter, store)
    config = canonical_config(adapter.config_bytes)
    assert store.kept == {left["digest"]: (config, adapter.weights_bytes)}
    assert config != adapter.config_bytes
    weights = FileDigest(hashlib.sha256(adapter.weights_bytes).hexdigest(), len(adapter.weights_bytes))
    assert left == {
        "digest": Manifest(FileDigest(hashlib.sha256(config).hexdigest(), len(config)), weights).digest,
        "rank": 8,
        "size_bytes": len(adapter.weights_bytes),
        "base_revision": make_base().revision,
        "findings": "[]",
        "traits": '{"largest_rank":8,"targets":["q_proj","v_proj"],"config":{"rank":8,"lora_alpha":16}}',
    }
    assert store.reports == {}


def test_what_validate_leaves_can_be_published(store: MemoryStore) -> None:
    """Its fields, read back as the ledger keeps them, are all that the publish stage takes."""
    catalog = MemoryCatalog(make_base())
    fields = {name: str(value) for name, value in run_validate(make_adapter(), store).items()}
    run_publish(numbered(catalog, fields), catalog)
    (record,) = catalog.published
    assert (record.rank, record.base_revision) == (8, make_base().revision)
    assert record.digest in store.kept


@pytest.mark.parametrize(
    ("found", "recorded"),
    [("memory://adapter@0123", ("memory://adapter@0123", URL)), (URL, (URL, "")), ("", (URL, ""))],
    ids=["with the commit", "as asked for", "not kept"],
)
def test_a_version_says_where_its_bytes_were_found(store: MemoryStore, found: str, recorded: tuple[str, str]) -> None:
    """A branch moves on: the record has the commit that was pinned, and beside it what was asked for."""
    catalog = MemoryCatalog(make_base())
    fields = {name: str(value) for name, value in run_validate(make_adapter(), store).items()}
    pinned = replace(MemorySource(config=b"{}", weights=b"w").resolve(URL), url=found)
    run_publish(numbered(catalog, fields | {"pinned": pinned.to_json()}), catalog)
    (record,) = catalog.published
    assert (record.source, record.requested_source) == recorded


def test_order_of_target_modules_does_not_change_the_digest(store: MemoryStore) -> None:
    """PEFT writes them in random order; the same adapter saved twice is the same artifact."""
    one = run_validate(make_adapter(target_modules=["q_proj", "v_proj"]), store)
    other = run_validate(make_adapter(target_modules=["v_proj", "q_proj"]), store)
    assert one["digest"] == other["digest"]


def test_adapter_of_another_base_is_rejected_and_nothing_is_kept(store: MemoryStore) -> None:
    """The findings name the tensors; the report has all of them; staging is empty again."""
    wide = make_base({name: tuple(2 * size for size in shape) for name, shape in llama_shapes().items()})
    with pytest.raises(Rejected) as rejected:
        run_validate(make_adapter(base=wide), store)
    assert "SHAPE_MISMATCH" in errors_of(rejected.value.findings)
    assert store.kept == {}
    assert store.reports.keys() == {make_lease().registration.id}
    assert store.reports[make_lease().registration.id].findings == rejected.value.findings


@pytest.mark.parametrize(
    "files",
    [
        {"config": b"not json"},
        {"config": b"{}"},
        {"config": b" " * (MAX_CONFIG_BYTES + 1)},
        {"weights": b""},
        {"weights": b"version https://git-lfs.github.com/spec/v1\n"},
        {"weights": make_adapter().weights_bytes[:-1]},
    ],
    ids=["no JSON", "no fields", "too large", "empty", "LFS pointer", "truncated"],
)
def test_files_that_are_no_adapter_are_rejected_and_nothing_is_kept(
    store: MemoryStore, files: dict[str, bytes]
) -> None:
    """A file that cannot be read as what it should be is the publisher's to mend: with a finding, not a retry."""
    with pytest.raises(Rejected) as rejected:
        run_validate(make_adapter(), store, **files)
    assert rejected.value.findings
    assert store.kept == {}
    report = store.reports[make_lease().registration.id]
    assert (report.verdict, report.findings) == (Verdict.INVALID, rejected.value.findings)


def test_engines_that_would_serve_it_wrongly_are_reported(store: MemoryStore) -> None:
    """The adapter is valid and kept all the same; one that every engine accepts needs no report."""
    run_validate(make_adapter(use_rslora=True), store, profiles=find_profiles(["vllm"]))
    assert store.reports == {}
    left = run_validate(make_adapter(use_rslora=True), store, profiles=find_profiles(["vllm", "sglang"]))
    report = store.reports[make_lease().registration.id]
    assert report.verdict is Verdict.VALID
    assert report.engines["sglang"].verdict is Ruling.SILENTLY_WRONG
    assert report.timings_ms.keys() == {"copy", "structure", "engines"}
    assert report.bytes_read > int(left["size_bytes"])


def test_warnings_are_left_for_the_publisher_and_reported(store: MemoryStore) -> None:
    """An adapter that fits but is noteworthy is kept, with what was noticed."""
    left = run_validate(make_adapter(base_model_name_or_path=None), store)
    assert codes_of(load_findings(str(left["findings"]))) == ["BASE_NAME_ABSENT"]
    assert codes_of(store.reports[make_lease().registration.id].findings) == ["BASE_NAME_ABSENT"]
    assert len(store.kept) == 1


@pytest.mark.parametrize(("largest", "refused"), [(7, True), (8, False)])
def test_rank_beyond_what_the_engines_serve_is_rejected(store: MemoryStore, largest: int, refused: bool) -> None:
    """The limit itself is allowed; one more is not, and the finding says both numbers."""
    if not refused:
        assert run_validate(make_adapter(rank=8), store, max_lora_rank=largest)["rank"] == 8
        return
    with pytest.raises(Rejected) as rejected:
        run_validate(make_adapter(rank=8), store, max_lora_rank=largest)
    (finding,) = rejected.value.findings
    assert (finding.code, finding.expected, finding.actual) == ("RANK_TOO_LARGE", "at most 7", "8")
    assert store.kept == {}


def test_largest_rank_of_any_module_counts(store: MemoryStore) -> None:
    """A pattern can raise the rank of one module beyond that of all others."""
    adapter = make_adapter(rank=16, targets=["q_proj"], r=4, rank_pattern={"q_proj": 16})
    assert run_validate(adapter, store)["rank"] == 16
    with pytest.raises(Rejected) as rejected:
        run_validate(adapter, store, max_lora_rank=8)
    assert codes_of(rejected.value.findings) == ["RANK_TOO_LARGE"]


class FixedPass:
    """A numeric pass that finds what it was told to."""

    def __init__(self, *findings: Finding) -> None:
        self._findings = findings
        self.seen = bytearray()

    def __call__(self, config: object, base: object, *, size_bytes: int) -> FixedPass:
        """Start."""
        return self

    def feed(self, chunk: memoryview) -> None:
        """Take bytes."""
        self.seen += chunk

    def finish(self) -> NumericReport:
        """Report."""
        return NumericReport(self._findings, (), (), len(self.seen), 1.0, "cpu")


@pytest.mark.parametrize("code", [fit_codes.ZERO_DELTA, fit_codes.NUMBERS_NOT_FINITE])
def test_what_the_numbers_say_counts_as_what_the_structure_says(store: MemoryStore, code: codes.Code) -> None:
    """Findings of the numeric pass, which sees exactly the bytes that are kept, are left or reject as all others."""
    numeric, adapter = FixedPass(code.finding("model.layers.0.self_attn.q_proj")), make_adapter()
    if code.severity is Severity.ERROR:
        with pytest.raises(Rejected) as rejected:
            run_validate(adapter, store, numeric=numeric)
        assert codes_of(rejected.value.findings) == [code.code]
        assert store.kept == {}
    else:
        left = run_validate(adapter, store, numeric=numeric)
        assert codes_of(load_findings(str(left["findings"]))) == [code.code]
    report = store.reports[make_lease().registration.id]
    assert codes_of(report.findings) == [code.code]
    assert report.spectra is not None
    assert report.spectra["device"] == "cpu"
    assert bytes(numeric.seen) == adapter.weights_bytes


def test_source_that_changed_after_it_was_pinned_is_rejected(store: MemoryStore) -> None:
    """Validate reads what was pinned, or nothing."""
    adapter = make_adapter()
    source = MemorySource(config=adapter.config_bytes, weights=adapter.weights_bytes)
    pinned = run_resolve(source)["pinned"]
    source.files["weights"] = make_adapter(rank=4).weights_bytes
    ledger: Any = MemoryLedger()
    catalog: Any = MemoryCatalog(make_base())
    lease = make_lease(Stage.VALIDATE, pinned=pinned)
    with pytest.raises(Rejected, match="changed"):
        validate(lease, catalog=catalog, source=source, store=store, ledger=ledger, max_lora_rank=64)
    assert store.kept == {}


def test_store_that_is_full_is_a_failure_of_the_world(store: MemoryStore) -> None:
    """A good adapter that could not be kept is retried, not rejected."""
    store.is_full = True
    with pytest.raises(Transient):
        run_validate(make_adapter(), store)


def test_base_that_was_removed_meanwhile_is_not_found(store: MemoryStore) -> None:
    """Without the base's shapes nothing is judged, and nothing kept."""
    with pytest.raises(NotFound):
        run_validate(make_adapter(), store, base=make_base(name="acme/other"))
    assert store.kept == {}


# Publish


def numbered(catalog: MemoryCatalog, fields: Mapping[str, str], *, name: str = "support-bot", order: int = 3) -> Lease:
    """A lease in the publish stage on a registration that was allocated and validated."""
    basics = {
        "id": f"reg_{order:024d}",
        "namespace": "default",
        "name": name,
        "base_model": BASE,
        "source": URL,
        "state": "validated",
        "stage": "publish",
        "attempts": "0",
        "order": str(order),
        "labels": '{"tier":"gold"}',
        "metadata": "{}",
    }
    lease = Lease(parse_registration(basics), Stage.PUBLISH, 1, "worker")
    lora_int_id, version = catalog.ledger.allocate(lease)
    numbers = {"lora_int_id": str(lora_int_id), "version": str(version)}
    return Lease(parse_registration({**basics, **numbers, **fields}), Stage.PUBLISH, 1, "worker")


def validated(**changes: str) -> dict[str, str]:
    """What the validate stage leaves."""
    return {"digest": "sha256:" + "0" * 64, "rank": "8", "size_bytes": "4096", "base_revision": "main"} | changes


def run_publish(lease: Lease, catalog: MemoryCatalog) -> None:
    """Run the stage with the catalog's ledger."""
    ledger: Any = catalog.ledger
    stage_catalog: Any = catalog
    publish(lease, ledger=ledger, catalog=stage_catalog)


def test_record_says_what_was_validated() -> None:
    """Identity, bytes and labels of the version are those of its registration."""
    catalog = MemoryCatalog(make_base())
    run_publish(numbered(catalog, validated()), catalog)
    assert catalog.published == [
        VersionRecord(
            namespace="default",
            name="support-bot",
            version=3,
            lora_int_id=1,
            served_name="support-bot.v3",
            base_model=BASE,
            base_revision="main",
            digest="sha256:" + "0" * 64,
            rank=8,
            size_bytes=4096,
            source=URL,
            registration_id=f"reg_{3:024d}",
            labels={"tier": "gold"},
        )
    ]


def test_numbers_of_an_earlier_admission_are_replaced_before_anything_is_published() -> None:
    """What a server that forgot may have issued is not published: id and number are fresh ones."""
    catalog = MemoryCatalog(make_base())
    lease = numbered(catalog, validated())
    catalog.ledger.readmit()
    run_publish(lease, catalog)
    (record,) = catalog.published
    assert (record.version, record.lora_int_id, record.served_name) == (1003, 1001, "support-bot.v1003")


def test_registration_without_a_number_gets_one() -> None:
    """A redriven registration that has none is numbered before it is published."""
    catalog = MemoryCatalog(make_base())
    lease = numbered(catalog, validated(lora_int_id="", version=""))
    run_publish(lease, catalog)
    assert [record.version for record in catalog.published] == [3]


def test_adapter_that_came_to_belong_to_another_base_is_rejected() -> None:
    """Of two first registrations for two bases one wins, and the other learns whose the adapter is."""
    catalog = MemoryCatalog(make_base(), owners={"default.support-bot": "acme/other"})
    with pytest.raises(Rejected) as rejected:
        run_publish(numbered(catalog, validated()), catalog)
    (finding,) = rejected.value.findings
    assert (finding.code, finding.expected, finding.actual) == ("ADAPTER_BASE_CONFLICT", "acme/other", BASE)


def test_number_that_is_taken_is_rejected() -> None:
    """A version is never replaced."""
    catalog = MemoryCatalog(make_base())
    run_publish(numbered(catalog, validated()), catalog)
    before = list(catalog.published)
    with pytest.raises(Rejected) as rejected:
        run_publish(numbered(catalog, validated(digest="sha256:" + "1" * 64)), catalog)
    assert codes_of(rejected.value.findings) == ["VERSION_TAKEN"]
    assert catalog.published == before
