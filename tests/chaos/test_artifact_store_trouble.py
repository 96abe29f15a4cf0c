"""The artifact store fails under a running stage: full, gone at the worst moment, or on a server that is away."""

from __future__ import annotations

import json
import resource
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE
from lora_registry.registrations import Outcome
from lora_registry.stages import ORDER, Stage
from lora_workers.artifact_store import Store, open_artifact_store
from lora_workers.local_artifacts import LocalArtifactStore
from tests.helpers.s3_server import UNVERSIONED, S3Server
from tests.helpers.stack import Process, Stack, check_promises, make_settings

SMALLER_THAN_AN_ADAPTER = 16_384


def limit_file_size(process: Process, size_bytes: int) -> None:
    """Let a worker and its pool write no file larger than this: a disk that takes no more, for whoever writes to it."""
    pids = [process.process.pid]
    for pid in pids:
        pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def read_everything(store: Store) -> list[str]:
    """Digests of all artifacts, each read and compared with its manifest."""
    for digest in store.digests():
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            for _ in store.read(digest, name):
                pass
    return store.digests()


def test_full_store_ends_in_the_dead_letters_until_there_is_space(stack: Stack) -> None:
    """Nothing fits: retried, then dead-lettered with the reason, nothing visible; driven again, it is published."""
    stack.dispatchers()
    worker = stack.worker()
    stack.wait_for_slots()
    limit_file_size(worker, SMALLER_THAN_AN_ADAPTER)
    registration_id = stack.submit("support-bot")
    ended = stack.wait_for([registration_id])[registration_id]
    assert ended.outcome is Outcome.DEAD_LETTERED
    letter = stack.registry.ledger.dead_letter(registration_id)
    assert letter.stage == Stage.VALIDATE
    assert [failure["code"] for failure in letter.history] == ["TRANSIENT"] * stack.settings.max_attempts
    assert all("File too large" in failure["error"] for failure in letter.history)
    store = LocalArtifactStore(Path(stack.settings.artifact_store))
    assert store.digests() == []
    assert list((Path(stack.settings.artifact_store) / "staging").iterdir()) == []

    limit_file_size(worker, resource.RLIM_INFINITY)
    stack.registry.ledger.redrive(registration_id)
    stack.wait_until(lambda: stack.client.status(registration_id).outcome is Outcome.PUBLISHED, what="publication")
    assert read_everything(store) == [stack.client.status(registration_id).digest]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_worker_killed_at_the_rename(stack: Stack, moment: str) -> None:
    """SIGKILL between the sync and the rename, or right after it: never half an artifact; doing it again works."""
    stack.dispatchers()
    worker = stack.worker()
    registration_id = stack.submit("support-bot", fault=f"kill-rename:validate:{moment}")
    worker.process.wait(60)  # nothing is started again before we have looked
    store = LocalArtifactStore(Path(stack.settings.artifact_store))
    assert (stack.notes / f"{registration_id}.kill-rename").exists()
    assert len(read_everything(store)) == (1 if moment == "after" else 0)
    ended = stack.wait_for([registration_id])
    assert ended[registration_id].outcome is Outcome.PUBLISHED
    assert read_everything(store) == [ended[registration_id].digest]
    assert store.path(ended[registration_id].digest).stat().st_mode & 0o777 == 0o555
    assert len(list((Path(stack.settings.artifact_store) / "staging").iterdir())) == (1 if moment == "before" else 0)
    assert store.remove_stale_staging(older_than_s=-1) == (1 if moment == "before" else 0)
    check_promises(stack, ended)


@pytest.fixture
def stack_on_s3(server_url: str, s3_server: S3Server, tmp_path: Path) -> Iterator[Stack]:
    """A stack whose artifacts go to the S3 server, by the keys that the credentials file names `artifact-store`."""
    credentials = tmp_path / "credentials.json"
    credentials.write_text(json.dumps({"artifact-store": dict(s3_server.credential())}))
    credentials.chmod(0o600)
    (tmp_path / "scratch").mkdir()
    settings = make_settings(
        server_url,
        tmp_path,
        key_prefix=f"{{test-{secrets.token_hex(6)}}}",
        artifact_store=f"s3://{UNVERSIONED}/{secrets.token_hex(6)}",
        scratch=tmp_path / "scratch",
        credentials_file=credentials,
    )
    stack = Stack(settings, tmp_path)
    yield stack
    stack.close()


def test_artifacts_on_an_object_store(stack_on_s3: Stack, tmp_path: Path) -> None:
    """Real workers keep artifacts on S3: whole, once for the same bytes, and with nothing left on the worker's disk."""
    stack = stack_on_s3
    stack.dispatchers()
    for stage in ORDER:
        stack.worker(stage)
    source = stack.adapter()
    ids = [stack.submit("one", source=source), stack.submit("two", source=source), stack.submit("three")]
    ended = stack.wait_for(ids)
    assert [each.outcome for each in ended.values()] == [Outcome.PUBLISHED] * 3
    store = open_artifact_store(stack.settings)
    assert read_everything(store) == sorted({each.digest for each in ended.values()})
    assert len(store.digests()) == 2
    assert list((tmp_path / "scratch").iterdir()) == []
    check_promises(stack, ended)
