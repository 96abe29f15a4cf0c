"""`hooks redeliver`: an authentic delivery is read again, from what was kept of it."""

from __future__ import annotations

from collections.abc import Iterable

from lora_registry.errors import Conflict
from lora_registry.hook_deliveries import Heard, HookDeliveries
from lora_workers.hooks.hook import Hook, Reading
from lora_workers.hooks.refusals import Refused
from lora_workers.hooks.request import HookRequest


def kept_of(request: HookRequest, hook: Hook, reading: Reading, *, secrets: Iterable[str], quiet_s: float) -> str:
    """What is kept of a request: what can be read again to the same end, without secrets; empty if that cannot be."""
    kept = request.without_secrets(secrets)
    if kept.body == request.body:
        return kept.to_text()
    try:
        is_same = hook.read(kept, quiet_s=quiet_s).events == reading.events
    except Refused:
        is_same = False
    return kept.to_text() if is_same else ""


def redeliver(name: str, hook: Hook, delivery_id: str, deliveries: HookDeliveries) -> Heard:
    """Read a delivery again, by the rules of now, and ask for what it asks for whatever became of it.

    Args:
        name: the hook's name.
        hook: the hook.
        delivery_id: which of its deliveries.
        deliveries: the registry's.

    Raises:
        NotFound: no such delivery.
        Conflict: its body is not kept any more.
        RedisUnavailable: the server is out of reach.
    """
    delivery = deliveries.delivery(name, delivery_id)
    if not delivery.body:
        raise Conflict("the body of that delivery is not kept", remedy="Have its sender deliver it again.")
    reading = hook.read(HookRequest.from_text(delivery.body), quiet_s=0.0)
    return deliveries.hear(name, delivery.id, reading.events, reason=reading.reason, body=delivery.body, again=True)
