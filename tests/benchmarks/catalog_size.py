"""What a published version costs in memory, and whether looking one up stays as fast as versions add up."""

from __future__ import annotations

import random
import time

from lora_registry.names import Reference, parse_reference
from tests.benchmarks.figures import Figure, of_rounds
from tests.benchmarks.small_adapters import BASE
from tests.benchmarks.stand import Stand
from tests.benchmarks.versions import PublishedVersions

_MOST_BYTES = 2048
_FLAT = 1.25
_LOOKUPS = 100
_PAGE = 1000


def run(stand: Stand) -> list[Figure]:
    """Memory of a small and a large registry, and lookups in both, in turns."""
    figures = []
    for registry in (stand.small, stand.large):
        figures += _memory(registry)
    figures.append(Figure("memory of a finished registration, 7 days", "B", _finished_bytes(stand)))
    rounds = 5 if stand.quick else 20
    sizes = f"{stand.large.count:,} versions (bare: {stand.small.count:,})"
    for what, form in (("by version", "adapter-{}.v{}"), ("by alias", "adapter-{}")):
        large, small = [], []
        for _ in range(rounds):
            large.append(_lookup_us(stand.large, form))
            small.append(_lookup_us(stand.small, form))
        figures.append(of_rounds(f"lookup {what} in {sizes}", "us", large, small, at_most=_FLAT))
    return figures


def _memory(registry: PublishedVersions) -> list[Figure]:
    log = registry.keys.log(BASE)
    # All that stays for as long as the versions do: the catalog, and the last number of each adapter.
    patterns = (f"{registry.keys.catalog}:*", f"{registry.keys.prefix}:inbox:number:*")
    kept = sum(_bytes(registry, pattern) for pattern in patterns)
    entries = int(registry.client.xlen(log))
    name = f"of {registry.count:,}"
    return [
        Figure(f"memory per version, {name}", "B", kept / registry.count, at_most=_MOST_BYTES),
        Figure(f"memory per log entry, {name}", "B", _bytes(registry, log) / entries, at_most=_MOST_BYTES),
    ]


def _finished_bytes(stand: Stand) -> int:
    registry = stand.registry("{finished}")
    return int(registry.client.memory_usage(registry.finished(), samples=0) or 0)


def _bytes(registry: PublishedVersions, pattern: str) -> int:
    keys = list(registry.client.scan_iter(match=pattern, count=_PAGE))
    with registry.client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.memory_usage(key, samples=0)
        return sum(pipeline.execute())


def _lookup_us(registry: PublishedVersions, form: str) -> float:
    references = [_random_reference(registry.count, form) for _ in range(_LOOKUPS)]
    begun = time.perf_counter()
    for reference in references:
        registry.catalog.version(reference)
    return 1e6 * (time.perf_counter() - begun) / _LOOKUPS


def _random_reference(count: int, form: str) -> Reference:
    number = random.randrange(count)
    return parse_reference(form.format(number // 10, number % 10 + 1))
