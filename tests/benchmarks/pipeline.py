"""Whole registrations of small adapters, artifacts fsynced, against Celery doing nothing four times.

Both have one server and the same settings, and one worker with one child for each stage; ours has a dispatcher.
"""

from __future__ import annotations

import json
import random
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import redis

from lora_registry.client import RegistrationClient
from lora_registry.keys import Keys
from lora_registry.ledger import Ledger
from lora_registry.stages import ALWAYS
from tests.benchmarks.bare_pipeline import CHANNEL, QUEUES, make_bare_app, send
from tests.benchmarks.figures import Figure, of_rounds, percentile
from tests.benchmarks.small_adapters import BASE, base_profile, write_adapters
from tests.benchmarks.stand import Stand

_PREFIX = "{bench}"
_TIMEOUT_S = 60.0
_RATE_PER_S = 10.0


def run(stand: Stand) -> list[Figure]:
    """Throughput of bursts, then latency at low load."""
    settings = stand.settings(_PREFIX)
    stand.start("lora_workers", "dispatcher", settings=settings)
    for stage in ALWAYS:
        stand.start("lora_workers", "worker", "--queues", stage.value, settings=settings)
    for queue in QUEUES:
        stand.start("tests.benchmarks.bare_pipeline", stand.url, queue)
    ours, bare = _Ours(stand), _Bare(stand)
    burst, rounds, few = (100, 2, 10) if stand.quick else (400, 5, 20)
    try:
        for side in (ours, bare):
            side.burst(10)  # opens every connection
        figures = [_throughput(ours, bare, burst=burst, rounds=rounds)]
        return figures + _latency(ours, bare, few=few, rounds=3 if stand.quick else 5)
    except TimeoutError:
        print(stand.log_tail())
        raise
    finally:
        stand.stop()


class _Side:
    """One of the two pipelines, submitted to from here; what has ended is heard on a channel."""

    def __init__(self, stand: Stand) -> None:
        self._client = stand.connect()

    def prepare(self, count: int) -> list[Callable[[], str]]:
        """Calls that each submit one item and return its id."""
        raise NotImplementedError

    def ended(self) -> redis.client.PubSub:
        """Rings once for each item that has ended."""
        raise NotImplementedError

    def announced(self) -> redis.client.PubSub:
        """Rings when an item's result may be used."""
        return self.ended()

    def id_of(self, message: str) -> str | None:
        """Which item a message of `announced` is about."""
        return message

    def burst(self, count: int) -> float:
        """Items per second, from the first submitted to the last ended."""
        submits = self.prepare(count)
        with self.ended() as bell:
            begun = time.monotonic()
            self.submit_all(submits)
            for _ in range(count):
                _next(bell)
            return count / (time.monotonic() - begun)

    def submit_all(self, submits: list[Callable[[], str]]) -> None:
        for submit in submits:
            submit()

    def latencies_ms(self, count: int) -> list[float]:
        """From submitting each item to hearing of it, at random times."""
        submits = self.prepare(count)
        submitted: dict[str, float] = {}
        heard: dict[str, float] = {}

        def listen() -> None:
            while len(heard) < count:
                message = _next(bell)
                now = time.monotonic()
                if item := self.id_of(message):
                    heard[item] = now

        with self.announced() as bell:
            listener = threading.Thread(target=listen, daemon=True)
            listener.start()
            for submit in submits:
                time.sleep(random.expovariate(_RATE_PER_S))
                now = time.monotonic()
                submitted[submit()] = now
            listener.join(_TIMEOUT_S)
        return [1000 * (heard[item] - at) for item, at in submitted.items()]


class _Ours(_Side):
    def __init__(self, stand: Stand) -> None:
        super().__init__(stand)
        settings = stand.settings(_PREFIX)
        self._keys = Keys(settings.key_prefix)
        self._publisher = RegistrationClient(self._client, settings)
        self._directory, self._made = stand.directory / "adapters", 0
        self._publisher.catalog.bases.add(base_profile())
        _wait_for(lambda: bool(self._client.exists(self._keys.server)))  # the dispatcher has admitted it
        ledger = Ledger(self._client, settings)
        _wait_for(lambda: all(ledger.pulse(stage).slots for stage in ALWAYS))

    def prepare(self, count: int) -> list[Callable[[], str]]:
        names = [f"adapter-{self._made + number}" for number in range(count)]
        self._made += count
        paths = write_adapters(self._directory, names)
        return [self._submit(name, path) for name, path in zip(names, paths, strict=True)]

    def _submit(self, name: str, path: Path) -> Callable[[], str]:
        return lambda: self._publisher.submit(name=name, base_model=BASE, source=str(path))

    def ended(self) -> redis.client.PubSub:
        bell = self._client.pubsub()
        bell.psubscribe(self._keys.outcome_channel("*"))
        return _subscribed(bell)

    def announced(self) -> redis.client.PubSub:
        bell = self._client.pubsub()
        bell.subscribe(self._keys.channel(BASE))
        return _subscribed(bell)

    def id_of(self, message: str) -> str | None:
        registration_id: str | None = json.loads(message)["data"].get("registration_id")
        return registration_id

    def burst(self, count: int) -> float:
        before = self._client.hlen(self._keys.versions(BASE))
        rate = super().burst(count)
        published = self._client.hlen(self._keys.versions(BASE)) - before
        if published != count:
            raise RuntimeError(f"{count} adapters were submitted, {published} published")
        return rate


class _Bare(_Side):
    def __init__(self, stand: Stand) -> None:
        super().__init__(stand)
        self._app, self._made = make_bare_app(stand.url), 0

    def prepare(self, count: int) -> list[Callable[[], str]]:
        items = [f"item-{self._made + number}" for number in range(count)]
        self._made += count
        return [self._submit(item) for item in items]

    def _submit(self, item: str) -> Callable[[], str]:
        def submit() -> str:
            send(self._app, [item])
            return item

        return submit

    def ended(self) -> redis.client.PubSub:
        bell = self._client.pubsub()
        bell.subscribe(CHANNEL)
        return _subscribed(bell)


def _throughput(ours: _Side, bare: _Side, *, burst: int, rounds: int) -> Figure:
    rates = [(ours.burst(burst), bare.burst(burst)) for _ in range(rounds)]
    mine, other = zip(*rates, strict=True)
    return of_rounds(f"pipeline: throughput, bursts of {burst}", "/s", mine, other, at_least=1.0)


def _latency(ours: _Side, bare: _Side, *, few: int, rounds: int) -> list[Figure]:
    mine: list[float] = []
    other: list[float] = []
    for _ in range(rounds):
        mine += ours.latencies_ms(few)
        other += bare.latencies_ms(few)
    name = f"pipeline: submit to announced, {_RATE_PER_S:g}/s"
    medians = statistics.median(mine), statistics.median(other)
    tails = percentile(mine, 99), percentile(other, 99)
    return [
        Figure(f"{name}, median", "ms", *medians, ratio=medians[0] / medians[1], at_most=2.0),
        Figure(f"{name}, p99", "ms", *tails, ratio=tails[0] / tails[1]),
    ]


def _subscribed(bell: redis.client.PubSub) -> redis.client.PubSub:
    bell.get_message(timeout=5)
    return bell


def _next(bell: redis.client.PubSub) -> str:
    message = bell.get_message(ignore_subscribe_messages=True, timeout=_TIMEOUT_S)
    if message is None:
        raise TimeoutError(f"nothing was heard for {_TIMEOUT_S:g} s")
    return str(message["data"])


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the processes did not start")
        time.sleep(0.05)
