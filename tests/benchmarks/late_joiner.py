"""A subscriber that starts from nothing: how many records a second until it has the whole catalog."""

from __future__ import annotations

import time

from lora_registry.subscriber import Subscriber
from tests.benchmarks.figures import Figure, of_rounds
from tests.benchmarks.small_adapters import BASE
from tests.benchmarks.stand import Stand
from tests.benchmarks.versions import PublishedVersions

_PER_S = 20_000


def run(stand: Stand) -> list[Figure]:
    """Catch-up rate, against reading the same hash page by page and parsing nothing."""
    registry, rounds = stand.large, 2 if stand.quick else 5
    ours, bare = [], []
    for _ in range(rounds):
        ours.append(_joined_per_s(stand, registry))
        bare.append(_read_per_s(registry))
    compared = of_rounds("", "/s", ours, bare)
    name = f"late joiner, {registry.count:,} versions"
    return [
        Figure(name, "records/s", compared.ours, at_least=_PER_S),
        Figure(f"{name}, against reading alone", "records/s", compared.ours, compared.bare, compared.ratio),
    ]


def _joined_per_s(stand: Stand, registry: PublishedVersions) -> float:
    subscriber = Subscriber(BASE, url=stand.url, key_prefix=registry.settings.key_prefix)
    begun = time.perf_counter()
    updates = subscriber.poll()
    took_s = time.perf_counter() - begun
    if len(subscriber.view.versions) != registry.count or not updates[0].changes:
        raise RuntimeError(f"{len(subscriber.view.versions)} of {registry.count} versions arrived")
    return registry.count / took_s


def _read_per_s(registry: PublishedVersions) -> float:
    begun = time.perf_counter()
    read = sum(1 for _ in registry.client.hscan_iter(registry.keys.versions(BASE), count=1000))
    return read / (time.perf_counter() - begun)
