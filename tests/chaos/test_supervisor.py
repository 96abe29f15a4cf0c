"""The supervisor of `lora-registry up`: it starts again what ends, and what lives on without claiming."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_registry.registrations import Outcome
from lora_registry.stages import ALWAYS
from lora_workers import processes
from lora_workers.supervisor import Child, Supervisor
from tests.helpers.stack import Stack, environment_of
from tests.helpers.waiting import wait_until

STALL_TIMEOUT_S = 2.0
Supervise = Callable[..., Supervisor]


@pytest.fixture
def supervise(stack: Stack) -> Iterator[Supervise]:
    """Starts children under a supervisor; kills them at the end."""
    made: list[Supervisor] = []

    def start(child: Child, *, stall_timeout_s: float = STALL_TIMEOUT_S) -> Supervisor:
        supervisor = Supervisor([child], ledger=stack.registry.ledger, stall_timeout_s=stall_timeout_s)
        made.append(supervisor)
        supervisor.start()
        if child.stages:
            # A start that takes longer than the stall timeout of these tests would look like a stall.
            wait_until(lambda: stack.registry.ledger.pulse(ALWAYS[-1]).slots, what="a worker that consumes")
        return supervisor

    yield start
    for child in [child for supervisor in made for child in supervisor.children if child.process]:
        assert child.process is not None
        processes.kill_group(child.process)
        child.process.wait()


def worker_child(stack: Stack) -> Child:
    """A worker of all stages."""
    command = [sys.executable, "-m", "tests.helpers.worker_process", "worker", "--directory", str(stack.notes)]
    return Child(
        "worker", command, stages=ALWAYS, environment=environment_of(stack.settings), log=stack.directory / "worker.log"
    )


def wait_for_published(stack: Stack, supervisor: Supervisor, registration_id: str) -> None:
    """Wait for the outcome while the supervisor looks."""
    wait_until(
        lambda: stack.client.status(registration_id).outcome is not None,
        what="the outcome",
        timeout_s=60,
        every_s=0.1,
        meanwhile=supervisor.look,
    )
    assert stack.client.status(registration_id).outcome is Outcome.PUBLISHED


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_worker_that_exits_is_started_again(stack: Stack, supervise: Supervise, number: signal.Signals) -> None:
    """A worker that ended, by a crash or in order, is replaced, and work goes on."""
    stack.dispatchers()
    child = worker_child(stack)
    supervisor = supervise(child, stall_timeout_s=60.0)
    wait_for_published(stack, supervisor, stack.submit("before"))
    assert child.process is not None
    child.process.send_signal(number)
    child.process.wait(30)
    wait_for_published(stack, supervisor, stack.submit("after"))
    assert child.restarts == 1


def test_worker_that_stops_claiming_is_started_again(stack: Stack, supervise: Supervise) -> None:
    """A worker that lives on and takes no due work (here: SIGSTOP) is killed and replaced."""
    stack.dispatchers()
    child = worker_child(stack)
    supervisor = supervise(child)
    wait_for_published(stack, supervisor, stack.submit("before"))
    assert child.process is not None
    stopped = child.process.pid
    child.process.send_signal(signal.SIGSTOP)
    wait_for_published(stack, supervisor, stack.submit("after"))
    assert child.process.pid != stopped
    assert not Path(f"/proc/{stopped}").exists()


def test_idle_workers_are_left_alone(stack: Stack, supervise: Supervise) -> None:
    """Without due work nobody is restarted, however long it is quiet."""
    stack.dispatchers()
    child = worker_child(stack)
    supervisor = supervise(child)
    wait_for_published(stack, supervisor, stack.submit("before"))
    quiet_s = 2 * STALL_TIMEOUT_S
    wait_until(
        lambda: (stack.registry.ledger.pulse(ALWAYS[-1]).since_claim_s or 0) > quiet_s,
        what=f"{quiet_s:g} s without a claim",
        meanwhile=supervisor.look,
    )
    assert child.restarts == 0


def test_busy_worker_is_left_alone(stack: Stack, supervise: Supervise) -> None:
    """While a long validation runs, with more work due behind it, its worker is not taken for a hanging one."""
    stack.dispatchers()
    child = worker_child(stack)
    supervisor = supervise(child)
    slow, behind = stack.submit("slow", fault="hold:validate"), stack.submit("behind")
    wait_until(
        lambda: stack.registry.ledger.pulse(ALWAYS[-2]).oldest_due_s > 2 * STALL_TIMEOUT_S,
        what="work that waits behind the slow one",
        meanwhile=supervisor.look,
    )
    assert child.restarts == 0
    stack.release()
    for each in (slow, behind):
        wait_for_published(stack, supervisor, each)


def test_process_that_dies_at_once_is_not_started_in_a_tight_loop(stack: Stack, supervise: Supervise) -> None:
    """Each start of a process that dies young waits longer than the one before."""
    child = Child("dies", [sys.executable, "-c", "raise SystemExit(3)"], log=stack.directory / "dies.log")
    supervisor = supervise(child)
    delays = []

    def restarted_three_times() -> bool:
        supervisor.look()
        delays.append(child.delay_s)
        return child.restarts >= 3

    wait_until(restarted_three_times, what="three restarts")
    assert sorted(set(delays)) == delays[:1] + [delay for delay in (0.2, 0.4, 0.8) if delay not in delays[:1]]


def test_server_ends_with_its_parent(tmp_path: Path) -> None:
    """A server or worker does not outlive a parent that was killed."""
    code = (
        "import sys, time; from pathlib import Path; from lora_workers import processes;"
        "child = processes.start([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "Path(sys.argv[1]).write_text(str(child.pid)); time.sleep(600)"
    )
    note = tmp_path / "pid"
    parent = processes.start([sys.executable, "-c", code, note])
    pid = int(wait_until(lambda: note.exists() and note.read_text(), what="the child's process id"))
    parent.kill()
    parent.wait()

    def gone() -> bool:
        status = Path(f"/proc/{pid}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"

    wait_until(gone, what="the child's end")
