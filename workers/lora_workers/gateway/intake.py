"""From a request to a delivery: prove, read, record; no delivery waits for another's fetches or long bodies."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from fastapi.concurrency import run_in_threadpool

from lora_registry import hook_codes
from lora_registry.errors import Transient
from lora_registry.hook_deliveries import Heard, HookDeliveries
from lora_registry.settings import Settings
from lora_workers.gateway.delivery_fetches import DeliveryFetches
from lora_workers.gateway.round_trips import RoundTrips
from lora_workers.hooks.configuration import AnyHook, HookSecrets, read_secrets
from lora_workers.hooks.hook import Reading
from lora_workers.hooks.proofs import NotFetched, Proof
from lora_workers.hooks.redelivery import kept_of
from lora_workers.hooks.refusals import Refused
from lora_workers.hooks.request import HookRequest

Clock = Callable[[], float]
_LONG_BYTES: Final = 32_768
"""Reading a longer body takes milliseconds, which all other requests would wait for."""
logger = logging.getLogger(__name__)


class _Examined(NamedTuple):
    """What an authentic request is about, and what is kept of it."""

    reading: Reading
    kept: str


class Intake:
    """Takes deliveries.

    Args:
        hooks: by their names.
        deliveries: the registry's.
        settings: the registry's settings.
        round_trips: runs scripts.
        fetches: gets certificates.
        clock: the time, in seconds since 1970.

    Raises:
        Configuration: a secret is missing.
    """

    def __init__(
        self,
        hooks: Mapping[str, AnyHook],
        deliveries: HookDeliveries,
        settings: Settings,
        *,
        round_trips: RoundTrips,
        fetches: DeliveryFetches,
        clock: Clock = time.time,
    ) -> None:
        self._hooks = dict(hooks)
        self._deliveries = deliveries
        self._settings = settings
        self._round_trips = round_trips
        self._fetches = fetches
        self._clock = clock
        self._secrets = {name: read_secrets(name, hook) for name, hook in self._hooks.items()}

    def check_known(self, name: str) -> None:
        """Raises Refused if there is no hook of that name."""
        if name not in self._hooks:
            raise Refused(hook_codes.HOOK_UNKNOWN)

    async def take(self, name: str, request: HookRequest) -> Heard:
        """Take one request: when this returns, what it asks for is in Redis, or the reason why it asks for nothing.

        Raises:
            Refused: it is not authentic, or cannot be read; nothing is queued, and the refusal is noted.
            Transient: Redis is out of reach or full, or what proves it cannot be fetched; the sender tries again.
        """
        self.check_known(name)
        try:
            reading, kept = await self._examine(self._hooks[name], self._secrets[name], request)
        except Refused as error:
            await self.note(name, error)
            raise
        if reading.confirm_url:
            await self._fetches.visit(reading.confirm_url)
        return await self._round_trips.run(
            self._deliveries.hearing(name, reading.delivery_id, reading.events, reason=reading.reason, body=kept)
        )

    async def note(self, name: str, refusal: Refused) -> None:
        """Note a refusal; if Redis is out of reach, the log has it.

        A refusal is answered as one all the same: what is forged is not worth a repetition.
        """
        logger.info("hook %s refused a delivery: %s: %s", name, refusal.why.code, refusal.message)
        try:
            await self._round_trips.run(self._deliveries.refusal(name, refusal.why, refusal.message))
        except Transient as error:
            logger.warning("the refusal is not in the history: %s", error)

    async def _examine(self, hook: AnyHook, secrets: HookSecrets, request: HookRequest) -> _Examined:
        """Prove and read a request, the second time with the certificate that it turned out to need.

        Raises:
            Refused, Transient: see `take`.
        """
        certificate: bytes | None = None

        def document(url: str) -> bytes:
            kept = self._fetches.kept(url) if certificate is None else certificate
            if kept is None:
                raise NotFetched(url)
            return kept

        def examine() -> _Examined:
            hook.prove(request, self._proof(secrets, document))
            quiet_s = self._quiet_s(hook)
            reading = hook.read(request, quiet_s=quiet_s)
            return _Examined(reading, kept_of(request, hook, reading, secrets=secrets.all, quiet_s=quiet_s))

        is_long = len(request.body) > _LONG_BYTES
        try:
            return await run_in_threadpool(examine) if is_long else examine()
        except NotFetched as needed:
            certificate = await self._fetches.certificate(needed.url)
        return await run_in_threadpool(examine) if is_long else examine()

    def _proof(self, secrets: HookSecrets, documents: Callable[[str], bytes]) -> Proof:
        encoded = tuple(each.encode() for each in secrets.secrets)
        return Proof(encoded, self._clock(), documents, tokens=tuple(each.encode() for each in secrets.tokens))

    def _quiet_s(self, hook: AnyHook) -> float:
        return self._settings.hook_quiet_s if hook.quiet_s is None else hook.quiet_s
