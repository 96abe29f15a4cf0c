"""Training jobs register what they save: real training, real workers, and checkpoints that are soon gone."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_registry.artifacts import WEIGHTS_FILE
from lora_registry.errors import Rejected
from lora_registry.names import parse_reference
from lora_registry.registrations import Outcome
from lora_registry.stages import ORDER
from lora_workers.local_artifacts import LocalArtifactStore
from lora_workers.training import register_adapter
from tests.helpers.adapters_on_disk import DEMO_DATA
from tests.helpers.registry import BASE
from tests.helpers.servers import remove_keys
from tests.helpers.stack import ROOT, Stack, environment_of, make_settings

BASE_DIRECTORY = DEMO_DATA / "bases" / BASE


@pytest.fixture(scope="module")
def stack(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One dispatcher and one worker for each stage; the inbox is where their sources may lie."""
    prefix, directory = f"{{test-{secrets.token_hex(6)}}}", tmp_path_factory.mktemp("stack")
    stack = Stack(make_settings(server_url, directory, key_prefix=prefix), directory)
    stack.dispatchers()
    for stage in ORDER:
        stack.worker(stage)
    yield stack
    stack.close()
    remove_keys(stack.registry.client, prefix)


def run(stack: Stack, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a training job to its end; CPU threads are few, since tests share the machine."""
    environment = environment_of(stack.settings) | {
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HOME": str(stack.directory),
    }
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def copies_in(inbox: Path) -> list[Path]:
    """Copies that are in the inbox, and what is left of some."""
    return [*inbox.glob("*/*"), *inbox.glob(".*")]


def test_example_trains_and_registers(stack: Stack) -> None:
    """The shipped script: its output directory is gone when it ends, the version is published, the copy is removed."""
    inbox = stack.sources / "example"
    script = str(ROOT / "deploy" / "examples" / "train_and_register.py")
    asked = ("--base", BASE, "--name", "example", "--inbox", str(inbox))
    done = run(stack, script, str(BASE_DIRECTORY), *asked)
    assert done.stdout.split() == ["published", "example.v1", str(stack.registry.version("example").lora_int_id)]
    assert copies_in(inbox) == []


def test_callback_registers_checkpoints_that_are_rotated_away(stack: Stack, tmp_path: Path) -> None:
    """Three checkpoints, of which `save_total_limit=1` leaves one: three versions, in order, with other bytes each."""
    inbox = stack.sources / "callback"
    run(
        stack,
        *("-m", "tests.helpers.train", str(BASE_DIRECTORY), "--inbox", str(inbox)),
        *("--output", str(tmp_path / "out"), "--notes", str(tmp_path)),
    )
    assert [path.name for path in sorted((tmp_path / "out").glob("checkpoint-*"))] == ["checkpoint-6"]
    ids = json.loads((tmp_path / "0.json").read_text())
    ended = stack.wait_for(ids)
    assert [ended[each].outcome for each in ids] == [Outcome.PUBLISHED] * 3
    records = [stack.registry.catalog.version(parse_reference(ended[each].served_name)) for each in ids]
    assert [record.metadata for record in records] == [{"step": step} for step in ("2", "4", "6")]
    assert [record.labels for record in records] == [{"run": "test"}] * 3
    assert len({record.digest for record in records}) == 3
    store = LocalArtifactStore(Path(stack.settings.artifact_store))
    weights = b"".join(store.read(records[-1].digest, WEIGHTS_FILE))
    assert weights == (tmp_path / "out" / "checkpoint-6" / WEIGHTS_FILE).read_bytes()


def test_two_ranks_register_once(stack: Stack, tmp_path: Path) -> None:
    """Two processes train together (gloo, on CPU): each checkpoint is registered by one of them."""
    inbox = stack.sources / "ranks"
    run(
        stack,
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.helpers.train"),
        *(str(BASE_DIRECTORY), "--inbox", str(inbox), "--steps", "4"),
        *("--output", str(tmp_path / "out"), "--notes", str(tmp_path)),
    )
    assert json.loads((tmp_path / "1.json").read_text()) == []
    ids = json.loads((tmp_path / "0.json").read_text())
    assert len(ids) == 2
    assert [each.outcome for each in stack.wait_for(ids).values()] == [Outcome.PUBLISHED] * 2


def test_rejection_reaches_the_training_job(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised with the findings if it asks for that; the copy stays to be looked at; asked again, it is judged anew."""
    for name, value in environment_of(stack.settings).items():
        monkeypatch.setenv(name, value)
    inbox, wrong = stack.sources / "rejected", DEMO_DATA / "adapters" / "wrong-base"
    messages = set()
    for _ in range(2):
        with pytest.raises(Rejected) as raised:
            register_adapter("wrong", wrong, BASE, inbox=inbox, wait=True, timeout_s=60, on_error="raise")
        assert "SHAPE_MISMATCH" in {finding.code for finding in raised.value.findings}
        messages.add(raised.value.message)
    assert len(messages) == 2, "each names its own registration"
    assert len(copies_in(inbox)) == 1
