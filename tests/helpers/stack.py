"""The whole pipeline as real processes, which a test can kill; a killed one is started again, as a supervisor would."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any, TypeVar

from lora_registry.announcements import CatalogView
from lora_registry.client import RegistrationClient
from lora_registry.connection import connect
from lora_registry.errors import RedisUnavailable
from lora_registry.registrations import Outcome, Registration
from lora_registry.settings import Settings
from lora_registry.stages import ALWAYS, Stage
from lora_workers import installation, processes
from lora_workers.base_models import read_base_profile
from tests.helpers.adapters_on_disk import DEMO_DATA, copy_adapter
from tests.helpers.registry import BASE, Registry
from tests.helpers.waiting import wait_until

ROOT = Path(__file__).parents[2]
Result = TypeVar("Result")


def make_settings(url: str, directory: Path, *, key_prefix: str = "{lora}", **changes: Any) -> Settings:
    """Settings under which what takes seconds in production takes tenths of them."""
    fields: dict[str, Any] = {
        "redis_url": url,
        "key_prefix": key_prefix,
        "source_roots": (directory / "sources", DEMO_DATA),
        "artifact_store": directory / "artifacts",
        "lease_s": 1.5,
        "wake_timeout_s": 0.5,
        "sweep_interval_s": 0.2,
        "backoff_first_s": 0.1,
        "backoff_max_s": 1.0,
        "max_attempts": 3,
        "stall_timeout_s": 3.0,
        "numeric": "off",
    }
    return Settings(**(fields | changes))


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment of a process with these settings, which finds the same code as this one."""
    named = installation.environment_of(settings)
    return named | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


@dataclass
class Process:
    """One process of the stack.

    Attributes:
        name: what a failure calls it.
        arguments: arguments of `tests.helpers.worker_process`.
        wanted: whether it is started again when it ends.
    """

    name: str
    arguments: Sequence[str]
    process: Popen[bytes]
    wanted: bool = True
    starts: int = 1
    exits: list[int] = field(default_factory=list)

    def kill(self) -> None:
        """End it and its children as a crash would."""
        processes.kill_group(self.process)
        self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it alone."""
        self.process.send_signal(number)


class Stack:
    """Dispatchers, workers and followers of one registry.

    Args:
        settings: the registry's settings; see `make_settings`.
        directory: for sources, artifacts, logs, and the notes that processes leave for each other.
    """

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.settings = settings
        self.directory = directory
        self.notes = directory / "notes"
        self.sources = directory / "sources"
        for each in (self.notes, self.sources):
            each.mkdir(parents=True, exist_ok=True)
        redis = connect(settings.redis_url, name="tests")
        self.client = RegistrationClient(redis, settings)
        self.registry = Registry(redis, settings)
        self.processes: list[Process] = []
        self._log = (directory / "processes.log").open("ab")
        self._variants = 0

    # Processes

    def start(self, kind: str, *arguments: str, name: str = "") -> Process:
        """Start one process."""
        command = [kind, "--directory", str(self.notes), *arguments]
        started = Process(name or " ".join([kind, *arguments]), command, self._spawn(command))
        self.processes.append(started)
        return started

    def dispatchers(self, count: int = 1, *arguments: str) -> list[Process]:
        """Start dispatchers and register the packaged base model."""
        started = [self.start("dispatcher", *arguments, name=f"dispatcher {number}") for number in range(count)]
        self.registry.catalog.bases.add(read_base_profile(BASE, DEMO_DATA / "bases" / BASE, with_model=False))
        return started

    def worker(self, *stages: Stage, concurrency: int = 1, arguments: Sequence[str] = ()) -> Process:
        """Start a worker of some stages, by default of all that every registration passes."""
        names = ",".join(stages or ALWAYS)
        return self.start("worker", "--stages", names, "--concurrency", str(concurrency), *arguments)

    def tend(self) -> None:
        """Start again whatever has ended and was wanted."""
        for each in self.processes:
            if each.wanted and each.process.poll() is not None:
                each.exits.append(each.process.returncode)
                each.process = self._spawn(each.arguments)
                each.starts += 1

    def wait_for_slots(self) -> None:
        """Wait until every started worker consumes."""
        wanted = dict.fromkeys(Stage, 0)
        for each in self.processes:
            if each.arguments[0] == "worker":
                stages = each.arguments[each.arguments.index("--stages") + 1]
                for stage in stages.split(","):
                    wanted[Stage(stage)] += int(each.arguments[each.arguments.index("--concurrency") + 1])
        for stage, count in wanted.items():
            self.wait_until(
                lambda stage=stage, count=count: self.registry.ledger.pulse(stage).slots >= count,  # type: ignore[misc]
                what=f"{count} slots of {stage}",
            )

    def close(self) -> None:
        """Kill everything that was started, and print the end of what it said."""
        for each in self.processes:
            each.wanted = False
            processes.kill_group(each.process)
        for each in self.processes:
            each.process.wait()
        self._log.close()
        print((self.directory / "processes.log").read_text(errors="replace")[-6000:])

    # Registrations

    def adapter(self, *, name: str = "support-bot") -> Path:
        """A directory with an adapter of bytes that no other has."""
        self._variants += 1
        return copy_adapter(self.sources / f"{name}-{self._variants}", name=name, variant=self._variants)

    def submit(self, name: str, *, source: Path | None = None, fault: str = "", **fields: Any) -> str:
        """Submit one event, of new bytes unless a source is given; `fault` is what happens to its workers."""
        labels = {"fault": fault} if fault else {}
        event = {"name": name, "base_model": BASE, "source": str(source or self.adapter()), "labels": labels}
        return self.client.submit(**(event | fields))

    def wait_until(self, condition: Callable[[], Result], *, what: str, timeout_s: float = 60.0) -> Result:
        """Wait for something while the processes are tended; an outage of the server is waited out."""

        def look() -> Result | None:
            try:
                return condition()
            except RedisUnavailable:
                return None

        return wait_until(look, what=what, timeout_s=timeout_s, every_s=0.05, meanwhile=self.tend)  # type: ignore[return-value]

    def wait_for(self, ids: Iterable[str], *, timeout_s: float = 90.0) -> dict[str, Registration]:
        """Wait until all registrations have ended; returns them by id."""
        ended: dict[str, Registration] = {}
        left = list(ids)

        def all_ended() -> bool:
            for each in list(left):
                registration = self.client.status(each)
                if not registration.outcome:
                    return False
                ended[each] = registration
                left.remove(each)
            return True

        try:
            self.wait_until(all_ended, what=f"the outcome of {len(left)} registrations", timeout_s=timeout_s)
        except AssertionError as error:
            states = {each: self.client.status(each).state for each in left}
            raise AssertionError(f"{error}; {len(left)} left: {dict(list(states.items())[:20])}") from None
        return ended

    def wait_for_stage(self, registration_id: str, stage: Stage) -> None:
        """Wait until a registration is due, or worked on, in `stage`."""
        self.wait_until(
            lambda: self.client.status(registration_id).stage == stage, what=f"{registration_id} in {stage}"
        )

    def times_worked_on(self, registration_id: str, stage: Stage) -> int:
        """How often workers have begun to work on it in `stage`."""
        return len(list(self.notes.glob(f"{registration_id}.{stage}.*")))

    def release(self) -> None:
        """Let those go on that wait for it."""
        (self.notes / "release").touch()

    def queue(self, stage: Stage) -> str:
        """Key of the broker's list of wake-ups of `stage`."""
        return f"{self.settings.key_prefix}:celery:{stage}"

    # Followers

    def follower(self) -> Follower:
        """Start a subscriber process, and wait until it listens."""
        started = Follower(self)
        channel = self.registry.keys.channel(BASE)
        self.wait_until(
            lambda: self.registry.client.pubsub_numsub(channel)[0][1] > 0, what="the follower's subscription"
        )
        return started

    def _spawn(self, arguments: Sequence[str]) -> Popen[bytes]:
        environment = environment_of(self.settings)
        command = [sys.executable, "-m", "tests.helpers.worker_process", *arguments]
        return processes.start(command, environment=environment, log=self._log)


class Follower:
    """A subscriber in a process of its own, which notes every update that it was handed."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._directory = stack.directory / f"follower-{len(stack.processes)}"
        self._directory.mkdir()
        self.process = stack.start("follow", "--base", BASE, "--directory", str(self._directory))

    def updates(self) -> list[dict[str, Any]]:
        """What it was handed so far."""
        notes = self._directory / "updates.jsonl"
        return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []

    def finish(self) -> CatalogView:
        """Wait until it has come to the head of the log, end it, and return what it holds."""
        core = self._stack.registry.view().cursor

        def at_head() -> bool:
            last = self.updates()[-1:]
            return bool(last) and (last[0]["generation"], last[0]["sequence"]) == (core.generation, core.sequence)

        self._stack.wait_until(at_head, what="the follower at the head of the log")
        self.process.wanted = False
        self.process.signal(signal.SIGTERM)
        self.process.process.wait(10)
        return CatalogView.from_json((self._directory / "view.json").read_text())


def check_promises(stack: Stack, ended: dict[str, Registration], *, follower: Follower | None = None) -> None:
    """What must hold at the end of every run, whatever was killed in it."""
    versions = list(stack.registry.catalog.select(base_model=BASE))
    ids = [record.lora_int_id for record in versions]
    assert len(set(ids)) == len(ids), "an id was issued twice"
    assert all(0 < each < 2**31 for each in ids)
    published = {each.served_name: each for each in ended.values() if each.outcome is Outcome.PUBLISHED}
    named = [each for each in ended.values() if each.outcome is Outcome.PUBLISHED]
    assert len(published) == len(named), "a served name was published twice"
    catalog = {record.served_name: record for record in versions}
    for name, registration in published.items():
        assert catalog[name].registration_id == registration.id
        assert catalog[name].lora_int_id == registration.lora_int_id
    for messages in (stack.registry.log(),):
        announced = [json.loads(message)["subject"] for message in messages if "version.published" in message]
        assert len(set(announced)) == len(announced), "a version was announced twice"
    if follower:
        check_same_catalog(stack, follower)


def check_same_catalog(stack: Stack, follower: Follower) -> None:
    """The subscriber that lived through it, one that starts now, and the catalog hold the same."""
    lived, fresh = follower.finish(), stack.registry.view()
    assert lived == fresh
    assert fresh.versions == {each.field: each for each in stack.registry.catalog.select(base_model=BASE)}
    updates = follower.updates()
    for before, after in itertools.pairwise(updates):
        if not after["reset"]:
            assert after["generation"] == before["generation"]
            assert after["sequence"] == before["sequence"] + 1, "an announcement was skipped or came twice"
