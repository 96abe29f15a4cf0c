"""A thousand registrations at once, from eight publisher processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict

from lora_registry.registrations import Outcome
from lora_registry.stages import ALWAYS
from tests.helpers.adapters_on_disk import copy_adapter
from tests.helpers.registry import BASE
from tests.helpers.stack import Stack, check_promises, environment_of

PUBLISHERS, EVENTS = 8, 125


def test_1000_registrations_by_8_publishers(stack: Stack) -> None:
    """1,000 outcomes; ids unique; numbers in the order of acceptance; each alias at the newest bytes.

    Half of each publisher's events go to adapters that all publishers write to, half to its own. There are two
    dispatchers and two worker slots for each stage.
    """
    contents = [str(copy_adapter(stack.sources / f"content-{number}", variant=number)) for number in range(1, 101)]
    stack.dispatchers(2)
    for stage in ALWAYS:
        stack.worker(stage, concurrency=2)
    follower = stack.follower()
    publishers = []
    for publisher in range(PUBLISHERS):
        jobs, results = (stack.directory / f"{kind}-{publisher}.jsonl" for kind in ("jobs", "results"))
        events = [
            {
                "name": f"shared-{number % 10}" if number % 2 else f"own-{publisher}-{number % 6}",
                "base_model": BASE,
                "source": contents[(publisher * EVENTS + number * 7) % len(contents)],
            }
            for number in range(EVENTS)
        ]
        jobs.write_text("\n".join(map(json.dumps, events)))
        command = [sys.executable, "-m", "tests.helpers.publishers", str(jobs), str(results)]
        environment = {**os.environ, **environment_of(stack.settings)}
        publishers.append((subprocess.Popen(command, env=environment), results))
    submitted = []
    for process, results in publishers:
        assert process.wait(60) == 0
        submitted += [json.loads(line) for line in results.read_text().splitlines()]
    ended = stack.wait_for([each["id"] for each in submitted], timeout_s=180)

    assert len(ended) == PUBLISHERS * EVENTS
    assert {each.outcome for each in ended.values()} == {Outcome.PUBLISHED, Outcome.UNCHANGED}
    by_adapter = defaultdict(list)
    for each in submitted:
        by_adapter[each["name"]].append(each)
    for name, events in by_adapter.items():
        orders = sorted(ended[each["id"]].order for each in events)
        assert orders == list(range(1, len(events) + 1))
        for one in events:
            later = [other for other in events if one["ended"] < other["began"]]
            assert all(ended[one["id"]].order < ended[other["id"]].order for other in later)
        for each in events:
            if ended[each["id"]].outcome is Outcome.PUBLISHED:
                assert ended[each["id"]].version == ended[each["id"]].order
        newest = max(events, key=lambda each: ended[each["id"]].order)
        assert stack.registry.version(name).digest == ended[newest["id"]].digest
    check_promises(stack, ended, follower=follower)
