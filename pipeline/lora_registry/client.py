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
from lora_registry.lifecycle import Lifecycle
from lora_registry.named_collections import Collections
from lora_registry.names import parse_reference
from lora_registry.nodes import NodeRegistry
from lora_registry.open_promotions import OpenPromotions
from lora_registry.promotion import Promotions
from lora_registry.registrations import Registration
from lora_registry.rollout import Need, Rollouts, Standing
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
        self._rollouts = Rollouts(client, settings)
        self._open_promotions = OpenPromotions(client, settings)
        self.catalog = Catalog(client, settings)
        self.lifecycle = Lifecycle(client, settings)
        self.nodes = NodeRegistry(client, settings)
        self.collections = Collections(client, settings)

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

    def wait_routable(self, name: str, *, nodes: int | None = 1, timeout_s: float = 300.0) -> list[Standing]:
        """Wait until nodes serve a version; an outage of Redis is waited out.

        Args:
            name: the version, or an adapter or alias for what it points at now.
            nodes: how many; None: all that want it and can serve it. Eager nodes count once they answered with it,
                others once a request would load it.
            timeout_s: longest wait.

        Returns:
            How the nodes stand to it then.

        Raises:
            NotFound: there is no such version.
            NotServed: it cannot come to that: no node wants it, or those that do failed or skip it.
            WaitTimeout: it did not come to that within `timeout_s`.
        """
        record = self.catalog.version(parse_reference(name))
        return self._rollouts.wait(record, Need(nodes), timeout_s=timeout_s)

    def standings(self, name: str) -> list[Standing]:
        """How the nodes that live stand to a version, or to those of an adapter that are wanted or held somewhere.

        Raises:
            NotFound: there is no such adapter, version or alias.
            RedisUnavailable: the server is out of reach.
        """
        reference = parse_reference(name)
        if reference.version is not None or reference.alias is not None:
            return self._rollouts.standings(self.catalog.version(reference))
        return self._rollouts.standings_of_adapter(reference.adapter)

    def promotions(self) -> Promotions:
        """What moves aliases through a gate."""
        return Promotions(self.lifecycle, self._rollouts, self._open_promotions)
