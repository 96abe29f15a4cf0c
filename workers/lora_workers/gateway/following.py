"""Following a registration until its outcome: a long poll, and a stream of server-sent events."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from fastapi.concurrency import run_in_threadpool

from lora_registry.errors import NotFound, RedisUnavailable
from lora_registry.registrations import Registration
from lora_workers.gateway.authentication import Caller
from lora_workers.gateway.bells import Bell
from lora_workers.gateway.services import Services

RECHECK_S: Final = 5.0
"""A lost ring costs no more than this."""
HEARTBEAT_S: Final = 10.0
"""A stream that says nothing for so long says a comment, so that proxies keep it and dead readers are noticed."""


def find(services: Services, caller: Caller, registration_id: str) -> Registration:
    """The registration, if it is of a namespace that the caller reaches.

    Raises:
        NotFound: there is none, or it is somebody else's, which sounds the same.
        RedisUnavailable: the server is out of reach.
    """
    registration = services.ledger.get(registration_id)
    if not caller.reaches(registration.adapter.namespace):
        raise NotFound(f"no registration {registration_id!r}", remedy="Check the id and the token's namespaces.")
    return registration


async def wait_for_change(
    services: Services, caller: Caller, registration: Registration, *, wait_s: float, seen: str | None = None
) -> Registration:
    """The registration once it has ended or is in another state than `seen`, or as it is after `wait_s`.

    Raises:
        NotFound: its retention has ended meanwhile.
    """
    known = registration.state if seen is None else seen
    deadline = time.monotonic() + wait_s
    async with services.bells.listen(registration.id) as bell:
        while True:
            registration = await _look(services, caller, registration)
            left = deadline - time.monotonic()
            if registration.outcome or registration.state != known or left <= 0:
                return registration
            await bell.wait(min(left, RECHECK_S))


async def stream(
    services: Services, caller: Caller, registration: Registration, *, show: Callable[[Registration], str]
) -> AsyncIterator[str]:
    """Server-sent events: one for the state now, one for each change that is noticed, the outcome last."""
    shown = ""
    async with services.bells.listen(registration.id) as bell:
        while True:
            registration = await _look(services, caller, registration)
            if registration.outcome:
                yield f"event: outcome\ndata: {show(registration)}\n\n"
                return
            if registration.state != shown:
                shown = registration.state
                yield f"event: state\ndata: {show(registration)}\n\n"
            elif not await _rung(bell):
                yield ": still waiting\n\n"


async def _rung(bell: Bell) -> bool:
    return await bell.wait(min(HEARTBEAT_S, RECHECK_S))


async def _look(services: Services, caller: Caller, last: Registration) -> Registration:
    """The registration now; what was last known of it while Redis is out of reach."""
    try:
        return await run_in_threadpool(find, services, caller, last.id)
    except RedisUnavailable:
        return last
