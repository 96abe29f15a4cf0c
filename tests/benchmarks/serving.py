"""Submit to routable on a real vLLM: how long, which step takes it, and what the agent adds to a bare load."""

from __future__ import annotations

import json
import statistics
import time
from datetime import datetime
from pathlib import Path

from lora_registry.nodes import NodeRegistry, NodeState
from lora_workers.base_models import read_base_profile
from tests.benchmarks.figures import Figure, percentile
from tests.benchmarks.stand import Stand
from tests.helpers.stack import Stack, make_settings
from tests.helpers.waiting import wait_until
from tests.vllm.models import BASE_NAME, make_base, train_adapter, vary
from tests.vllm.node import Node
from tests.vllm.server import VLLM, VllmServer

_LONGEST_OVERHEAD_MS = 100.0


def run(stand: Stand) -> list[Figure]:
    """Adapters of 0.2 MB, one after another, on one node; and as many bare loads of a local directory."""
    if not VLLM.exists():
        print("    left out: there is no vLLM here (`make test-vllm` installs it)", flush=True)
        return []
    directory, count = stand.directory / "serving", 10 if stand.quick else 40
    base = make_base(directory / "base")
    adapter = train_adapter(base, directory / "sources" / "adapter", "bravo")
    variants = [vary(adapter, directory / "sources" / f"variant-{n}", n) for n in range(1, 2 * count + 1)]
    settings = make_settings(stand.url, directory, key_prefix="{serving}", max_lora_rank=64)
    server = VllmServer(base, directory / "vllm", "--max-loras", "16", "--max-cpu-loras", "128")
    stack = Stack(settings, directory)
    agent = Node(server.url, settings, directory / "node", node_id="node")
    try:
        server.start()
        stack.dispatchers()
        for _ in range(2):
            stack.worker()
        stack.registry.catalog.add_base(read_base_profile(BASE_NAME, base, with_model=False))
        server.wait()
        agent.start()
        stack.wait_for_slots()
        return _measure(stack, server, variants, count)
    finally:
        agent.stop()
        server.stop()
        stack.close()


def _measure(stack: Stack, server: VllmServer, variants: list[Path], count: int) -> list[Figure]:
    nodes = NodeRegistry(stack.registry.client, stack.settings)
    published, routable, bare = [], [], []
    for number, (ours, loaded) in enumerate(zip(variants[:count], variants[count:], strict=True)):
        submitted = time.time()
        registration_id = stack.client.submit(name=f"bot-{number}", base_model=BASE_NAME, source=str(ours))
        registration = stack.client.wait(registration_id, timeout_s=60)
        assert registration.served_name, registration
        name = registration.served_name
        (ack,) = wait_until(
            lambda name=name: [each for each in nodes.acks(name) if each.state is NodeState.ROUTABLE],  # type: ignore[misc]
            what=f"{name} routable",
            every_s=0.005,
        )
        at = _announced_at(stack, name)
        published.append((at - submitted) * 1e3)
        routable.append((ack.since_s - at) * 1e3)
        begun = time.monotonic()
        response = server.http.post(
            "/v1/load_lora_adapter", json={"lora_name": f"bare-{number}", "lora_path": str(loaded)}
        )
        assert response.status_code == 200, response.text
        bare.append((time.monotonic() - begun) * 1e3)
    whole = [first + second for first, second in zip(published, routable, strict=True)]
    added = statistics.median(routable) - statistics.median(bare)
    return [
        Figure("vLLM: submit to routable, median", "ms", statistics.median(whole)),
        Figure("vLLM: submit to routable, p99", "ms", percentile(whole, 99)),
        Figure("vLLM: of that, submit to announced, median", "ms", statistics.median(published)),
        Figure(
            "vLLM: of that, announced to routable, median",
            "ms",
            statistics.median(routable),
            statistics.median(bare),
            ratio=statistics.median(routable) / statistics.median(bare),
        ),
        Figure("vLLM: what the agent adds to a bare load, median", "ms", added, at_most=_LONGEST_OVERHEAD_MS),
    ]


def _announced_at(stack: Stack, served_name: str) -> float:
    """When a version was announced, by the server's clock as acknowledgements are: seconds since 1970-01-01."""
    key = stack.registry.keys.log(BASE_NAME)
    for _, entry in stack.registry.client.xrevrange(key, count=10):
        event = json.loads(entry["message"])
        if event["subject"] == served_name:
            return datetime.fromisoformat(event["time"]).timestamp()
    raise AssertionError(f"{served_name} was not announced")
