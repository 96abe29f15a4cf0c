"""`register_adapter` and what it leaves in the inbox; training itself is in tests/e2e/test_training.py."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from huggingface_hub import CommitInfo

from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE
from lora_registry.copies import copied, place_copy, remove_copy, remove_old_copies
from lora_registry.errors import RedisUnavailable, Rejected, Transient, WaitTimeout
from lora_registry.ready_marker import MARKER_FILE, parse_marker
from lora_registry.registrations import Registration
from lora_registry.settings import Settings
from lora_registry.stages import Stage
from lora_workers import remote_copies, training
from lora_workers.remote_copies import remove_old_remote_copies
from lora_workers.training import Staged, forget_published, locate, register_adapter, sweep_inbox
from tests.helpers.adapters_on_disk import change_a_byte, copy_adapter
from tests.helpers.registry import BASE, Registry

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter as PEFT saves it, with what a checkpoint has beside it."""
    directory = copy_adapter(tmp_path / "out" / "checkpoint-2")
    (directory / WEIGHTS_FILE).chmod(0o600)
    (directory / "optimizer.pt").write_bytes(b"not for the registry")
    (directory / "tokenizer_config.json").write_text("{}")
    return directory


@pytest.fixture
def call(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`register_adapter` on the test's registry; errors are raised unless it says otherwise."""
    monkeypatch.setenv("LORA_REGISTRY_KEY_PREFIX", registry.settings.key_prefix)

    def register(source: Any, **options: Any) -> Registration:
        given = {"redis_url": registry.settings.redis_url, "on_error": "raise"} | options
        registration = register_adapter("support-bot", source, BASE, **given)
        assert registration is not None
        return registration

    return register


def publish_everything(registry: Registry) -> None:
    """Bring what waits through all stages."""
    for lease in registry.advance(Stage.PUBLISH).values():
        registry.publish(lease)


# The copy


def test_copy_holds_what_is_registered_for_everybody_to_read(call: Any, adapter: Path, tmp_path: Path) -> None:
    """The two files, a tokenizer's, and the marker that describes them; not the optimizer; no private modes."""
    registration = call(adapter, inbox=tmp_path / "inbox")
    copy = Path(registration.source)
    assert copy.parent == tmp_path / "inbox" / "default" / "support-bot"
    assert {path.name for path in copy.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE, "tokenizer_config.json", MARKER_FILE}
    assert {stat.S_IMODE(path.stat().st_mode) for path in copy.iterdir()} == {0o644}
    assert stat.S_IMODE(copy.stat().st_mode) == 0o755
    marker = parse_marker((copy / MARKER_FILE).read_bytes())
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        content = (adapter / name).read_bytes()
        assert (copy / name).read_bytes() == content
        assert (marker.files[name].sha256, marker.files[name].size_bytes) == (
            hashlib.sha256(content).hexdigest(),
            len(content),
        )
    assert [path.name for path in (tmp_path / "inbox").iterdir()] == ["default"]


def test_checkpoint_may_go_at_once(call: Any, adapter: Path, tmp_path: Path) -> None:
    """What was registered is the copy, whatever the trainer does to its own files."""
    before = (adapter / WEIGHTS_FILE).read_bytes()
    registration = call(adapter, inbox=tmp_path / "inbox")
    change_a_byte(adapter)
    assert (Path(registration.source) / WEIGHTS_FILE).read_bytes() == before


def test_same_call_again_is_one_copy_and_one_registration(call: Any, adapter: Path, tmp_path: Path) -> None:
    """From another checkpoint with the same bytes, too; other bytes or another request are something else."""
    inbox = tmp_path / "inbox"
    first = call(adapter, inbox=inbox, labels={"team": "data"})
    again = copy_adapter(tmp_path / "elsewhere")
    (again / "tokenizer_config.json").write_text("{}")
    assert call(again, inbox=inbox, labels={"team": "data"}).id == first.id
    assert len(list(inbox.glob("*/*/*"))) == 1
    assert call(adapter, inbox=inbox, labels={"team": "web"}).id != first.id
    change_a_byte(adapter)
    assert call(adapter, inbox=inbox, labels={"team": "data"}).id != first.id
    assert len(list(inbox.glob("*/*/*"))) == 3


def test_call_after_a_rejection_is_tried_anew(registry: Registry, call: Any, adapter: Path, tmp_path: Path) -> None:
    """The base may be registered by now; while a registration is in progress or published, there is only that one."""
    first = call(adapter, inbox=tmp_path / "inbox")
    registry.dispatch()
    [lease] = registry.claim(Stage.ALLOCATE)
    registry.ledger.finish(lease, "rejected")  # type: ignore[arg-type] # a StrEnum's value
    second = call(adapter, inbox=tmp_path / "inbox")
    assert second.id != first.id
    assert call(adapter, inbox=tmp_path / "inbox").id == second.id
    publish_everything(registry)
    assert call(adapter, inbox=tmp_path / "inbox").id == second.id


def test_interrupted_copy_is_completed(call: Any, adapter: Path, tmp_path: Path) -> None:
    """A job that died between rename and marker, or a copy that somebody damaged: the next call makes it right."""
    inbox = tmp_path / "inbox"
    copy = Path(call(adapter, inbox=inbox).source)
    (copy / MARKER_FILE).unlink()
    call(adapter, inbox=inbox)
    assert (copy / MARKER_FILE).is_file()
    (copy / WEIGHTS_FILE).write_bytes(b"short")
    call(adapter, inbox=inbox)
    assert (copy / WEIGHTS_FILE).read_bytes() == (adapter / WEIGHTS_FILE).read_bytes()


def test_a_copy_appears_whole(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the name by which workers look for it there is nothing, and then all of it, its marker included."""
    seen: list[set[str]] = []
    rename = Path.rename

    def spy(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        seen.append({each.name for each in Path(target).iterdir()})
        return moved

    monkeypatch.setattr(Path, "rename", spy)
    with copied(adapter, below=tmp_path / "inbox") as copy:
        place_copy(copy, tmp_path / "inbox" / "a" / "b")
    assert seen == [{CONFIG_FILE, WEIGHTS_FILE, "tokenizer_config.json", MARKER_FILE}]


def test_a_copy_that_appears_meanwhile_stays(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is removed where nothing was: by then another process may have put its copy there, for workers to pin."""
    removed: list[Path] = []
    monkeypatch.setattr("lora_registry.copies.remove_copy", removed.append)
    with copied(adapter, below=tmp_path / "inbox") as copy:
        place_copy(copy, tmp_path / "inbox" / "a" / "b")
    assert removed == []


def test_a_copy_that_others_place_and_remove_meanwhile_is_placed(adapter: Path, tmp_path: Path) -> None:
    """Ranks of one job, jobs in containers with the same process ids, and one that is done with these bytes."""
    target = tmp_path / "inbox" / "default" / "bot" / ("0" * 32)
    is_over = threading.Event()

    def place_often() -> None:
        for _ in range(40):
            with copied(adapter, below=tmp_path / "inbox") as copy:
                place_copy(copy, target)

    def remove_often() -> None:
        while not is_over.wait(0.001):
            remove_copy(target)

    with ThreadPoolExecutor(5) as threads:
        removing = threads.submit(remove_often)
        placing = [threads.submit(place_often) for _ in range(4)]
        try:
            for each in placing:
                each.result(60)
        finally:
            is_over.set()
        removing.result(10)


def test_registrations_under_keys_of_their_own_have_copies_of_their_own(
    registry: Registry, call: Any, adapter: Path, tmp_path: Path
) -> None:
    """The first one's end takes nothing away that the second one still needs."""
    inbox = tmp_path / "inbox"
    call(adapter, inbox=inbox, idempotency_key="run-1")
    publish_everything(registry)
    second = call(adapter, inbox=inbox, idempotency_key="run-2")
    assert call(adapter, inbox=inbox, idempotency_key="run-1").outcome is not None
    assert (Path(second.source) / WEIGHTS_FILE).is_file()


def test_without_an_inbox_the_directory_itself_is_registered(call: Any, adapter: Path) -> None:
    """Still once for the same bytes."""
    first = call(adapter)
    assert first.source == str(adapter)
    assert call(str(adapter)).id == first.id
    change_a_byte(adapter)
    assert call(adapter).id != first.id


@pytest.mark.parametrize("missing", [CONFIG_FILE, WEIGHTS_FILE, "everything"])
def test_directory_without_an_adapter_is_rejected_at_once(
    call: Any, adapter: Path, tmp_path: Path, missing: str
) -> None:
    """With the finding that the pipeline would give; nothing is left in the inbox."""
    source = adapter
    if missing == "everything":
        source = tmp_path / "nowhere"
    else:
        (adapter / missing).unlink()
    with pytest.raises(Rejected) as raised:
        call(source, inbox=tmp_path / "inbox")
    assert {finding.code for finding in raised.value.findings} <= {"FILE_MISSING", "SOURCE_NOT_FOUND"}
    assert raised.value.findings
    assert not list((tmp_path / "inbox").glob("*"))


# The end of a copy


def test_copy_goes_when_its_bytes_are_published(
    registry: Registry, call: Any, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The artifact store has them by then; copies of what is in progress stay."""
    monkeypatch.setenv("LORA_REGISTRY_REDIS_URL", registry.settings.redis_url)
    first = call(adapter, inbox=tmp_path / "inbox")
    publish_everything(registry)
    change_a_byte(adapter)
    second = call(adapter, inbox=tmp_path / "inbox")
    assert forget_published([first, second]) == [second]
    assert not Path(first.source).exists()
    assert Path(second.source).exists()


def test_an_inbox_that_is_open_to_all_stays_so_below(call: Any, adapter: Path, tmp_path: Path) -> None:
    """Another user's job may be the next one to copy an adapter of the namespace."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    inbox.chmod(0o1777)
    call(adapter, inbox=inbox)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (inbox / "default", inbox / "default" / "support-bot")]
    assert modes == [0o1777, 0o1777]


def test_old_copies_are_swept_by_age(adapter: Path, tmp_path: Path) -> None:
    """Of the marker, which each call writes anew; what a killed job left goes too, and nothing else does."""
    inbox = tmp_path / "inbox"
    for name in ("old", "new"):
        with copied(adapter, below=inbox) as copy:
            place_copy(copy, inbox / "default" / "support-bot" / name)
    (inbox / ".staging-killed").mkdir()
    long_ago = time.time() - 1000
    for old in (inbox / "default" / "support-bot" / "old" / MARKER_FILE, inbox / ".staging-killed"):
        os.utime(old, (long_ago, long_ago))
    assert remove_old_copies(inbox, older_than_s=900) == 2
    assert [path.name for path in inbox.glob("*/*/*")] == ["new"]
    assert sweep_inbox(Settings(adapter_inbox=str(inbox), inbox_retention_s=900)) == 0
    assert sweep_inbox(Settings()) == 0


# An inbox that is no directory


def test_remote_inbox(registry: Registry, call: Any, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same copy on any file system of fsspec; it is gone when it is published, or by age."""
    monkeypatch.setenv("LORA_REGISTRY_REDIS_URL", registry.settings.redis_url)
    inbox, files = f"memory://{secrets.token_hex(6)}", fsspec.filesystem("memory")
    first = call(adapter, inbox=inbox)
    assert first.source.startswith(f"{inbox}/default/support-bot/")
    names = {path.rpartition("/")[2] for path in files.find(first.source)}
    assert names == {CONFIG_FILE, WEIGHTS_FILE, "tokenizer_config.json", MARKER_FILE}
    assert call(adapter, inbox=inbox).id == first.id
    assert remove_old_remote_copies(inbox, older_than_s=60, settings=Settings()) == 0
    publish_everything(registry)
    assert forget_published([first]) == []
    assert files.find(first.source) == []
    change_a_byte(adapter)
    second = call(adapter, inbox=inbox)
    assert sweep_inbox(Settings(adapter_inbox=inbox, inbox_retention_s=1)) == 0
    assert remove_old_remote_copies(inbox, older_than_s=-60, settings=Settings()) == 1
    assert files.find(second.source) == []


def test_remote_marker_is_last(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that breaks off leaves no marker."""
    inbox = f"memory://{secrets.token_hex(6)}"
    memory: Any = fsspec.get_filesystem_class("memory")
    put, calls = memory.put_file, iter(range(10))

    def break_off(*arguments: Any, **named: Any) -> None:
        if next(calls) == 1:
            raise OSError("the connection broke")
        put(*arguments, **named)

    monkeypatch.setattr(memory, "put_file", break_off)
    with pytest.raises(Transient, match="the connection broke"):
        training.stage(adapter, Settings(adapter_inbox=inbox), request={"namespace": "default", "name": "support-bot"})
    left = fsspec.filesystem("memory").find(inbox)
    assert len(left) == 1
    assert not left[0].endswith(MARKER_FILE)


# What is passed on


@pytest.mark.parametrize(
    ("given", "revision", "source"),
    [
        ("org/repo", None, "hf://org/repo"),
        ("org/repo", COMMIT, f"hf://org/repo@{COMMIT}"),
        ("hf://org/repo/folder", "main", "hf://org/repo@main/folder"),
        ("s3://bucket/prefix", None, "s3://bucket/prefix"),
        ("/adapters/one", None, "/adapters/one"),
        ("file:///adapters/one", None, "/adapters/one"),
        (
            CommitInfo(
                commit_url=f"https://huggingface.co/org/repo/commit/{COMMIT}",
                commit_message="",
                commit_description="",
                oid=COMMIT,
            ),
            None,
            f"hf://org/repo@{COMMIT}",
        ),
    ],
)
def test_what_is_registered(given: Any, revision: str | None, source: str) -> None:
    """Directories become absolute paths, repositories `hf://` URLs at the commit that was pushed."""
    assert locate(given, revision=revision) == source


def test_commit_is_registered_once_and_a_branch_each_time(call: Any) -> None:
    """A commit fixes the bytes; what a branch means may have changed since the last call."""
    assert call("org/repo", revision=COMMIT).id == call("org/repo", revision=COMMIT).id
    assert call("org/repo", revision="main").id != call("org/repo", revision="main").id
    assert call("org/repo", idempotency_key="run-1").id == call("org/repo", idempotency_key="run-1").id


# What may not break a training run


def test_redis_that_is_away_is_one_warning(adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The call returns nothing, and the log says what to do; asked to raise, it raises."""
    with caplog.at_level(logging.WARNING):
        assert register_adapter("support-bot", adapter, BASE, redis_url="redis://127.0.0.1:1/0") is None
    [record] = caplog.records
    assert record.name == "lora_workers.training"
    assert "REDIS_UNAVAILABLE" in record.getMessage()
    assert RedisUnavailable.remedy in record.getMessage()
    with pytest.raises(RedisUnavailable):
        register_adapter("support-bot", adapter, BASE, redis_url="redis://127.0.0.1:1/0", on_error="raise")


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


def test_redis_that_never_answers_holds_nobody_up(
    adapter: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait for an answer is short, and is not repeated."""
    monkeypatch.setattr(training, "ANSWER_S", 0.3)
    begun = time.monotonic()
    assert register_adapter("support-bot", adapter, BASE, redis_url=silent_server, wait=True) is None
    assert time.monotonic() - begun < 5


def test_object_store_that_never_answers_holds_nobody_up(
    adapter: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same for an inbox on S3; and its keys are in no message."""
    credentials = tmp_path / "credentials.json"
    endpoint = silent_server.replace("redis://", "http://").removesuffix("/0")
    keys = {"access_key_id": "AKIAKNOWN", "secret_access_key": "hidden", "endpoint_url": endpoint, "region": "x"}
    credentials.write_text(json.dumps({"adapter-inbox": {"kind": "s3", **keys}}))
    credentials.chmod(0o600)
    monkeypatch.setenv("LORA_REGISTRY_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setattr(remote_copies, "ANSWER_S", 0.3)
    begun = time.monotonic()
    assert register_adapter("support-bot", adapter, BASE, inbox="s3://bucket/inbox") is None
    assert time.monotonic() - begun < 20
    assert "no answer within" in caplog.text
    assert "hidden" not in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "Not A Name"},
        {"base_model": ""},
        {"labels": {"key": "v" * 300}},
        {"labels": "no mapping"},
        {"metadata": 5},
        {"inbox": "nonsense://bucket/inbox"},
        {"inbox": "/proc/no/inbox"},
        {"path_or_repo": "/nowhere"},
        {"redis_url": "nonsense"},
        {"follow": "nonsense"},
    ],
)
def test_wrong_arguments_are_one_warning(
    registry: Registry, adapter: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any]
) -> None:
    """Hours of training are not lost for a typo; asked to raise, it raises something with a remedy."""
    given = {"name": "support-bot", "path_or_repo": adapter, "base_model": BASE} | changes
    given.setdefault("redis_url", registry.settings.redis_url)
    with caplog.at_level(logging.WARNING):
        assert register_adapter(**given) is None
    assert len(caplog.records) == 1


def test_outcome_that_does_not_come_is_a_warning_with_the_registration(
    call: Any, adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The registration goes on, and the caller has its id."""
    with pytest.raises(WaitTimeout):
        call(adapter, wait=True, timeout_s=0.1)
    assert call(adapter, wait=True, timeout_s=0.1, on_error="warn").outcome is None
    assert "WAIT_TIMEOUT" in caplog.text


# The callback, without a training around it


def saved(step: int = 2, *, first: bool = True) -> SimpleNamespace:
    """The trainer's state after a save, in the first process or in another one."""
    return SimpleNamespace(global_step=step, is_world_process_zero=first)


def make_callback(**options: Any) -> Any:
    """A callback; transformers is imported only here, since it takes seconds."""
    from lora_workers.trainer_callback import RegisterAdapterCallback

    return RegisterAdapterCallback("support-bot", BASE, **options)


def test_callback_registers_the_checkpoint_just_saved(
    registry: Registry, call: Any, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, from the first process; the copy of the one before goes when that is published."""
    monkeypatch.setenv("LORA_REGISTRY_REDIS_URL", registry.settings.redis_url)
    inbox, arguments = tmp_path / "inbox", SimpleNamespace(output_dir=str(adapter.parent))
    callback = make_callback(inbox=inbox, labels={"run": "7"}, on_error="raise")
    callback.on_save(arguments, saved(first=False), None)
    assert callback.registrations == []
    callback.on_save(arguments, saved(), None)
    publish_everything(registry)
    copy_adapter(adapter.parent / "checkpoint-4", variant=4)
    callback.on_save(arguments, saved(4), None)
    first, second = callback.registrations
    assert (second.adapter.name, second.base_model, second.order) == ("support-bot", BASE, 2)
    assert json.loads(registry.client.hget(registry.keys.accepted(second.id), "event"))["metadata"] == {"step": "4"}
    assert list(inbox.glob("*/*/*")) == [Path(second.source)]
    assert first.source != second.source


def test_callback_leaves_other_checkpoints_alone(
    adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A whole model, or adapters in folders below (LLaMA-Factory's pissa_init): a warning and no registration."""
    output = tmp_path / "whole"
    (output / "checkpoint-2").mkdir(parents=True)
    copy_adapter(output / "checkpoint-2" / "pissa_init")
    callback = make_callback(inbox=tmp_path / "inbox", on_error="raise")
    with caplog.at_level(logging.WARNING):
        callback.on_save(SimpleNamespace(output_dir=str(output)), saved(), None)
    assert callback.registrations == []
    assert "adapter_config.json" in caplog.text
    assert not (tmp_path / "inbox").exists()


def test_callback_without_an_inbox_says_so(adapter: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint that the trainer will remove is not registered where it is; training goes on."""
    with caplog.at_level(logging.WARNING):
        make_callback().on_save(SimpleNamespace(output_dir=str(adapter.parent)), saved(), None)
    assert "LORA_REGISTRY_ADAPTER_INBOX" in caplog.text or "no inbox" in caplog.text


def test_callback_survives_everything(adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Redis down at every save: warnings, and nothing raised into the trainer."""
    callback = make_callback(inbox=tmp_path / "inbox", redis_url="redis://127.0.0.1:1/0")
    callback.on_save(SimpleNamespace(output_dir=str(adapter.parent)), saved(), None)
    assert callback.registrations == []
    assert "REDIS_UNAVAILABLE" in caplog.text


def test_staged_source_of_a_repository_is_no_copy() -> None:
    """Nothing is removed on the Hub."""
    staged = training.stage("org/repo", Settings(adapter_inbox="/inbox"), request={"namespace": "default", "name": "x"})
    assert staged == Staged("hf://org/repo")
