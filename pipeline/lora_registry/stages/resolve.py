"""Stage 2, resolve: find the adapter's two files where the publisher said they are, and pin them.

Here the policy of the namespace is enforced: a publisher writes to the event queue directly, so no gateway can be
relied on.
"""

from __future__ import annotations

from lora_registry.ledger import Lease
from lora_registry.namespaces import check_pinned
from lora_registry.policies import Policies
from lora_registry.sources import Source


def resolve(lease: Lease, *, source: Source, policies: Policies) -> dict[str, str | int]:
    """Pin the registration's source, with the credential that the namespace's policy gives for it.

    Returns:
        `pinned`: the pinned source, for the validate stage.

    Raises:
        Rejected: there is no adapter there, or it may not be read, or the namespace may not register it.
        Transient: the place, or Redis, is out of reach.
    """
    registration = lease.registration
    rule = policies.check(registration.adapter, registration.source)
    pinned = source.resolve(registration.source, credential=rule.credential)
    check_pinned(rule, pinned)
    return {"pinned": pinned.to_json()}
