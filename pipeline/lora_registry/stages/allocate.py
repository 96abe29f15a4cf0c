"""Stage 1, allocate: check that the request can be met at all, then give it its `lora_int_id`."""

from __future__ import annotations

from lora_registry import codes
from lora_registry.catalog import Catalog
from lora_registry.errors import Rejected
from lora_registry.findings import Finding
from lora_registry.ledger import Lease, Ledger
from lora_registry.registrations import Registration


def allocate(lease: Lease, *, ledger: Ledger, catalog: Catalog) -> dict[str, str | int]:
    """Get or allocate the id of the registration.

    Returns:
        Nothing to add: the allocating script stores the id itself.

    Raises:
        Rejected: unknown base, or the name is taken by a base or by an adapter of another base; or no id is left.
        LeaseLost: another worker owns the registration.
        Transient: Redis is out of reach, or not admitted.
    """
    finding = _check_request(lease.registration, catalog)
    if finding:
        raise Rejected(finding.message, findings=(finding,))
    ledger.allocate(lease)
    return {}


def _check_request(registration: Registration, catalog: Catalog) -> Finding | None:
    adapter, base = registration.adapter, registration.base_model
    known = catalog.registered(adapter, base)
    if not known.base_known:
        return codes.BASE_UNKNOWN.finding(base)
    if known.name_is_base:
        return codes.NAME_CONFLICT.finding(str(adapter))
    if known.owner not in (None, base):
        return codes.ADAPTER_BASE_CONFLICT.finding(str(adapter), expected=known.owner, actual=base)
    return None
