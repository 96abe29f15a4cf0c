"""Issuing a `lora_int_id` to a registration, and being asked again, against a script that does one INCR."""

from __future__ import annotations

import time
from collections.abc import Callable

from lora_registry.ledger import Lease
from lora_registry.stages import Stage
from tests.benchmarks.figures import Figure, of_rounds
from tests.benchmarks.stand import Stand

_CALLS = 200
_INCR = "return redis.call('INCR', KEYS[1])"


def run(stand: Stand) -> list[Figure]:
    """Rounds of 200 calls each, in turns, over one connection."""
    rounds = 10 if stand.quick else 60
    registry = stand.registry("{ids}")
    client, ledger = registry.client, registry.ledger
    leases = registry.leases("adapter", rounds * _CALLS, stage=Stage.ALLOCATE)
    incr = client.script_load(_INCR)
    fresh, again, bare = [], [], []
    for start in range(0, len(leases), _CALLS):
        some = leases[start : start + _CALLS]
        fresh.append(_rate(ledger.allocate, some))
        bare.append(_rate(lambda _: client.evalsha(incr, 1, "{ids}:bare"), some))
        again.append(_rate(ledger.allocate, some))
    return [
        of_rounds("get-or-allocate: new registration", "/s", fresh, bare, at_least=0.8),
        of_rounds("get-or-allocate: asked again", "/s", again, bare, at_least=0.8),
    ]


def _rate(call: Callable[[Lease], object], leases: list[Lease]) -> float:
    begun = time.perf_counter()
    for lease in leases:
        call(lease)
    return len(leases) / (time.perf_counter() - begun)
