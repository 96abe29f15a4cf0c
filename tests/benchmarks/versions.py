"""Any number of versions, published by the real publish script, without the earlier stages for each of them.

One adapter passes the stages up to validate; copies of its ledger hash stand for all others.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import redis

from lora_registry.catalog import Catalog
from lora_registry.events import RegistrationRequested
from lora_registry.inbox import Inbox
from lora_registry.keys import Keys
from lora_registry.ledger import Lease, Ledger
from lora_registry.names import AdapterName
from lora_registry.registrations import parse_registration
from lora_registry.settings import Settings
from lora_registry.stages import ORDER, Stage
from lora_registry.stages.publish import publish
from lora_workers.celery_app import make_app
from lora_workers.tasks import Station
from tests.benchmarks.small_adapters import BASE, base_profile, write_adapters

_OWNER = "benchmark"
_CHUNK = 1000
_VERSIONS_EACH = 10


class PublishedVersions:
    """A registry whose versions are published here.

    Args:
        client: connection to its server, which is admitted.
        settings: its settings.
        directory: where its one real adapter is written.

    Attributes:
        count: number of versions that `fill` published.
    """

    def __init__(self, client: redis.Redis, settings: Settings, directory: Path) -> None:
        self.client, self.settings, self.keys = client, settings, Keys(settings.key_prefix)
        self.catalog, self.ledger = Catalog(client, settings), Ledger(client, settings)
        self.count = 0
        self._issued = 0
        self.catalog.bases.add(base_profile())
        name = f"template-{settings.key_prefix.strip('{}')}"
        self._template = self._validated(name, *write_adapters(directory, [name]))

    def fill(self, count: int) -> None:
        """Publish `count` versions, ten for each adapter, and remove their ledger hashes (see `finished`)."""
        for start in range(0, count, _CHUNK):
            leases = [
                self._lease(f"adapter-{number // _VERSIONS_EACH}", number % _VERSIONS_EACH + 1)
                for number in range(start, min(start + _CHUNK, count))
            ]
            self._store(leases)
            for lease in leases:
                self.publish(lease)
            self.client.delete(*(self.keys.registration(lease.registration.id) for lease in leases))
        self.count += count

    def leases(self, name: str, count: int, *, stage: Stage = Stage.PUBLISH, **fields: str) -> list[Lease]:
        """Leases on registrations of new versions of the adapter, in the ledger, due in `stage`."""
        leases = [self._lease(name, version, stage=stage, **fields) for version in range(1, count + 1)]
        self._store(leases)
        return leases

    def publish(self, lease: Lease) -> None:
        """What the publish stage does: one script."""
        publish(lease, ledger=self.ledger, catalog=self.catalog)

    def finished(self) -> str:
        """Key of the ledger hash of one registration that has ended."""
        lease = self.leases("finished", 1)[0]
        self.publish(lease)
        return self.keys.registration(lease.registration.id)

    def _lease(self, name: str, version: int, *, stage: Stage = Stage.PUBLISH, **fields: str) -> Lease:
        self._issued += 1
        mark = hashlib.sha256(f"{name}.{version}".encode()).hexdigest()
        own = {
            "id": f"reg_{self._issued:024x}",
            "name": name,
            "stage": stage.value,
            "owner": _OWNER,
            "epoch": "1",
            "order": str(version),
            "version": str(version),
            "lora_int_id": str(self._issued),
            "digest": f"sha256:{mark}",
            "idempotency": mark[:32],
        }
        return Lease(parse_registration(self._template | own | fields), stage, 1, _OWNER)

    def _store(self, leases: list[Lease]) -> None:
        with self.client.pipeline(transaction=False) as pipeline:
            for lease in leases:
                fields = lease.registration.fields
                if lease.stage is Stage.ALLOCATE:
                    fields = {name: value for name, value in fields.items() if name != "lora_int_id"}
                pipeline.hset(self.keys.registration(lease.registration.id), mapping=fields)
                # What accepting an event leaves for good: the last number of its adapter.
                adapter = AdapterName(lease.registration.adapter.namespace, lease.registration.adapter.name)
                pipeline.set(self.keys.numbers(adapter), f"{lease.registration.order} 1")
            pipeline.execute()

    def _validated(self, name: str, path: Path) -> dict[str, str]:
        inbox = Inbox(self.client, self.settings)
        labels = {"team": "support", "purpose": "benchmark"}
        event = RegistrationRequested(name=name, base_model=BASE, source=str(path), labels=labels)
        registration_id = inbox.accept(event).registration_id
        entries = inbox.read(_OWNER) or inbox.read(_OWNER)  # the first call makes the consumer group
        for entry in entries:
            inbox.dispatch(entry)
        station = Station(make_app(self.settings), self.settings)
        for stage in ORDER[:-1]:
            station.run(stage)
        fields = self.client.hgetall(self.keys.registration(registration_id))
        assert fields["stage"] == Stage.PUBLISH, fields
        return fields
