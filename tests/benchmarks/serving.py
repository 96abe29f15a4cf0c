"""Submit to routable on a real vLLM: how long, which step takes it, and what the agent adds to a bare load."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_registry.connection import open_bell
from lora_registry.nodes import NodeState
from lora_registry.stages import ALWAYS
from lora_workers.base_models import read_base_profile
from tests.benchmarks.figures import Figure, percentile
from tests.benchmarks.stand import Stand
from tests.helpers.stack import Stack, make_settings
from tests.helpers.waiting import wait_until
from tests.vllm.models import BASE_NAME, make_base, train_adapter, vary
from tests.vllm.node import Node
from tests.vllm.server import VLLM, VllmServer

_LONGEST_OVERHEAD_MS = 100.0
_STATES = (NodeState.SEEN, NodeState.FETCHED, NodeState.LOADED, NodeState.ROUTABLE)
Heard = defaultdict[str, dict[NodeState, float]]
"""When a node said what: by served name and state, in seconds since 1970-01-01."""


def run(stand: Stand) -> list[Figure]:
    """Adapters of 0.2 MB, one after another, on one node; and as many bare loads of a local directory."""
    if not VLLM.exists():
        print("    left out: there is no vLLM here (`make test-vllm` installs it)", flush=True)
        return []
    directory, count = stand.directory / "serving", 10 if stand.quick else 120
    base = make_base(directory / "base")
    adapter = train_adapter(base, directory / "sources" / "adapter", "bravo")
    variants = [vary(adapter, directory / "sources" / f"variant-{n}", n) for n in range(1, 2 * count + 1)]
    settings = make_settings(stand.url, directory, key_prefix="{serving}", max_lora_rank=64)
    server = VllmServer(base, directory / "vllm", "--max-loras", "16", "--max-cpu-loras", "256")
    stack = Stack(settings, directory)
    agent = Node(server.url, settings, directory / "node", node_id="node")
    try:
        server.start()
        stack.dispatchers()
        for _ in range(2):
            stack.worker()
        stack.registry.catalog.bases.add(read_base_profile(BASE_NAME, base, with_model=False))
        server.wait()
        agent.start()
        stack.wait_for_slots()
        stack.wait_until(lambda: stack.client.nodes.nodes(BASE_NAME), what="the node")
        return _measure(stack, server, variants, count)
    finally:
        agent.stop()
        server.stop()
        stack.close()


def _measure(stack: Stack, server: VllmServer, variants: list[Path], count: int) -> list[Figure]:
    ours, bare = [], []
    with _heard(stack) as heard:
        for number, (variant, loaded) in enumerate(zip(variants[:count], variants[count:], strict=True)):
            ours.append(_register(stack, heard, f"bot-{number}", variant))
            bare.append(_load(server, f"bare-{number}", loaded))
    _tell_slowest(ours)
    whole = [sum(each.values()) for each in ours]
    routable = [sum(each[state] for state in _STATES) for each in ours]
    added = statistics.median(routable) - statistics.median(bare)
    return [
        Figure("vLLM: submit to routable, median", "ms", statistics.median(whole)),
        Figure("vLLM: submit to routable, p99", "ms", percentile(whole, 99)),
        *(
            Figure(f"vLLM: of that, {step}, median", "ms", statistics.median(each[step] for each in ours))
            for step in ours[0]
        ),
        Figure(
            "vLLM: announced to routable, median",
            "ms",
            statistics.median(routable),
            statistics.median(bare),
            ratio=statistics.median(routable) / statistics.median(bare),
        ),
        Figure("vLLM: what the agent adds to a bare load, median", "ms", added, at_most=_LONGEST_OVERHEAD_MS),
    ]


def _register(stack: Stack, heard: Heard, name: str, variant: Path) -> dict[str, float]:
    """Step → how long it took, in ms, until the node can route requests to the version.

    The stages keep how long each took from being due to being done; a node rings a bell at each state.
    """
    submitted = time.time()
    registration_id = stack.client.submit(name=name, base_model=BASE_NAME, source=str(variant))
    accepted = time.time()
    registration = stack.client.wait(registration_id, timeout_s=60)
    assert registration.served_name, registration
    at = heard[registration.served_name]
    wait_until(lambda: NodeState.ROUTABLE in at, what=f"{registration.served_name} routable", every_s=0.005)
    dispatched = int(registration.fields["dispatched_at"]) / 1e6
    accepted = min(accepted, dispatched)  # the answer may come later than what follows from it
    steps = {"accepted": (accepted - submitted) * 1e3, "dispatched": (dispatched - accepted) * 1e3}
    steps |= {stage: registration.timings_ms[stage] for stage in ALWAYS}
    before = dispatched + sum(registration.timings_ms.values()) / 1e3  # the last stage ends with the announcement
    for state in _STATES:
        steps[state] = (at[state] - before) * 1e3
        before = at[state]
    return steps


def _load(server: VllmServer, name: str, directory: Path) -> float:
    """How long vLLM takes to load a local directory when it is told to, in ms."""
    begun = time.monotonic()
    response = server.http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(directory)})
    assert response.status_code == 200, response.text
    return (time.monotonic() - begun) * 1e3


def _tell_slowest(registrations: list[dict[str, float]]) -> None:
    """Which steps took the time of those that took longest."""
    for place, steps in sorted(enumerate(registrations), key=lambda each: -sum(each[1].values()))[:4]:
        told = ", ".join(f"{step} {took_ms:.0f}" for step, took_ms in steps.items())
        print(f"    number {place} took {sum(steps.values()):.0f} ms: {told}", flush=True)


@contextmanager
def _heard(stack: Stack) -> Iterator[Heard]:
    """When the node said which state of which version, for as long as this is open: seconds since 1970-01-01."""
    heard: Heard = defaultdict(dict)
    prefix = stack.registry.keys.ack_bell("")

    def note(message: dict[str, str]) -> None:
        heard[message["channel"].removeprefix(prefix)].setdefault(NodeState(message["data"]), time.time())

    with open_bell(stack.registry.client) as bell:
        bell.psubscribe(**{f"{prefix}*": note})
        listening = bell.run_in_thread(daemon=True)
        try:
            yield heard
        finally:
            listening.stop()
            listening.join()
