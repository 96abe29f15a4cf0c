"""Deliveries that one gateway process takes in a second, against the same application with an empty handler."""

from __future__ import annotations

import json
import os

from tests.benchmarks.figures import Figure
from tests.benchmarks.gateway import Request, compare
from tests.benchmarks.stand import Stand
from tests.helpers import hooks

_DELIVERIES = {False: 100_000, True: 12_000}
"""More than are taken, so that none comes twice: a repetition is less work."""


def run(stand: Stand) -> list[Figure]:
    """Pushes of the Hub, each to a repository of its own, to a gateway with a hook of every kind."""
    os.environ.update(hooks.SECRETS)
    os.environ["LORA_REGISTRY_HOOKS_FILE"] = str(hooks.write_hooks(stand.directory / "hooks.json"))
    requests = [_request(number) for number in range(_DELIVERIES[stand.quick])]
    name = "gateway: deliveries taken (POST /v1/webhooks/hub)"
    return [compare(stand, name, requests, prefix="{webhooks}", once=True)]


def _request(number: int) -> Request:
    sent = hooks.hub(hooks.hub_push(f"acme/adapter-{number}", sha=f"{number:040x}"), delivery_id=str(number))
    return {"path": "/v1/webhooks/hub", "headers": dict(sent.headers), "body": json.dumps(json.loads(sent.body))}
