"""Stage 5, publish: one script makes the version visible, moves the alias, announces, and ends the registration."""

from __future__ import annotations

from lora_registry import codes
from lora_registry.catalog import Catalog, Published
from lora_registry.catalog_records import VersionRecord
from lora_registry.errors import ArtifactBusy, Rejected
from lora_registry.ledger import Lease, Ledger
from lora_registry.sources import PinnedSource


def publish(lease: Lease, *, ledger: Ledger, catalog: Catalog) -> None:
    """Publish the validated artifact as a version.

    Raises:
        Rejected: the adapter belongs to another base by now, the version number is another's, or a quota is used up.
        LeaseLost: another worker owns the registration.
        Transient: Redis is out of reach, or not admitted.
    """
    registration = lease.registration
    lora_int_id, version = registration.lora_int_id, registration.version
    while True:
        if lora_int_id is None or version is None:
            lora_int_id, version = ledger.allocate(lease)
        answer = catalog.publish(lease, _record(lease, lora_int_id, version))
        if answer is not Published.READMIT:
            break
        lora_int_id = version = None  # issued by a server that may have forgotten what it announced
    if answer is Published.BASE_CONFLICT:
        owner = catalog.base_of(registration.adapter)
        finding = codes.ADAPTER_BASE_CONFLICT.finding(
            str(registration.adapter), expected=owner, actual=registration.base_model
        )
        raise Rejected(finding.message, findings=(finding,))
    if answer is Published.REMOVING:
        raise ArtifactBusy
    if answer is Published.TAKEN:
        finding = codes.VERSION_TAKEN.finding(registration.adapter.served_name(version))
        raise Rejected(finding.message, findings=(finding,))


def _record(lease: Lease, lora_int_id: int, version: int) -> VersionRecord:
    registration = lease.registration
    source = _found_at(registration.fields.get("pinned", "")) or registration.source
    return VersionRecord(
        namespace=registration.adapter.namespace,
        name=registration.adapter.name,
        version=version,
        lora_int_id=lora_int_id,
        served_name=registration.adapter.served_name(version),
        base_model=registration.base_model,
        base_revision=registration.fields["base_revision"],
        digest=registration.digest,
        rank=int(registration.fields["rank"]),
        size_bytes=int(registration.fields["size_bytes"]),
        source=source,
        requested_source=registration.source if registration.source != source else "",
        registration_id=registration.id,
        labels=registration.labels,
        metadata=registration.metadata,
        traits=registration.fields.get("traits", ""),
    )


def _found_at(pinned: str) -> str:
    """Where the pinned source is; empty if that was not kept."""
    return PinnedSource.from_json(pinned).url if pinned else ""
