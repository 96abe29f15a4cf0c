"""Stage 2, resolve: find the adapter's two files where the publisher said they are, and pin them."""

from __future__ import annotations

from lora_registry.ledger import Lease
from lora_registry.sources import Source


def resolve(lease: Lease, *, source: Source) -> dict[str, str | int]:
    """Pin the registration's source.

    Returns:
        `pinned`: the pinned source, for the validate stage.

    Raises:
        Rejected: there is no adapter there, or it may not be read.
        Transient: the place is out of reach.
    """
    return {"pinned": source.resolve(lease.registration.source).to_json()}
