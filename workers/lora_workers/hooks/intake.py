"""From a request to a delivery: prove, read, record. The gateway calls it for each request, `hooks redeliver` too."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import redis

from lora_registry import hook_codes
from lora_registry.errors import Conflict, NotFound, Transient
from lora_registry.hook_deliveries import Heard, HookDeliveries
from lora_registry.settings import Settings
from lora_workers.hooks.configuration import AnyHook, HookSecrets, read_secrets
from lora_workers.hooks.proofs import Proof
from lora_workers.hooks.refusals import Refused
from lora_workers.hooks.request import HookRequest

Clock = Callable[[], float]
logger = logging.getLogger(__name__)


class Fetcher(Protocol):
    """Gets what deliveries name."""

    def __call__(self, url: str) -> bytes:
        """A certificate; it may be kept."""

    def visit(self, url: str) -> bytes:
        """A page, visited now."""


class Intake:
    """Takes deliveries.

    Args:
        hooks: by their names.
        client: connection to the registry's server.
        settings: the registry's settings.
        fetcher: gets certificates; None where nothing is to be proved.
        clock: the time, in seconds since 1970.

    Raises:
        Configuration: a secret is missing.
    """

    def __init__(
        self,
        hooks: Mapping[str, AnyHook],
        client: redis.Redis,
        settings: Settings,
        *,
        fetcher: Fetcher | None = None,
        clock: Clock = time.time,
    ) -> None:
        self._hooks = dict(hooks)
        self._settings = settings
        self._deliveries = HookDeliveries(client, settings)
        self._fetcher = fetcher
        self._clock = clock
        self._secrets: dict[str, HookSecrets] = {}
        if fetcher is not None:
            self._secrets = {name: read_secrets(name, hook) for name, hook in self._hooks.items()}

    def check_known(self, name: str) -> None:
        """Raises Refused if there is no hook of that name."""
        if name not in self._hooks:
            raise Refused(hook_codes.HOOK_UNKNOWN)

    def take(self, name: str, request: HookRequest) -> Heard:
        """Take one request: when this returns, what it asks for is in Redis, or the reason why it asks for nothing.

        Raises:
            Refused: it is not authentic, or cannot be read; nothing is queued, and the refusal is noted.
            Transient: Redis is out of reach or full, or what proves it cannot be fetched; the sender tries again.
        """
        self.check_known(name)
        hook, secrets = self._hooks[name], self._secrets[name]
        try:
            hook.prove(request, self._proof(secrets))
            reading = hook.read(request, quiet_s=self._quiet_s(hook))
        except Refused as error:
            self.note(name, error)
            raise
        if reading.confirm_url and self._fetcher:
            self._fetcher.visit(reading.confirm_url)
        body = request.to_text(secrets.all)
        return self._deliveries.hear(name, reading.delivery_id, reading.events, reason=reading.reason, body=body)

    def note(self, name: str, refusal: Refused) -> None:
        """Note a refusal; if Redis is out of reach, the log has it.

        A refusal is answered as one all the same: what is forged is not worth a repetition.
        """
        logger.info("hook %s refused a delivery: %s: %s", name, refusal.why.code, refusal.message)
        try:
            self._deliveries.note_refusal(name, refusal.why, refusal.message)
        except Transient as error:
            logger.warning("the refusal is not in the history: %s", error)

    def redeliver(self, name: str, delivery_id: str) -> Heard:
        """Read a delivery again that was authentic, by the rules of now, whatever became of it.

        Raises:
            NotFound: no such hook or delivery.
            Conflict: its body is not kept any more.
            RedisUnavailable: the server is out of reach.
        """
        hook = self._hooks.get(name)
        if hook is None:
            raise NotFound(f"there is no hook {name!r}", remedy="List them with `lora-registry hooks list`.")
        delivery = self._deliveries.delivery(name, delivery_id)
        if not delivery.body:
            raise Conflict("the body of that delivery is not kept", remedy="Have its sender deliver it again.")
        reading = hook.read(HookRequest.from_text(delivery.body), quiet_s=0.0)
        return self._deliveries.hear(
            name, delivery.id, reading.events, reason=reading.reason, body=delivery.body, again=True
        )

    def _proof(self, secrets: HookSecrets) -> Proof:
        assert self._fetcher is not None  # noqa: S101 - who takes has one
        encoded = tuple(each.encode() for each in secrets.secrets)
        return Proof(encoded, self._clock(), self._fetcher, tokens=tuple(each.encode() for each in secrets.tokens))

    def _quiet_s(self, hook: AnyHook) -> float:
        return self._settings.hook_quiet_s if hook.quiet_s is None else hook.quiet_s
