"""`lora-registry store list|verify|gc` and `register --stage-to`, on a real server and a real store."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lora_registry.artifacts import WEIGHTS_FILE
from lora_registry.ready_marker import MARKER_FILE
from lora_registry.settings import SECONDS_PER_DAY
from lora_workers.cli.app import app
from lora_workers.local_artifacts import LocalArtifactStore
from tests.helpers.adapters_on_disk import copy_adapter
from tests.helpers.registry import BASE, Registry
from tests.integration.test_garbage import artifact, keep, register


@pytest.fixture
def store(registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LocalArtifactStore:
    """The store that the commands see, with no grace."""
    monkeypatch.setenv("LORA_REGISTRY_REDIS_URL", registry.settings.redis_url)
    monkeypatch.setenv("LORA_REGISTRY_KEY_PREFIX", registry.settings.key_prefix)
    monkeypatch.setenv("LORA_REGISTRY_ARTIFACT_STORE", registry.settings.artifact_store)
    monkeypatch.setenv("LORA_REGISTRY_ADAPTER_INBOX", str(tmp_path / "inbox"))
    monkeypatch.setenv("LORA_REGISTRY_GC_GRACE_S", "0")
    return LocalArtifactStore(Path(registry.settings.artifact_store))


def run(*arguments: str) -> Result:
    """Run a command."""
    return CliRunner().invoke(app, list(arguments), prog_name="lora-registry", env={"COLUMNS": "240"})


def run_json(*arguments: str) -> Any:
    """Run a command that is to end well; returns the JSON that it prints."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_list_says_what_refers_to_what(registry: Registry, store: LocalArtifactStore) -> None:
    """Every artifact, with its size and its versions; one without any is a candidate for collection."""
    assert run_json("store", "list") == []
    published, loose = register(registry, store, b"published"), keep(store, b"loose")
    listed = {each["digest"]: each["versions"] for each in run_json("store", "list")}
    assert listed == {published: ["support-bot.v1"], loose: []}
    assert "none" in run("store", "list").stdout


def test_verify_finds_damage(registry: Registry, store: LocalArtifactStore) -> None:
    """It reads what versions refer to; a byte that differs, or an artifact that is missing, ends with 1."""
    digest = register(registry, store, b"published")
    assert run_json("store", "verify") == {"verified": 1, "damaged": {}}
    weights = store.path(digest) / WEIGHTS_FILE
    weights.chmod(0o644)
    weights.write_bytes(b"Published")
    result = run("store", "verify", "--json")
    assert result.exit_code == 1
    assert list(json.loads(result.stdout)["damaged"]) == [digest]
    missing = run("store", "verify", artifact(b"nowhere"))
    assert missing.exit_code == 1
    assert "no artifact" in missing.stdout


def test_gc_removes_and_says_so(registry: Registry, store: LocalArtifactStore, tmp_path: Path) -> None:
    """A dry run first, which removes nothing; then artifacts without a reference and copies past their time go."""
    register(registry, store, b"published")
    loose = keep(store, b"loose")
    copy = tmp_path / "inbox" / "default" / "support-bot" / "copy"
    copy.mkdir(parents=True)
    os.utime(copy, (0, 0))
    for name, written in (("reg_new", time.time()), ("reg_old", time.time() - 31 * SECONDS_PER_DAY)):
        report = tmp_path / "artifacts" / "reports" / f"{name}.json"
        report.write_text("{}")
        os.utime(report, (written, written))
    previewed = run_json("store", "gc", "--dry-run")
    assert (previewed["waiting"], previewed["reports"]) == ([loose], ["reg_old"])
    assert len(store.reports()) == 2
    assert loose in store.digests()
    assert copy.exists()
    done = run_json("store", "gc")
    assert (done["removed"], done["copies"], done["referenced"], done["dry_run"]) == ([loose], 1, 1, False)
    assert store.digests() == [artifact(b"published")]
    assert (done["reports"], list(store.reports())) == (["reg_old"], ["reg_new"])
    assert not copy.exists()
    assert "removed 0 artifacts" in run("store", "gc").stdout


def test_gc_on_an_empty_registry_needs_a_word(registry: Registry, store: LocalArtifactStore) -> None:
    """Without --all it ends with 2 and says what to check."""
    keep(store)
    refused = run("store", "gc")
    assert refused.exit_code == 2
    assert "LORA_REGISTRY_KEY_PREFIX" in refused.output
    assert run("store", "gc", "--all").exit_code == 0
    assert store.digests() == []


def test_register_stages_a_copy(registry: Registry, store: LocalArtifactStore, tmp_path: Path) -> None:
    """What is registered lies in the inbox, marked as ready; the same command again is the same registration."""
    adapter, inbox = copy_adapter(tmp_path / "adapter"), tmp_path / "staged"
    command = ("register", "support-bot", str(adapter), "--base", BASE, "--stage-to", str(inbox))
    first = run_json(*command)["registration_id"]
    assert Path(registry.ledger.get(first).source).parent == inbox / "default" / "support-bot"
    assert [path.name for path in inbox.glob(f"*/*/*/{MARKER_FILE}")] == [MARKER_FILE]
    assert run_json(*command)["registration_id"] == first
