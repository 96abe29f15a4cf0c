"""A training job leaves its adapter in an inbox on S3; real processes publish it; all keys come by reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lora_registry.artifacts import WEIGHTS_FILE
from lora_registry.registrations import Outcome, Registration
from lora_registry.stages import Stage
from lora_workers.artifact_store import open_artifact_store
from lora_workers.training import register_adapter, sweep_inbox
from tests.helpers.adapters_on_disk import copy_adapter
from tests.helpers.registry import BASE
from tests.helpers.s3_server import UNVERSIONED, S3Server
from tests.helpers.servers import remove_keys
from tests.helpers.sources import unique, write_credentials
from tests.helpers.stack import Stack, environment_of, make_settings


@pytest.fixture(scope="module", params=["directory", "s3"])
def stack(
    request: pytest.FixtureRequest, server_url: str, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """One dispatcher and one worker; artifacts go to a directory, or to S3; no key is a default one."""
    directory, changes = tmp_path_factory.mktemp("stack"), dict[str, Any]()
    named = {"adapter-inbox": s3_server.credential()}
    if request.param == "s3":
        named["artifact-store"] = s3_server.credential()
        changes["artifact_store"] = f"s3://{UNVERSIONED}/{unique('artifacts')}"
    (directory / "scratch").mkdir()
    settings = make_settings(
        server_url,
        directory,
        key_prefix=f"{{{unique('inbox')}}}",
        adapter_inbox=f"s3://{UNVERSIONED}/{unique('inbox')}",
        credentials_file=write_credentials(directory, named),
        scratch=directory / "scratch",
        **changes,
    )
    stack = Stack(settings, directory)
    stack.registry.admit()
    stack.dispatchers()
    stack.worker()
    yield stack
    stack.close()
    remove_keys(stack.registry.client, settings.key_prefix)


@pytest.fixture
def job(stack: Stack, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a training job, whose credentials are for the inbox and nothing else."""
    own = write_credentials(tmp_path, {"adapter-inbox": s3_server.credential()})
    for name, value in environment_of(stack.settings.model_copy(update={"credentials_file": own})).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LORA_REGISTRY_ADAPTER_INBOX")


def register(stack: Stack, name: str, saved: Path, **asked: Any) -> Registration:
    """What the training job calls."""
    inbox = stack.settings.adapter_inbox
    registration = register_adapter(name, saved, BASE, inbox=inbox, timeout_s=60, on_error="raise", **asked)
    assert registration is not None
    return registration


def copies_in_inbox(stack: Stack, server: S3Server) -> Mapping[str, list[str]]:
    """Copies that are in the inbox, each with the names of its objects."""
    copies: dict[str, list[str]] = {}
    inbox = stack.settings.adapter_inbox.removeprefix("s3://")
    for path in server.file_system().find(inbox):
        place, _, name = path.rpartition("/")
        if place.startswith(inbox):  # SeaweedFS lists an emptied prefix itself, as an object without bytes
            copies.setdefault(f"s3://{place}", []).append(name)
    return copies


@pytest.mark.usefixtures("job")
def test_training_job_publishes_through_an_inbox_on_s3(stack: Stack, s3_server: S3Server, tmp_path: Path) -> None:
    """The artifact is what the job saved; the same bytes again are unchanged and one artifact; no copy is left."""
    name, saved = unique("job"), copy_adapter(tmp_path / "checkpoint-900", variant=900)
    bytes_saved = (saved / WEIGHTS_FILE).read_bytes()
    published = register(stack, name, saved, wait=True)
    assert (published.outcome, published.served_name) == (Outcome.PUBLISHED, f"{name}.v1")
    assert published.source.startswith(f"{stack.settings.adapter_inbox}/default/{name}/")
    store = open_artifact_store(stack.settings)
    assert b"".join(store.read(published.digest, WEIGHTS_FILE)) == bytes_saved
    assert register(stack, name, saved, wait=True).id == published.id
    again = register(stack, name, saved, labels={"run": "2"}, wait=True)
    assert (again.outcome, again.served_name) == (Outcome.UNCHANGED, published.served_name)
    assert again.digest == published.digest
    assert store.digests() == [published.digest]
    assert copies_in_inbox(stack, s3_server) == {}
    assert sweep_inbox(stack.settings) == 0
    assert list(stack.settings.scratch.iterdir()) == []


@pytest.mark.usefixtures("job")
def test_copy_outlives_the_checkpoint_and_is_one_for_the_same_call(
    stack: Stack, s3_server: S3Server, tmp_path: Path
) -> None:
    """While the worker has not read it: called twice it is one copy, and the job's own files may be gone."""
    name, saved = unique("rotated"), copy_adapter(tmp_path / "checkpoint-901", variant=901)
    bytes_saved = (saved / WEIGHTS_FILE).read_bytes()
    (stack.notes / "release").unlink(missing_ok=True)
    asked = {"labels": {"fault": "hold:validate"}}
    first = register(stack, name, saved, **asked)
    assert register(stack, name, saved, **asked).id == first.id
    assert {place: len(names) for place, names in copies_in_inbox(stack, s3_server).items()} == {first.source: 3}
    stack.wait_for_stage(first.id, Stage.VALIDATE)
    for path in saved.iterdir():
        path.unlink()
    stack.release()
    ended = stack.wait_for([first.id])[first.id]
    assert ended.outcome is Outcome.PUBLISHED
    assert b"".join(open_artifact_store(stack.settings).read(ended.digest, WEIGHTS_FILE)) == bytes_saved
