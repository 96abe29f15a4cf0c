"""How long an announcement takes to every subscriber: our publish script against a raw PUBLISH of its size."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence

from tests.benchmarks.figures import Figure, of_rounds, percentile
from tests.benchmarks.small_adapters import BASE
from tests.benchmarks.stand import Stand, child
from tests.benchmarks.versions import PublishedVersions

_RUNS = 5
_PAUSE_S = 0.04
_FOLLOWERS = 100


def run(stand: Stand) -> list[Figure]:
    """100 and 1,000 raw subscribers; then 100 real ones, who read the log when the bell rings."""
    registry = stand.registry("{fan}")
    each = 5 if stand.quick else 20
    figures = []
    for subscribers in (100, 1_000):
        figures += _compare(stand, registry, subscribers, each)
    return [*figures, *_followed(stand, registry, each)]


def _compare(stand: Stand, registry: PublishedVersions, subscribers: int, each: int) -> list[Figure]:
    channel = registry.keys.channel(BASE)
    other = "x" * len(channel)
    leases = iter(registry.leases(f"fan-{subscribers}", _RUNS * each + 1, follow="manual"))
    registry.publish(next(leases))
    message = registry.client.xrevrange(registry.keys.log(BASE), count=1)[0][1]["message"]
    messages = 2 * _RUNS * each
    with child(
        "tests.benchmarks.receiver", stand.socket_path, str(subscribers), str(messages), channel, other
    ) as report:
        report.readline()
        sent = []
        for lease in leases:
            sent.append(_at(lambda lease=lease: registry.publish(lease)))
            sent.append(_at(lambda: registry.client.publish(other, message)))
        arrivals = json.loads(report.readline())
    _check_complete(arrivals, subscribers)
    delays = [_delays_ms(at, came) for at, came in zip(sent, arrivals, strict=True)]
    ours, bare = _by_run(delays[::2], each), _by_run(delays[1::2], each)
    name = f"fan-out to {subscribers:,}"
    return [
        of_rounds(f"{name}, median", "ms", *_of_each(statistics.median, ours, bare), at_most=1.5),
        of_rounds(f"{name}, p99", "ms", *_of_each(lambda run: percentile(run, 99), ours, bare)),
    ]


def _followed(stand: Stand, registry: PublishedVersions, each: int) -> list[Figure]:
    leases = registry.leases("followed", each * _RUNS, follow="manual")
    arguments = (stand.url, registry.settings.key_prefix, BASE, str(_FOLLOWERS), str(len(leases)))
    with child("tests.benchmarks.followers", *arguments) as report:
        report.readline()
        sent = [_at(lambda lease=lease: registry.publish(lease), pause_s=2.5 * _PAUSE_S) for lease in leases]
        arrivals = json.loads(report.readline())
    _check_complete(arrivals, _FOLLOWERS)
    delays = [delay for at, came in zip(sent, arrivals, strict=True) for delay in _delays_ms(at, came)]
    name = f"bell to log read, {_FOLLOWERS} asyncio subscribers in one process"
    return [
        Figure(f"{name}, median", "ms", statistics.median(delays)),
        Figure(f"{name}, p99", "ms", percentile(delays, 99)),
    ]


def _at(publish: Callable[[], object], *, pause_s: float = _PAUSE_S) -> int:
    now = time.monotonic_ns()
    publish()
    time.sleep(pause_s)
    return now


def _delays_ms(sent_ns: int, arrivals_ns: Sequence[int]) -> list[float]:
    return [(arrived - sent_ns) / 1e6 for arrived in arrivals_ns]


def _by_run(delays: Sequence[list[float]], each: int) -> list[list[float]]:
    starts = range(0, len(delays), each)
    return [[delay for some in delays[start : start + each] for delay in some] for start in starts]


def _of_each(figure: Callable[[list[float]], float], *sides: list[list[float]]) -> list[list[float]]:
    return [[figure(run) for run in side] for side in sides]


def _check_complete(arrivals: Sequence[Sequence[int]], subscribers: int) -> None:
    if any(len(each) != subscribers for each in arrivals):
        raise RuntimeError("a subscriber missed a message")
