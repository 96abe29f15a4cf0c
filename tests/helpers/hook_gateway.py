"""A gateway process whose hooks know the secrets of tests."""

from __future__ import annotations

from pathlib import Path

import httpx

from lora_registry.settings import Settings
from tests.helpers.gateway_process import GatewayProcess
from tests.helpers.hooks import SECRETS, Sent


class HookGateway(GatewayProcess):
    """`lora-registry gateway` on a free port, as senders see it."""

    def __init__(self, settings: Settings, log: Path) -> None:
        super().__init__(settings, log, environment=SECRETS)

    def post(self, sent: Sent) -> httpx.Response:
        """Deliver; the answer."""
        return self.client.post(f"/v1/webhooks/{sent.hook}", content=sent.body, headers=dict(sent.headers))

    def verdict(self, sent: Sent) -> str:
        """Deliver; what the answer calls it."""
        answer = self.post(sent)
        assert answer.status_code in (200, 202), answer.text
        return str(answer.json()["verdict"])
