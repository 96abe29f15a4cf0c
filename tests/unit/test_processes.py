"""Child processes: they get what they are given, end when they are asked, and do not outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.helpers.waiting import wait_until

from lora_workers import processes

Child = subprocess.Popen[bytes]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where children print to."""
    return tmp_path / "log"


@pytest.fixture
def started() -> Iterator[list[Child]]:
    """Children to end with the test, whatever came of it."""
    children: list[Child] = []
    yield children
    for child in children:
        processes.kill_group(child)
        child.wait()


def start_shell(script: str, log: Path, started: list[Child], **environment: str) -> Child:
    """A child that runs a shell script."""
    with log.open("ab") as output:
        started.append(processes.start(["/bin/sh", "-c", script], environment=environment, log=output))
    return started[-1]


def wait_for(log: Path, text: str) -> str:
    """Wait until a child has printed a line with a text; returns all it printed."""
    wait_until(lambda: any(text in line and line.endswith("\n") for line in lines_of(log)), what=text)
    return log.read_text()


def lines_of(log: Path) -> list[str]:
    """What children have printed so far."""
    return log.read_text().splitlines(keepends=True)


def is_running(process_id: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process_id}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_child_gets_the_environment_on_top_of_ours(
    log: Path, started: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables of this process are there, and those that are given win."""
    monkeypatch.setenv("OURS", "ours")
    monkeypatch.setenv("BOTH", "ours")
    child = start_shell('echo "$OURS $BOTH $GIVEN"; echo error >&2', log, started, BOTH="given", GIVEN="given")
    assert child.wait(10) == 0
    assert log.read_text().splitlines() == ["ours given given", "error"]


def test_child_reads_no_terminal_and_leads_a_group_of_its_own(log: Path, started: list[Child]) -> None:
    """Ctrl-C reaches the parent only, and a child that asks finds the end of its input."""
    child = start_shell("cat; echo read; sleep 60", log, started)
    wait_for(log, "read")
    assert os.getpgid(child.pid) == child.pid != os.getpgid(0)


def test_child_that_is_asked_to_end_ends_in_order(log: Path, started: list[Child]) -> None:
    """SIGTERM comes first, and its own exit code is returned, also when asked again."""
    child = start_shell("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.01; done", log, started)
    wait_for(log, "ready")
    assert processes.stop(child) == 7
    assert "bye" in log.read_text()
    assert processes.stop(child) == 7


def test_child_that_does_not_listen_is_killed_with_everything_it_started(log: Path, started: list[Child]) -> None:
    """After the time it was given neither it nor its own children run."""
    child = start_shell("trap '' TERM; sleep 60 & echo ready $!; while :; do sleep 0.01; done", log, started)
    grandchild = int(wait_for(log, "ready").split()[1])
    assert is_running(grandchild)
    assert processes.stop(child, within_s=0.1) == -signal.SIGKILL
    wait_until(lambda: not is_running(grandchild), what="the end of the grandchild")


def test_killing_what_has_ended_is_no_error(log: Path, started: list[Child]) -> None:
    """A child may end by itself just before."""
    child = start_shell("exit 0", log, started)
    child.wait(10)
    processes.kill_group(child)
    assert child.returncode == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can bind a process to its parent")
def test_child_dies_with_its_parent(log: Path, started: list[Child]) -> None:
    """A parent that is killed cannot end its children; the kernel does."""
    script = (
        "import time\n"
        "from lora_workers import processes\n"
        "print('child', processes.start(['sleep', '60']).pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with log.open("ab") as output:
        started.append(processes.start([sys.executable, "-c", script], log=output))
    child = int(wait_for(log, "child").split()[1])
    assert is_running(child)
    started[0].kill()
    wait_until(lambda: not is_running(child), what="the end of the child")
