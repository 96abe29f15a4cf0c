"""The artifact store: artifacts are there whole, under their digest and for everybody to read, or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from lora_registry import fit_codes
from lora_registry.artifacts import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, FileDigest, Manifest
from lora_registry.errors import NotFound, Transient
from lora_registry.report import ValidationReport
from lora_workers import local_artifacts
from lora_workers.local_artifacts import LocalArtifactStore, StagedArtifact

CONFIG = b'{"r":8}'
WEIGHTS = b"weights" * 1000


def digest_of(content: bytes) -> FileDigest:
    """What a source says of bytes that it copied."""
    return FileDigest(hashlib.sha256(content).hexdigest(), len(content))


def manifest_of(config: bytes = CONFIG, weights: bytes = WEIGHTS) -> Manifest:
    """The manifest of an artifact."""
    return Manifest(digest_of(config), digest_of(weights))


def keep(store: LocalArtifactStore, *, config: bytes = CONFIG, weights: bytes = WEIGHTS) -> str:
    """Stage and keep an artifact."""
    with store.stage() as staged:
        with Path(staged.weights_path).open("wb") as file:
            file.write(weights)
        return staged.keep(config, digest_of(weights))


def contents(root: Path) -> list[str]:
    """Every file and directory of the store below its three parts."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.parent != root)


def mode_of(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def store(tmp_path: Path) -> LocalArtifactStore:
    """An empty store."""
    return LocalArtifactStore(tmp_path / "store")


def test_artifact_lies_under_the_digest_of_its_manifest(store: LocalArtifactStore, tmp_path: Path) -> None:
    """Exactly two files and the manifest, whose SHA-256 is the name; staging is empty again."""
    digest = keep(store)
    directory = store.path(digest)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {
        CONFIG_FILE: CONFIG,
        WEIGHTS_FILE: WEIGHTS,
        MANIFEST_FILE: manifest_of().to_json(),
    }
    assert digest == f"sha256:{hashlib.sha256((directory / MANIFEST_FILE).read_bytes()).hexdigest()}"
    assert directory == tmp_path / "store" / "sha256" / digest.removeprefix("sha256:")
    assert list((tmp_path / "store" / "staging").iterdir()) == []


def test_manifest_names_both_files_with_size_and_digest(store: LocalArtifactStore) -> None:
    """A node can check what it has with the manifest alone."""
    manifest = json.loads((store.path(keep(store)) / MANIFEST_FILE).read_text())
    for name, content in ((CONFIG_FILE, CONFIG), (WEIGHTS_FILE, WEIGHTS)):
        assert manifest["files"][name] == {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def test_everybody_reads_and_nobody_writes(store: LocalArtifactStore) -> None:
    """Engines run as other users; whatever mode the files came with (safetensors writes 0600), these are readable."""
    with store.stage() as staged:
        weights = Path(staged.weights_path)
        weights.write_bytes(WEIGHTS)
        weights.chmod(0o600)
        directory = store.path(staged.keep(CONFIG, digest_of(WEIGHTS)))
    assert mode_of(directory) == 0o555
    assert {path.name: mode_of(path) for path in directory.iterdir()} == dict.fromkeys(
        (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE), 0o444
    )


def test_same_bytes_twice_are_one_artifact(store: LocalArtifactStore, tmp_path: Path) -> None:
    """The second copy is dropped; the first is not even touched."""
    first = keep(store)
    inode = store.path(first).stat().st_ino
    before = contents(tmp_path / "store")
    assert keep(store) == first
    assert store.path(first).stat().st_ino == inode
    assert contents(tmp_path / "store") == before


@pytest.mark.parametrize("changes", [{"config": b"{}"}, {"weights": b"other"}])
def test_other_bytes_are_another_artifact(store: LocalArtifactStore, changes: dict[str, bytes]) -> None:
    """Either file alone makes a difference."""
    first, other = keep(store), keep(store, **changes)
    assert first != other
    assert store.path(first) != store.path(other)


def test_what_was_not_kept_is_removed(store: LocalArtifactStore, tmp_path: Path) -> None:
    """A rejected adapter leaves nothing behind, and neither does an error."""

    def reject() -> None:
        with store.stage() as staged:
            Path(staged.weights_path).write_bytes(WEIGHTS)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        reject()
    assert contents(tmp_path / "store") == []


@pytest.mark.parametrize("step", ["config", "sync", "rename_into_place"])
def test_artifact_that_fails_midway_is_not_there_at_all(
    store: LocalArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whatever step the disk fails at, nothing is seen under the digest, nothing stays, and later it works."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    # A full disk cannot be made here without filling one, so the step itself fails.
    with monkeypatch.context() as patched:
        if step == "config":
            patched.setattr(Path, "write_bytes", fail)
        else:
            patched.setattr(local_artifacts, step, fail)
        with pytest.raises(Transient, match="No space left"):
            keep(store)
    assert contents(tmp_path / "store") == []
    with pytest.raises(NotFound):
        store.path(manifest_of().digest)
    assert store.path(keep(store)).is_dir()


def test_weights_that_were_never_copied_are_not_kept(store: LocalArtifactStore, tmp_path: Path) -> None:
    """An artifact without its weights does not come into being."""
    with pytest.raises(Transient), store.stage() as staged:
        staged.keep(CONFIG, digest_of(WEIGHTS))
    assert contents(tmp_path / "store") == []


def test_two_workers_with_the_same_bytes_at_the_same_moment(
    store: LocalArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are about to rename: one artifact comes of it, whole, and both get its digest."""
    rename, both = local_artifacts.rename_into_place, threading.Barrier(2)

    def rename_together(directory: Path, target: Path) -> None:
        both.wait(10)
        rename(directory, target)

    monkeypatch.setattr(local_artifacts, "rename_into_place", rename_together)
    digests: list[str] = []
    threads = [threading.Thread(target=lambda: digests.append(keep(store))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert digests == [manifest_of().digest] * 2
    assert len(contents(tmp_path / "store")) == len([digests[0], CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE])
    assert mode_of(store.path(digests[0])) == 0o555


def test_other_failures_of_a_rename_are_no_success(store: LocalArtifactStore, tmp_path: Path) -> None:
    """Only "it is there already" is one: a store whose directory was removed says so."""
    (tmp_path / "store" / "sha256").rmdir()
    with pytest.raises(Transient):
        keep(store)


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:" + "0" * 64,
        "",
        "sha256:",
        ".",
        "sha256:.",
        "sha256:..",
        "sha256:../reports",
        "../staging",
        "/etc",
        "0" * 64,
        "sha512:" + "0" * 64,
    ],
)
def test_what_is_no_digest_leads_nowhere(store: LocalArtifactStore, digest: str) -> None:
    """No text but the digest of an artifact gives a path, in the store or out of it."""
    keep(store)
    with pytest.raises(NotFound):
        store.path(digest)


def test_report_has_all_findings(store: LocalArtifactStore, tmp_path: Path) -> None:
    """More than Redis keeps, in the order in which they were found."""
    findings = tuple(fit_codes.SHAPE_MISMATCH.finding(f"tensor ü {number}") for number in range(100))
    store.keep_report("reg_1", ValidationReport.of(findings))
    report = json.loads((tmp_path / "store" / "reports" / "reg_1.json").read_text())
    assert [finding["subject"] for finding in report["findings"]] == [finding.subject for finding in findings]


def test_report_that_cannot_be_written_is_a_failure_of_the_world(store: LocalArtifactStore, tmp_path: Path) -> None:
    """Without its directory there is no report, and the registration comes again."""
    (tmp_path / "store" / "reports").rmdir()
    with pytest.raises(Transient):
        store.keep_report("reg_1", ValidationReport.of(()))


def test_store_that_cannot_be_made_is_a_failure_of_the_world(tmp_path: Path) -> None:
    """A file in the place of its directory is reported with its name."""
    (tmp_path / "file").touch()
    with pytest.raises(Transient, match="file"):
        LocalArtifactStore(tmp_path / "file")


def test_stale_staging_is_removed_and_fresh_is_not(store: LocalArtifactStore, tmp_path: Path) -> None:
    """What a killed worker left a day ago goes; what another worker is making stays."""
    staging = tmp_path / "store" / "staging"
    for name in ("stale", "fresh"):
        (staging / name).mkdir()
        (staging / name / WEIGHTS_FILE).write_bytes(WEIGHTS)
    two_days_ago = time.time() - 2 * 86_400
    os.utime(staging / "stale", (two_days_ago, two_days_ago))
    assert store.remove_stale_staging() == 1
    assert [path.name for path in staging.iterdir()] == ["fresh"]
    assert store.remove_stale_staging(older_than_s=-1) == 1


def test_relative_root_is_fixed_when_the_store_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that changes its directory does not lose its store."""
    monkeypatch.chdir(tmp_path)
    store = LocalArtifactStore(Path("store"))
    monkeypatch.chdir("/")
    assert store.path(keep(store)).is_relative_to(tmp_path)


def test_staged_artifacts_do_not_see_each_other(store: LocalArtifactStore) -> None:
    """Two at once have directories of their own."""
    with store.stage() as one, store.stage() as other:
        assert isinstance(one, StagedArtifact)
        assert one.weights_path != other.weights_path
