"""From an event that names a repository or a prefix to a published version, on real processes and a real S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_registry.registrations import Outcome
from lora_registry.stages import Stage
from tests.helpers.adapters_on_disk import WEIGHTS as WEIGHTS_FILE
from tests.helpers.adapters_on_disk import copy_adapter
from tests.helpers.hub_server import TOKEN, HubServer
from tests.helpers.registry import BASE
from tests.helpers.s3_server import ACCESS_KEY, SECRET_KEY, UNVERSIONED, VERSIONED, S3Server
from tests.helpers.servers import remove_keys
from tests.helpers.sources import unique, write_credentials
from tests.helpers.stack import Stack, make_settings


@pytest.fixture(scope="module")
def stack(
    server_url: str, s3_server: S3Server, hub_server: HubServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """One dispatcher and one worker of all stages, which know both servers by credentials of their own."""
    directory = tmp_path_factory.mktemp("stack")
    named = {"default-s3": s3_server.credential(), "default-hub": hub_server.credential()}
    settings = make_settings(
        server_url,
        directory,
        key_prefix=f"{{{unique('sources')}}}",
        credentials_file=write_credentials(directory, named),
        incomplete_deadlines_s={"file": 0.5, "hf": 60.0, "s3": 60.0},
        backoff_max_s=0.2,
        max_attempts=1,
    )
    stack = Stack(settings, directory)
    stack.registry.admit()
    stack.dispatchers()
    stack.worker()
    yield stack
    stack.close()
    remove_keys(stack.registry.client, settings.key_prefix)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of bytes that no other test has."""
    return copy_adapter(tmp_path / "adapter", variant=int.from_bytes(unique()[-2:].encode(), "little"))


def test_upload_whose_config_comes_before_its_weights_is_published_once(
    stack: Stack, s3_server: S3Server, adapter: Path
) -> None:
    """It is looked at again until the weights are there; the waiting costs no attempt and ends in one version."""
    prefix, name = f"{VERSIONED}/{unique()}", unique("early")
    config, weights = (adapter / each for each in ("adapter_config.json", WEIGHTS_FILE))
    s3_server.put(f"{prefix}/{config.name}", config)
    waiting = stack.submit(name, source=f"s3://{prefix}")  # type: ignore[arg-type] # a URL
    stack.wait_until(lambda: stack.times_worked_on(waiting, Stage.RESOLVE) >= 3, what="three looks at the prefix")
    s3_server.put(f"{prefix}/{weights.name}", weights.read_bytes()[:-100])
    looks = stack.times_worked_on(waiting, Stage.RESOLVE)
    stack.wait_until(lambda: stack.times_worked_on(waiting, Stage.RESOLVE) >= looks + 3, what="looks at half of it")
    assert not stack.client.status(waiting).outcome
    s3_server.put(f"{prefix}/{weights.name}", weights)
    ended = stack.wait_for([waiting])[waiting]
    assert (ended.outcome, ended.attempts) == (Outcome.PUBLISHED, 0)
    published = stack.registry.catalog.select(base_model=BASE)
    assert [each.served_name for each in published if each.served_name.startswith(name)] == [ended.served_name]


def test_commit_that_is_not_there_yet_is_waited_for(stack: Stack, hub_server: HubServer, adapter: Path) -> None:
    """A webhook names a commit that the Hub answers 404 for a moment longer."""
    repo = f"team/{unique()}"
    commit = hub_server.commit_directory(repo, adapter, missing_answers=3)
    registration = stack.submit(unique("fresh"), source=f"hf://{repo}@{commit}")  # type: ignore[arg-type] # a URL
    ended = stack.wait_for([registration])[registration]
    assert (ended.outcome, ended.attempts) == (Outcome.PUBLISHED, 0)
    assert stack.times_worked_on(registration, Stage.RESOLVE) == 4


def test_object_that_changes_between_the_stages_is_refused_and_its_own_event_registers_it(
    stack: Stack, s3_server: S3Server, adapter: Path
) -> None:
    """What was resolved is what is validated, or nothing is; the new bytes are published by the event about them."""
    prefix, name = f"{UNVERSIONED}/{unique()}", unique("changed")
    s3_server.put_directory(adapter, prefix)
    (stack.notes / "release").unlink(missing_ok=True)
    first = stack.submit(name, source=f"s3://{prefix}", fault="hold:validate")  # type: ignore[arg-type] # a URL
    stack.wait_until(lambda: stack.times_worked_on(first, Stage.VALIDATE) == 1, what="the validate stage")
    changed = bytearray((adapter / WEIGHTS_FILE).read_bytes())
    changed[-1] ^= 1
    s3_server.put(f"{prefix}/{WEIGHTS_FILE}", bytes(changed))
    second = stack.submit(name, source=f"s3://{prefix}")  # type: ignore[arg-type] # a URL
    stack.release()
    ended = stack.wait_for([first, second])
    assert ended[first].outcome is Outcome.REJECTED
    assert [finding.code for finding in ended[first].findings] == ["SOURCE_CHANGED"]
    assert ended[second].outcome is Outcome.PUBLISHED


def test_upload_that_is_never_finished_is_rejected_for_what_is_missing(stack: Stack) -> None:
    """At the deadline the findings name the file, and say that the time was up."""
    directory = stack.adapter()
    (directory / WEIGHTS_FILE).unlink()
    registration = stack.submit(unique("never"), source=directory)
    ended = stack.wait_for([registration])[registration]
    assert ended.outcome is Outcome.REJECTED
    assert [(finding.code, finding.subject) for finding in ended.findings] == [
        ("FILE_MISSING", WEIGHTS_FILE),
        ("SOURCE_INCOMPLETE", WEIGHTS_FILE),
    ]
    assert stack.times_worked_on(registration, Stage.RESOLVE) >= 3


def test_secrets_are_neither_in_redis_nor_in_the_log(stack: Stack, s3_server: S3Server, adapter: Path) -> None:
    """A registration that used credentials, and one that was refused, left only names behind."""
    prefix = f"{VERSIONED}/{unique()}"
    s3_server.put_directory(adapter, prefix)
    urls = [f"s3://{prefix}", "hf://team/nothing-here", f"s3://{unique('bucket')}/x"]
    ids = [stack.submit(unique("secret"), source=url) for url in urls]  # type: ignore[arg-type] # URLs
    outcomes = [each.outcome for each in stack.wait_for(ids).values()]
    assert sorted(str(each) for each in outcomes) == ["published", "rejected", "rejected"]
    kept = (stack.directory / "processes.log").read_text() + _everything_in(stack)
    assert "registration" in kept
    for secret in (SECRET_KEY, ACCESS_KEY, TOKEN):
        assert secret not in kept


def _everything_in(stack: Stack) -> str:
    """All keys of the registry with their values."""
    redis = stack.registry.client
    readers = {
        "hash": redis.hgetall,
        "string": redis.get,
        "list": lambda key: redis.lrange(key, 0, -1),
        "stream": redis.xrange,
        "zset": lambda key: redis.zrange(key, 0, -1),
        "set": redis.smembers,
        "none": lambda key: "gone meanwhile",
    }
    keys = list(redis.scan_iter(f"{stack.settings.key_prefix}*"))
    return "\n".join(f"{key} {readers[redis.type(key)](key)}" for key in keys)
