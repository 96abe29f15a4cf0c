"""Taking one event in: early refusal by the namespace's policy, then the event queue."""

from __future__ import annotations

from fastapi.concurrency import run_in_threadpool

from lora_registry.errors import Rejected
from lora_registry.events import RegistrationRequested
from lora_registry.inbox import Accepted
from lora_registry.namespaces import check_source
from lora_workers.gateway.services import Services
from lora_workers.mlflow_registry import SCHEME as MLFLOW


async def admit_event(
    services: Services, event: RegistrationRequested, *, idempotency_key: str | None = None
) -> Accepted:
    """Accept `event` if its namespace's policy allows it; it is queued when this returns.

    The stages check again, and have the last word: this only tells the sender at once. What a name in an MLflow
    registry stands for only they can find out. An event that was accepted before is answered as it was then, whatever
    the policy has become.

    Raises:
        Rejected: the namespace may not register from there, or a quota is used up.
        IdempotencyConflict, QueueFull, ServerNotAdmitted, RedisUnavailable: see `Inbox.accept`.
    """
    policy = (await services.gatekeeper.access()).policies.get(event.namespace)
    if policy is not None and event.source.startswith(f"{MLFLOW}://"):  # it is no place: the resolve stage finds that
        policy = policy.model_copy(update={"any_source": True})
    try:
        check_source(policy, event.adapter, event.source, required=services.settings.require_namespace_policy)
        if policy is not None and policy.quotas.any:
            await run_in_threadpool(services.policies.check_quotas, event.adapter)
    except Rejected:
        if idempotency_key is None or not await run_in_threadpool(
            services.inbox.is_known, event.namespace, idempotency_key
        ):
            raise
    return await services.round_trips.run(services.inbox.acceptance(event, idempotency_key=idempotency_key))
