"""What every artifact store holds to: a directory, a real S3 server, and another of fsspec's file systems."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest

from lora_registry import fit_codes
from lora_registry.artifacts import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, FileDigest, Manifest
from lora_registry.errors import ArtifactDamaged, Configuration, NotFound, Transient
from lora_registry.report import ValidationReport
from lora_registry.settings import Settings
from lora_workers.artifact_store import Store, open_artifact_store
from lora_workers.local_artifacts import LocalArtifactStore
from lora_workers.object_artifacts import ObjectArtifactStore
from tests.helpers.s3_server import ACCESS_KEY, REGION, SECRET_KEY, UNVERSIONED, S3Server

CONFIG = b'{"r":8}'
WEIGHTS = bytes(range(256)) * 40_000  # 10 MB: more than one request reads


class Opened:
    """A store under test, and a way to its bytes that it knows nothing of."""

    def __init__(self, store: Store, files: Any, root: str) -> None:
        self.store = store
        self._files = files
        self._root = root

    def names(self) -> list[str]:
        """Every file of the store."""
        found = sorted(path.removeprefix(self._root).strip("/") for path in self._files.find(self._root))
        return [name for name in found if name]  # SeaweedFS lists a prefix that was emptied

    def path(self, digest: str, name: str) -> str:
        """Where a file of an artifact lies."""
        return f"{self._root}/sha256/{digest.removeprefix('sha256:')}/{name}"

    def replace(self, digest: str, name: str, content: bytes) -> None:
        """Write something else over a file, as bad disks do."""
        self.lose(digest, name)
        self._files.pipe_file(self.path(digest, name), content)

    def lose(self, digest: str, name: str) -> None:
        """Remove a file of an artifact."""
        path = self.path(digest, name)
        if isinstance(self.store, LocalArtifactStore):
            Path(path).parent.chmod(0o755)
        self._files.rm_file(path)


def s3_options(server: S3Server) -> dict[str, Any]:
    """How to reach the test's server."""
    client = {"endpoint_url": server.endpoint_url, "region_name": REGION}
    return {"key": ACCESS_KEY, "secret": SECRET_KEY, "client_kwargs": client}


@pytest.fixture(params=["directory", "s3", "memory"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    """An empty store of each kind."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    name = secrets.token_hex(6)
    if request.param == "directory":
        yield Opened(LocalArtifactStore(tmp_path / name), fsspec.filesystem("file"), str(tmp_path / name))
    elif request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        store = ObjectArtifactStore(f"s3://{UNVERSIONED}/{name}", scratch=scratch, options=s3_options(server))
        yield Opened(store, server.file_system(), f"{UNVERSIONED}/{name}")
    else:
        yield Opened(ObjectArtifactStore(f"memory://{name}", scratch=scratch), fsspec.filesystem("memory"), f"/{name}")
    assert list(scratch.iterdir()) == [], "something was left in the scratch directory"


def digest_of(content: bytes) -> FileDigest:
    """What a source says of bytes that it copied."""
    return FileDigest(hashlib.sha256(content).hexdigest(), len(content))


def keep(store: Store, *, config: bytes = CONFIG, weights: bytes = WEIGHTS) -> str:
    """Stage and keep an artifact."""
    with store.stage() as staged:
        Path(staged.weights_path).write_bytes(weights)
        return staged.keep(config, digest_of(weights))


def read(store: Store, digest: str, name: str, *, offset: int = 0) -> bytes:
    """A whole file of an artifact."""
    return b"".join(store.read(digest, name, offset=offset))


def test_what_was_kept_is_read_back(opened: Opened) -> None:
    """Exactly two files and the manifest, whose SHA-256 is the digest; each is read whole, or from any byte on."""
    digest = keep(opened.store)
    place = f"sha256/{digest.removeprefix('sha256:')}"
    assert opened.names() == [f"{place}/{name}" for name in (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE)]
    assert opened.store.manifest(digest) == Manifest.of(CONFIG, digest_of(WEIGHTS))
    assert read(opened.store, digest, CONFIG_FILE) == CONFIG
    assert read(opened.store, digest, WEIGHTS_FILE) == WEIGHTS
    for offset in (1, 9_000_000, len(WEIGHTS)):
        assert read(opened.store, digest, WEIGHTS_FILE, offset=offset) == WEIGHTS[offset:]
    assert opened.store.digests() == [digest]
    manifest_bytes = len(Manifest.of(CONFIG, digest_of(WEIGHTS)).to_json())
    assert opened.store.size_bytes(digest) == len(CONFIG) + len(WEIGHTS) + manifest_bytes


def test_same_bytes_twice_are_one_artifact(opened: Opened) -> None:
    """Keeping what is there changes nothing."""
    first = keep(opened.store)
    before = opened.names()
    assert keep(opened.store) == first
    assert opened.names() == before
    assert keep(opened.store, config=b"{}") != first


def test_what_was_not_kept_is_nowhere(opened: Opened) -> None:
    """A rejected adapter leaves nothing behind, in the store or on the machine."""

    def reject() -> None:
        with opened.store.stage() as staged:
            Path(staged.weights_path).write_bytes(WEIGHTS)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        reject()
    assert opened.names() == []
    assert opened.store.digests() == []


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("damage", ["other", "short", "long", "missing"])
def test_damaged_file_is_noticed(opened: Opened, name: str, damage: str) -> None:
    """Whatever became of the bytes, the reader gets an error with a code, not wrong bytes without one."""
    weights = WEIGHTS[:5000]
    digest = keep(opened.store, weights=weights)
    good = {CONFIG_FILE: CONFIG, WEIGHTS_FILE: weights}[name]
    if damage == "missing":
        opened.lose(digest, name)
    else:
        opened.replace(digest, name, {"other": good[:-1] + b"?", "short": good[:-1], "long": good + b"?"}[damage])
    with pytest.raises(ArtifactDamaged) as raised:
        read(opened.store, digest, name)
    assert raised.value.code == "ARTIFACT_DAMAGED"
    assert name in raised.value.message or damage == "missing"


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE])
@pytest.mark.parametrize("damage", ["other", "short", "missing"])
def test_damaged_artifact_is_made_whole_by_the_same_bytes(opened: Opened, name: str, damage: str) -> None:
    """Registering them again mends what somebody damaged; on an object store, what is missing or too short."""
    weights = WEIGHTS[:5000]
    digest = keep(opened.store, weights=weights)
    if damage == "missing":
        opened.lose(digest, name)
    elif damage == "short":
        opened.replace(digest, name, b"{")
    elif isinstance(opened.store, LocalArtifactStore):
        good = {CONFIG_FILE: CONFIG, WEIGHTS_FILE: weights, MANIFEST_FILE: opened.store.manifest(digest).to_json()}[
            name
        ]
        opened.replace(digest, name, good[:-1] + b"?")
    assert keep(opened.store, weights=weights) == digest
    assert read(opened.store, digest, CONFIG_FILE) == CONFIG
    assert read(opened.store, digest, WEIGHTS_FILE) == weights


def test_who_hashes_what_it_reads_needs_no_manifest(opened: Opened) -> None:
    """Told what the manifest says, a store does not read it again, and checks the size alone."""
    digest = keep(opened.store)
    opened.lose(digest, MANIFEST_FILE)
    expected = digest_of(WEIGHTS)
    assert b"".join(opened.store.read(digest, WEIGHTS_FILE, expected=expected)) == WEIGHTS
    other = FileDigest("0" * 64, len(WEIGHTS))
    assert b"".join(opened.store.read(digest, WEIGHTS_FILE, expected=other)) == WEIGHTS
    with pytest.raises(ArtifactDamaged, match="bytes"):
        list(opened.store.read(digest, WEIGHTS_FILE, expected=FileDigest(expected.sha256, len(WEIGHTS) + 1)))


def test_manifest_that_is_not_the_digests_is_noticed(opened: Opened) -> None:
    """The digest is checked before anything that the manifest says is believed."""
    digest = keep(opened.store, weights=WEIGHTS[:100])
    opened.replace(digest, MANIFEST_FILE, Manifest.of(b"{}", digest_of(b"")).to_json())
    with pytest.raises(ArtifactDamaged):
        opened.store.manifest(digest)


@pytest.mark.parametrize("digest", ["sha256:" + "0" * 64, "", "sha256:..", "../reports", "0" * 64])
def test_what_is_no_artifact_is_not_found(opened: Opened, digest: str) -> None:
    """No text but the digest of an artifact leads to one."""
    keep(opened.store, weights=WEIGHTS[:100])
    with pytest.raises(NotFound):
        opened.store.manifest(digest)
    with pytest.raises(NotFound):
        read(opened.store, digest, CONFIG_FILE)


def test_removed_artifact_is_gone_and_can_come_again(opened: Opened) -> None:
    """Nothing of it stays; the same bytes are kept anew later."""
    digest = keep(opened.store, weights=WEIGHTS[:100])
    opened.store.remove(digest, deadline=time.monotonic() + 60)
    assert opened.names() == []
    with pytest.raises(NotFound):
        opened.store.manifest(digest)
    with pytest.raises(NotFound):
        opened.store.remove(digest, deadline=time.monotonic() + 60)
    assert keep(opened.store, weights=WEIGHTS[:100]) == digest
    assert read(opened.store, digest, WEIGHTS_FILE) == WEIGHTS[:100]


def test_nothing_is_removed_after_the_deadline(opened: Opened) -> None:
    """By then the artifact may be somebody's again."""
    digest = keep(opened.store, weights=WEIGHTS[:100])
    with pytest.raises(Transient, match="too slow"):
        opened.store.remove(digest, deadline=time.monotonic() - 1)
    assert read(opened.store, digest, WEIGHTS_FILE) == WEIGHTS[:100]


def test_report_is_kept(opened: Opened) -> None:
    """All findings, under the registration's id, until it is removed; when it was written can be asked."""
    report = ValidationReport.of((fit_codes.SHAPE_MISMATCH.finding("tensor ü"),))
    opened.store.keep_report("reg_1", report)
    assert opened.names() == ["reports/reg_1.json"]
    assert json.loads(report.to_json())["findings"][0]["subject"] == "tensor ü"
    [(registration_id, written)] = opened.store.reports().items()
    assert registration_id == "reg_1"
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=5)
    for _ in range(2):
        opened.store.remove_report("reg_1")
    assert opened.store.reports() == {}


@pytest.mark.parametrize("lost", [(MANIFEST_FILE,), (WEIGHTS_FILE,), (MANIFEST_FILE, CONFIG_FILE)])
def test_half_an_artifact_is_made_whole(s3_server: S3Server, tmp_path: Path, lost: tuple[str, ...]) -> None:
    """What a killed worker or an interrupted removal left on an object store is completed, not taken for done."""
    root = f"{UNVERSIONED}/{secrets.token_hex(6)}"
    store = ObjectArtifactStore(f"s3://{root}", scratch=tmp_path, options=s3_options(s3_server))
    opened = Opened(store, s3_server.file_system(), root)
    digest = keep(store, weights=WEIGHTS[:100])
    for name in lost:
        opened.lose(digest, name)
    if MANIFEST_FILE in lost:
        with pytest.raises(NotFound):
            store.manifest(digest)
    assert keep(store, weights=WEIGHTS[:100]) == digest
    assert read(store, digest, WEIGHTS_FILE) == WEIGHTS[:100]
    assert read(store, digest, CONFIG_FILE) == CONFIG


def test_manifest_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever upload breaks off, there is no manifest without both files; the same bytes work when it is repaired."""
    store = ObjectArtifactStore(f"memory://{secrets.token_hex(6)}", scratch=tmp_path)
    memory: Any = type(store._files)
    for broken in range(3):
        calls = iter(range(10))

        def counted(method: Any, calls: Iterator[int] = calls, broken: int = broken) -> Any:
            def call(*arguments: Any, **named: Any) -> Any:
                if next(calls) == broken:
                    raise OSError("the connection broke")
                return method(*arguments, **named)

            return call

        with monkeypatch.context() as patched:
            for name in ("pipe_file", "put_file"):
                patched.setattr(memory, name, counted(getattr(memory, name)))
            with pytest.raises(Transient, match="the connection broke"):
                keep(store, weights=WEIGHTS[:100])
        with pytest.raises(NotFound):
            store.manifest(Manifest.of(CONFIG, digest_of(WEIGHTS[:100])).digest)
    assert read(store, keep(store, weights=WEIGHTS[:100]), WEIGHTS_FILE) == WEIGHTS[:100]


def test_unfinished_uploads_of_large_files_are_ended(s3_server: S3Server, tmp_path: Path) -> None:
    """S3 keeps the parts of an upload that a killed worker began, unseen, until somebody ends it: only our own, old."""
    name, files = secrets.token_hex(6), s3_server.file_system()
    store = ObjectArtifactStore(f"s3://{UNVERSIONED}/{name}", scratch=tmp_path, options=s3_options(s3_server))
    for prefix in (name, f"other-{name}"):
        files.call_s3("create_multipart_upload", Bucket=UNVERSIONED, Key=f"{prefix}/sha256/0/{WEIGHTS_FILE}")
    assert store.remove_stale_uploads() == 0
    assert store.remove_stale_uploads(older_than_s=-60) == 1
    left = [upload["Key"] for upload in files.list_multipart_uploads(UNVERSIONED)]
    assert [key for key in left if name in key] == [f"other-{name}/sha256/0/{WEIGHTS_FILE}"]


def test_server_that_is_away_or_refuses_is_a_failure_of_the_world(s3_server: S3Server, tmp_path: Path) -> None:
    """Out of reach, bad credentials: retried, with a message that tells which, and no secret in it."""
    options = s3_options(s3_server)
    away = options | {"client_kwargs": {"endpoint_url": "http://127.0.0.1:9", "region_name": REGION}}
    away |= {"config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 1}}
    secret = "another-secret"
    for url, given in (
        (f"s3://{UNVERSIONED}/x", away),
        (f"s3://{UNVERSIONED}/x", options | {"secret": secret}),
    ):
        store = ObjectArtifactStore(url, scratch=tmp_path, options=given)
        with pytest.raises(Transient) as raised:
            keep(store, weights=WEIGHTS[:100])
        assert secret not in str(raised.value)
        assert SECRET_KEY not in str(raised.value)


@pytest.mark.parametrize("url", ["nonsense://x", "ftp://me:secret@host/x"])
def test_store_that_cannot_be_opened_is_a_configuration_error(tmp_path: Path, url: str) -> None:
    """An unknown scheme, or a password in the setting, stops the process at its start; the password is not shown."""
    with pytest.raises(Configuration) as raised:
        open_artifact_store(Settings(artifact_store=url, scratch=tmp_path))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_directory_is_a_path_or_a_file_url(tmp_path: Path, form: str) -> None:
    """Both are the local store, which renames."""
    store = open_artifact_store(Settings(artifact_store=form.format(tmp_path / "store")))
    assert isinstance(store, LocalArtifactStore)
    assert store.path(keep(store, weights=b"x")).is_relative_to(tmp_path / "store")


def test_credentials_come_by_name(s3_server: S3Server, tmp_path: Path) -> None:
    """`artifact-store` in the credentials file opens the store; one for another scheme is a configuration error."""
    credentials = tmp_path / "credentials.json"
    settings = Settings(
        artifact_store=f"s3://{UNVERSIONED}/{secrets.token_hex(6)}", scratch=tmp_path, credentials_file=credentials
    )
    credentials.write_text(json.dumps({"artifact-store": dict(s3_server.credential())}))
    credentials.chmod(0o600)
    store = open_artifact_store(settings)
    assert read(store, keep(store, weights=b"x"), WEIGHTS_FILE) == b"x"
    assert SECRET_KEY not in repr(settings)
    credentials.write_text(json.dumps({"artifact-store": {"kind": "hub", "token": SECRET_KEY}}))
    with pytest.raises(Configuration, match="another kind") as raised:
        open_artifact_store(settings)
    assert SECRET_KEY not in str(raised.value)
