"""A registry on a real server, driven step by step in the test's own process: no Celery, no files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import redis

from lora_registry.announcements import CatalogView
from lora_registry.catalog import Catalog
from lora_registry.catalog_records import VersionRecord
from lora_registry.events import RegistrationRequested
from lora_registry.inbox import Inbox, admit
from lora_registry.keys import Keys
from lora_registry.ledger import Lease, Ledger
from lora_registry.lifecycle import Lifecycle
from lora_registry.names import AdapterName, Reference
from lora_registry.nodes import NodeRegistry
from lora_registry.registrations import Outcome, Registration
from lora_registry.rollout import Rollouts
from lora_registry.settings import Settings
from lora_registry.stages import ORDER, Stage
from lora_registry.stages.publish import publish
from lora_registry.subscriber import Subscriber
from tests.helpers.waiting import wait_until

BASE = "tiny-llama"


def digest_of(content: str) -> str:
    """The digest that `Registry` gives an adapter with this content."""
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def make_event(name: str = "support-bot", *, content: str = "one", **fields: Any) -> RegistrationRequested:
    """An event whose source names the content that its bytes stand for."""
    return RegistrationRequested(**({"name": name, "base_model": BASE, "source": f"/{content}"} | fields))


class Registry:
    """What the processes do, one step at a time."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self.client = client
        self.settings = settings
        self.keys = Keys(settings.key_prefix)
        self.inbox = Inbox(client, settings)
        self.ledger = Ledger(client, settings)
        self.catalog = Catalog(client, settings)
        self.lifecycle = Lifecycle(client, settings)
        self.nodes = NodeRegistry(client, settings)
        self.rollouts = Rollouts(client, settings)

    def with_settings(self, **changes: Any) -> Registry:
        """The same registry, as a process with other settings sees it."""
        return Registry(self.client, self.settings.model_copy(update=changes))

    def admit(self, *, by_operator: bool = False) -> None:
        """What a dispatcher does first, or an operator who says that an emptied server counts."""
        admit(self.client, self.settings, by_operator=by_operator)

    def forget_server(self) -> None:
        """Make the registry believe that it runs on a server it has never seen, as after a restart."""
        self.client.hset(self.keys.server, "run_id", "0" * 40)

    def submit(self, name: str = "support-bot", *, content: str = "one", key: str | None = None, **fields: Any) -> str:
        """Accept one event; returns the registration id."""
        event = make_event(name, content=content, **fields)
        return self.inbox.accept(event, idempotency_key=key).registration_id

    def dispatch(self, *, consumer: str = "dispatcher") -> int:
        """Take all waiting events into the ledger; returns the wake-ups to send."""
        wake_ups = 0
        while self.inbox.waiting():
            for entry in self.inbox.read(consumer, block_s=0.001):
                wake_ups += self.inbox.dispatch(entry)
        return wake_ups

    def enqueue(self, name: str = "support-bot", **fields: Any) -> str:
        """Submit and dispatch one event."""
        registration_id = self.submit(name, **fields)
        self.dispatch()
        return registration_id

    def claim(self, stage: Stage, *, owner: str = "worker", **options: Any) -> tuple[Lease, ...]:
        """The leases of one claim."""
        return self.ledger.claim(stage, owner=owner, **options).leases

    def claim_when_due(self, stage: Stage, *, owner: str = "other", **options: Any) -> tuple[Lease, ...]:
        """The leases of the first claim that brings any."""
        return wait_until(lambda: self.claim(stage, owner=owner, **options), what=f"due work of {stage}", every_s=0.005)

    def complete(self, lease: Lease) -> None:
        """What a stage before publish does with a good adapter."""
        fields: dict[str, str | int] = {}
        if lease.stage is Stage.ALLOCATE:
            self.ledger.allocate(lease)
        if lease.stage is Stage.VALIDATE:
            digest = digest_of(lease.registration.source.removeprefix("/"))
            fields = {"digest": digest, "rank": 8, "size_bytes": 4096, "base_revision": "main", "findings": "[]"}
        self.ledger.complete(lease, fields)

    def advance(self, to: Stage, *, dispatch: bool = True) -> dict[str, Lease]:
        """Pass everything through the stages before `to`, and claim what is due there: by registration id."""
        if dispatch:
            self.dispatch()
        for stage in ORDER[: ORDER.index(to)]:
            while leases := self.claim(stage):
                for lease in leases:
                    self.complete(lease)
        claimed: dict[str, Lease] = {}
        while leases := self.claim(to):
            claimed |= {lease.registration.id: lease for lease in leases}
        return claimed

    def publish(self, lease: Lease) -> Registration:
        """Run the publish stage on one lease."""
        publish(lease, ledger=self.ledger, catalog=self.catalog)
        return self.ledger.get(lease.registration.id)

    def publish_in_order(self, ids: Iterable[str]) -> list[Registration]:
        """Bring all to the publish stage, then publish them in this order."""
        leases = self.advance(Stage.PUBLISH)
        return [self.publish(leases[each]) for each in ids]

    def register(self, name: str = "support-bot", *, content: str = "one", **fields: Any) -> Registration:
        """Submit one event and publish it."""
        return self.publish_in_order([self.submit(name, content=content, **fields)])[0]

    def version(self, name: str = "support-bot", *, alias: str | None = None) -> VersionRecord:
        """What an alias of the adapter points at."""
        return self.catalog.version(Reference(AdapterName("default", name), alias=alias or name))

    def view(self) -> CatalogView:
        """What a subscriber that starts now holds."""
        subscriber = Subscriber(BASE, url=self.settings.redis_url, key_prefix=self.settings.key_prefix)
        subscriber.poll()
        return subscriber.view

    def log(self) -> list[str]:
        """The announcements in the log, oldest first."""
        return [entry["message"] for _, entry in self.client.xrange(self.keys.log(BASE))]

    def outcome(self, registration_id: str) -> Outcome | None:
        """The registration's outcome so far."""
        return self.ledger.get(registration_id).outcome
