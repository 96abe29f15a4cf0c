"""One process of a test's stack: `python -m tests.helpers.worker_process worker|dispatcher|follow …`.

A worker does what the registration's label `fault` says, once for each registration unless it is noted otherwise:

    kill-before:STAGE    SIGKILL the whole worker when the stage's work is done but not committed
    kill-after:STAGE     SIGKILL it right after the commit, before it can wake anybody
    kill-child:STAGE     as kill-before, but only the pool's child process
    poison:STAGE         SIGKILL the worker each time
    hold:STAGE           wait before the stage's work until the file `release` exists
    meet:STAGE:N         wait before the stage's work until N registrations have come there
    unfit:STAGE          say, once, that the process cannot work any more
    kill-rename:STAGE:WHEN   SIGKILL it before or after the rename that makes an artifact visible
    change:STAGE         change a byte of the source's weights before the stage's work
    stop:STAGE           SIGSTOP the worker before the stage's work
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from lora_registry.errors import ProcessUnfit
from lora_registry.inbox import Entry, Inbox
from lora_registry.ledger import Lease, Ledger
from lora_registry.settings import load_settings
from lora_registry.stages import Stage
from lora_registry.subscriber import Subscriber
from lora_registry.work import Perform
from lora_workers import dispatcher, local_artifacts, tasks, worker
from tests.helpers.adapters_on_disk import change_a_byte
from tests.helpers.waiting import wait_until

Done = Mapping[str, str | int] | None


class Faults:
    """What goes wrong in this worker, as the labels of registrations ask for it.

    Args:
        directory: where processes tell each other what has happened already.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def around(self, stage: Stage, perform: Perform) -> Perform:
        """Put the faults around a stage's function."""

        def perform_with_faults(lease: Lease) -> Done:
            self._before_work(lease)
            if stage is Stage.PUBLISH:  # it commits by itself
                self._strike(lease, "kill-before", "kill-child")
                done = perform(lease)
                self._strike(lease, "kill-after")
                return done
            done = perform(lease)
            self._strike(lease, "kill-before", "kill-child")
            return done

        return perform_with_faults

    def after_commits(self) -> None:
        """Have every other stage's commit followed by its fault."""
        complete = Ledger.complete

        def complete_with_fault(ledger: Ledger, lease: Lease, fields: Mapping[str, str | int]) -> int:
            wake_ups = complete(ledger, lease, fields)
            self._strike(lease, "kill-after")
            return wake_ups

        Ledger.complete = complete_with_fault  # type: ignore[method-assign]

    def _before_work(self, lease: Lease) -> None:
        self._note(lease, "worked-on", once=False)
        kind, *count = self._fault(lease)
        if kind == "poison":
            _kill_worker()
        if kind == "stop" and self._note(lease, kind):
            os.killpg(0, signal.SIGSTOP)
        if kind == "change" and self._note(lease, kind):
            change_a_byte(Path(lease.registration.source))
        if kind == "unfit" and self._note(lease, kind):
            (self._directory / "unfit-process").write_text(str(os.getpid()))
            raise ProcessUnfit("the GPU failed: a CUDA error that stays")
        if kind == "kill-rename" and self._note(lease, kind):
            _die_at_the_rename(count[0])
        if kind == "hold":
            wait_until((self._directory / "release").exists, what="release", timeout_s=120)
        if kind == "meet":
            self._note(lease, kind)
            wait_until(
                lambda: len(list(self._directory.glob("*.meet"))) >= int(count[0]), what="the others", timeout_s=120
            )

    def _strike(self, lease: Lease, *kinds: str) -> None:
        kind = self._fault(lease)[0]
        if kind in kinds and self._note(lease, kind):
            if kind == "kill-child":
                os.kill(os.getpid(), signal.SIGKILL)
            _kill_worker()

    def _fault(self, lease: Lease) -> list[str]:
        kind, _, rest = lease.registration.labels.get("fault", "").partition(":")
        stage, *more = rest.split(":")
        return [kind, *more] if stage == lease.stage else [""]

    def _note(self, lease: Lease, kind: str, *, once: bool = True) -> bool:
        """Leave a note that it happened; false if there is one already."""
        name = f"{lease.registration.id}.{kind}" if once else f"{lease.registration.id}.{lease.stage}.{lease.epoch}"
        try:
            (self._directory / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def _kill_worker() -> NoReturn:
    os.killpg(0, signal.SIGKILL)
    raise AssertionError("killed")


def _die_at_the_rename(moment: str) -> None:
    rename = local_artifacts.rename_into_place

    def rename_and_die(directory: Path, target: Path) -> None:
        if moment == "after":
            rename(directory, target)
        _kill_worker()

    local_artifacts.rename_into_place = rename_and_die


def _send_every_wake_up_twice() -> None:
    for module in (tasks, dispatcher):
        send = module.send_wake_ups
        module.send_wake_ups = lambda app, stage, count, send=send: send(app, stage, 2 * count)  # type: ignore[attr-defined]


def _die_at_an_event(directory: Path, moment: str, number: int) -> None:
    """SIGKILL the dispatcher, once, before or after it dispatches its `number`-th event."""
    dispatch, seen = Inbox.dispatch, 0

    def dispatch_or_die(inbox: Inbox, entry: Entry) -> int:
        nonlocal seen
        seen += 1
        strikes = seen == number and not (directory / "dispatcher-died").exists()
        if strikes:
            (directory / "dispatcher-died").touch()
        if strikes and moment == "before":
            _kill_worker()
        wake_ups = dispatch(inbox, entry)
        if strikes:
            _kill_worker()
        return wake_ups

    Inbox.dispatch = dispatch_or_die  # type: ignore[method-assign]


def _follow(base: str, directory: Path) -> None:
    """Follow a base model's catalog; note each update, and at the end (SIGTERM) the whole view."""
    settings = load_settings()
    subscriber = Subscriber(base, url=settings.redis_url, key_prefix=settings.key_prefix)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with (directory / "updates.jsonl").open("a", buffering=1) as notes:
            for update in subscriber.follow():
                note = {
                    "generation": update.cursor.generation,
                    "sequence": update.cursor.sequence,
                    "reset": update.reset,
                    "gone": update.gone,
                    "changes": [[change.kind, change.subject] for change in update.changes],
                }
                notes.write(json.dumps(note) + "\n")
    finally:
        (directory / "view.json").write_text(subscriber.view.to_json())


def main() -> int:
    """Run the process that the arguments name."""
    logging.basicConfig(format="%(asctime)s %(process)d %(name)s %(levelname)s %(message)s")
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["worker", "dispatcher", "follow"])
    parser.add_argument("--stages", default=",".join(Stage))
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--base", default="")
    parser.add_argument("--double", action="store_true", help="send every wake-up twice")
    parser.add_argument("--die", default="", help="before:N or after:N, for a dispatcher")
    given = parser.parse_args()
    settings = load_settings()
    if given.double:
        _send_every_wake_up_twice()
    if given.die:
        moment, _, number = given.die.partition(":")
        _die_at_an_event(given.directory, moment, int(number))
    if given.kind == "dispatcher":
        dispatcher.Dispatcher(settings).run()
        return 0
    if given.kind == "follow":
        _follow(given.base, given.directory)
        return 0
    faults = Faults(given.directory)
    faults.after_commits()
    stages = [Stage(stage) for stage in given.stages.split(",")]
    return worker.run_worker(settings, stages, concurrency=given.concurrency, around=faults.around)


if __name__ == "__main__":
    sys.exit(main())
