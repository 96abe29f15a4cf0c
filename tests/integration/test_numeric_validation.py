"""The numeric part of validation in real worker processes, forked for the CPU and spawned as for GPUs."""

from __future__ import annotations

import json
import os
import secrets
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lora_registry.findings import Severity
from lora_registry.registrations import Outcome
from lora_registry.stages import ORDER, Stage
from tests.helpers.adapters_on_disk import WEIGHTS
from tests.helpers.servers import remove_keys
from tests.helpers.stack import Stack, make_settings


def commands_of(session: int) -> dict[int, str]:
    """The command lines of all processes of a session, by process id."""
    commands = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getsid(int(directory.name)) == session:
                commands[int(directory.name)] = (directory / "cmdline").read_text()
    return commands


def holding_torch(processes: Iterable[int]) -> set[int]:
    """Those processes that have torch's library in their memory."""
    return {each for each in processes if "/libtorch" in Path(f"/proc/{each}/maps").read_text()}


@pytest.fixture(params=["forked", "spawned"])
def stack(
    request: pytest.FixtureRequest, server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stack]:
    """A running stack that looks at numbers, as it does by default.

    Two GPUs that only the environment names have a spawned child each.
    """
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1" if request.param == "spawned" else "")
    prefix = f"{{test-{secrets.token_hex(6)}}}"
    settings = make_settings(server_url, tmp_path, key_prefix=prefix, numeric="auto", lease_s=10, stall_timeout_s=60)
    stack = Stack(settings, tmp_path)
    try:
        stack.dispatchers()
        stack.worker(*(stage for stage in ORDER if stage is not Stage.VALIDATE))
        validating = stack.worker(Stage.VALIDATE)
        stack.wait_for_slots()
        spawned = [command for command in commands_of(validating.process.pid).values() if "spawn_main" in command]
        assert len(spawned) == (2 if request.param == "spawned" else 0)
        yield stack
    finally:
        stack.close()
    remove_keys(stack.registry.client, prefix)


def test_numbers_decide_in_a_running_stack(stack: Stack) -> None:
    """A good adapter is published, its spectra in the report; one NaN rejects, and the finding names the tensor."""
    good, bad = stack.adapter(), stack.adapter()
    raw = bytearray((bad / WEIGHTS).read_bytes())
    raw[-4:] = struct.pack("<f", float("nan"))
    (bad / WEIGHTS).write_bytes(raw)
    ids = [stack.submit("good", source=good), stack.submit("bad", source=bad)]
    ended = stack.wait_for(ids)
    assert [ended[each].outcome for each in ids] == [Outcome.PUBLISHED, Outcome.REJECTED]
    (finding,) = (each for each in ended[ids[1]].findings if each.severity is Severity.ERROR)
    assert finding.code == "NUMBERS_NOT_FINITE"
    assert finding.subject.startswith("base_model.model.")
    report = json.loads((Path(stack.settings.artifact_store) / "reports" / f"{ids[0]}.json").read_text())
    assert [each["code"] for each in report["findings"]] == ["BASE_NAME_DIFFERS"]
    assert report["spectra"]["device"] == "cpu"
    assert report["spectra"]["bytes_read"] == (good / WEIGHTS).stat().st_size
    assert {family["family"] for family in report["spectra"]["families"]} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    # torch came into the children, and never into the parent that forks them.
    (validating,) = (each.process.pid for each in stack.processes if str(Stage.VALIDATE) in each.arguments)
    processes = commands_of(validating)
    assert holding_torch(processes)
    assert validating not in holding_torch(processes)
