"""What a training job uses: submit an event, ask how it is doing, wait for the outcome."""

from __future__ import annotations

import time
from typing import Any

import redis
from pydantic import ValidationError

from lora_registry.catalog import Catalog
from lora_registry.connection import connect, open_bell, redis_errors
from lora_registry.errors import RedisUnavailable, Rejected, ServerNotAdmitted, WaitTimeout
from lora_registry.events import RegistrationRequested, describe_validation_error
from lora_registry.inbox import Accepted, Inbox
from lora_registry.keys import Keys
from lora_registry.ledger import Ledger
from lora_registry.registrations import Registration
from lora_registry.settings import Settings, load_settings

_ADMISSION_WAIT_S = 10.0
_RECHECK_S = 1.0


class RegistrationClient:
    """A publisher's way in.

    Example:
        client = RegistrationClient.from_url("redis://127.0.0.1:6379/0")
        registration_id = client.submit(name="support-bot", base_model="tiny-llama", source="/adapters/support-bot")
        print(client.wait(registration_id, timeout_s=60).served_name)

    Args:
        client: connection to the registry's server.
        settings: the registry's settings.
    """

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._keys = Keys(settings.key_prefix)
        self._inbox = Inbox(client, settings)
        self._ledger = Ledger(client, settings)
        self.catalog = Catalog(client, settings)

    @classmethod
    def from_url(cls, url: str | None = None, **settings: object) -> RegistrationClient:
        """A client for the server at `url`, or at LORA_REGISTRY_REDIS_URL.

        Raises:
            Configuration: the URL or a setting is not legal.
        """
        loaded = load_settings(redis_url=url, **settings)
        return cls(connect(loaded.redis_url, name="lora-publisher"), loaded)

    def submit(
        self,
        event: RegistrationRequested | None = None,
        *,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> str:
        """Submit an event; give it whole, or its fields by name (see `RegistrationRequested`).

        Args:
            event: the event.
            idempotency_key: repeat the call with the same key, and no second registration comes of it.
            fields: fields of the event, if `event` is not given.

        Returns:
            The registration id; `status` works from now on.

        Raises:
            Rejected: a field is not legal.
            IdempotencyConflict: the key was used for another event.
            QueueFull: too many events wait; nothing was accepted.
            ServerNotAdmitted: the server is new, and no dispatcher admitted it within 10 s.
            RedisUnavailable: the server is out of reach; with an idempotency key it is safe to submit again.
        """
        if event is None:
            try:
                event = RegistrationRequested(**fields)
            except ValidationError as error:
                raise Rejected(describe_validation_error(error)) from error
        return self.accept(event, idempotency_key=idempotency_key).registration_id

    def accept(self, event: RegistrationRequested, *, idempotency_key: str | None = None) -> Accepted:
        """As `submit`, and also say whether this call made the registration."""
        deadline = time.monotonic() + _ADMISSION_WAIT_S
        while True:
            try:
                return self._inbox.accept(event, idempotency_key=idempotency_key)
            except ServerNotAdmitted:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def status(self, registration_id: str) -> Registration:
        """How a registration is doing.

        Raises:
            NotFound: there is none of that id (any more).
            RedisUnavailable: the server is out of reach.
        """
        return self._ledger.get(registration_id)

    def wait(self, registration_id: str, *, timeout_s: float = 300.0) -> Registration:
        """Wait until the registration has an outcome; an outage of Redis is waited out.

        Raises:
            NotFound: there is none of that id.
            WaitTimeout: no outcome within `timeout_s`; the registration goes on.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                with open_bell(self._redis) as bell:
                    with redis_errors():
                        bell.subscribe(self._keys.outcome_channel(registration_id))
                    while not (registration := self.status(registration_id)).outcome:
                        left = deadline - time.monotonic()
                        if left <= 0:
                            raise WaitTimeout(f"{registration_id} is {registration.state} after {timeout_s:g} s")
                        with redis_errors():
                            bell.get_message(timeout=min(_RECHECK_S, left))
                    return registration
            except RedisUnavailable:
                if time.monotonic() > deadline:
                    raise WaitTimeout(f"Redis is out of reach; {registration_id} goes on when it is back") from None
                time.sleep(_RECHECK_S)
