"""Events that one gateway process accepts in a second, against the same application with an empty handler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_registry.inbox import admit
from lora_workers import processes
from tests.benchmarks.figures import Figure, of_rounds
from tests.benchmarks.gateway_process import EMPTY
from tests.benchmarks.stand import ROOT, Stand, environment_of

_CONNECTIONS = 64
_REQUESTS = 5_000
Request = dict[str, Any]


def run(stand: Stand) -> list[Figure]:
    """Rounds in turns, on one gateway."""
    bodies = [
        json.dumps({"name": f"adapter-{number}", "base_model": "tiny-llama", "source": f"/adapters/{number}"})
        for number in range(_REQUESTS)
    ]
    headers = {"content-type": "application/json"}
    ours = [{"path": "/v1/registrations", "headers": headers, "body": body} for body in bodies]
    return [compare(stand, "gateway: events accepted (POST /v1/registrations)", ours, prefix="{gateway}")]


def compare(
    stand: Stand, name: str, requests: Sequence[Request], *, prefix: str, once: bool = False, goal: float = 0.5
) -> Figure:
    """The rate at which a gateway takes `requests`, against the same requests to a route that does nothing.

    Args:
        stand: where the server is.
        name: name of the figure.
        requests: path, headers and body of each request; each round sends a share of them in turn, over and over.
        prefix: key prefix of the registry.
        once: no request may be sent twice.
        goal: least ratio.

    Raises:
        RuntimeError: a request was refused, or sent twice although it may not be.
    """
    rounds, for_s = (2, 1.0) if stand.quick else (7, 3.0)
    settings = stand.settings(prefix).model_copy(update={"max_queued_events": 10_000_000})
    admit(stand.connect(), settings)
    shares = [requests[number :: rounds + 1] for number in range(rounds + 1)]
    ours = [_written(stand.directory / f"{prefix}-{number}.jsonl", share) for number, share in enumerate(shares)]
    bare = _written(stand.directory / f"{prefix}-bare.jsonl", [{**each, "path": EMPTY} for each in shares[0]])
    most = len(shares[-1]) if once else None
    environment = environment_of(settings) | {"LORA_REGISTRY_MAX_QUEUED_EVENTS": str(settings.max_queued_events)}
    with (stand.directory / "gateway.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.gateway_process"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment},
        )
    try:
        assert server.stdout
        port = int(server.stdout.readline())
        for warm_up in (ours[0], bare):
            _rate(port, warm_up, for_s=0.5)
        rates = [(_rate(port, each, for_s=for_s, most=most), _rate(port, bare, for_s=for_s)) for each in ours[1:]]
    finally:
        processes.stop(server)
        assert server.stdout
        server.stdout.close()
    mine, other = zip(*rates, strict=True)
    return of_rounds(name, "/s", mine, other, at_least=goal)


def _rate(port: int, requests: Path, *, for_s: float, most: int | None = None) -> float:
    command = [sys.executable, "-m", "tests.benchmarks.http_load", str(port), str(requests), str(for_s)]
    ran = subprocess.run([*command, str(_CONNECTIONS)], capture_output=True, text=True, cwd=ROOT, check=False)
    if ran.returncode:
        raise RuntimeError(ran.stderr)
    rate, answers = ran.stdout.split()
    if most is not None and int(answers) > most:
        raise RuntimeError(f"{answers} requests were answered, and there are {most} different ones")
    return float(rate)


def _written(path: Path, requests: Sequence[Request]) -> Path:
    path.write_text("".join(f"{json.dumps(each)}\n" for each in requests))
    return path
