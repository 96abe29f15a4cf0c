"""What all requests of one gateway share. Nothing connects before it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import redis
from fastapi import Request

from lora_registry.catalog import Catalog
from lora_registry.connection import connect, connect_async
from lora_registry.inbox import Inbox
from lora_registry.keys import Keys
from lora_registry.ledger import Ledger
from lora_registry.lifecycle import Lifecycle
from lora_registry.policies import Policies
from lora_registry.settings import Settings
from lora_registry.tokens import Tokens
from lora_workers.gateway.authentication import Caller, Gatekeeper
from lora_workers.gateway.bells import Bells
from lora_workers.gateway.round_trips import RoundTrips

_TIMEOUT_S: Final = 5.0
"""A request that Redis does not answer in this time is answered with 503; the sender tries again."""


@dataclass(frozen=True)
class Services:
    """The parts of one gateway.

    Attributes:
        settings: the registry's.
        client: the blocking connections; use them in threads only.
        lifecycle: changes of what is published, over connections of their own; likewise.
        inbox, ledger, catalog, policies: the registry, over `client`.
        round_trips: runs scripts for coroutines.
        bells: tells coroutines that wait for registrations.
        gatekeeper: tells who asks.
    """

    settings: Settings
    client: redis.Redis
    lifecycle: Lifecycle
    inbox: Inbox
    ledger: Ledger
    catalog: Catalog
    policies: Policies
    round_trips: RoundTrips
    bells: Bells
    gatekeeper: Gatekeeper

    async def close(self) -> None:
        """End threads and connections."""
        await self.round_trips.close()
        await self.bells.close()
        self.client.close()
        self.lifecycle.close()


def open_services(settings: Settings, *, on_loopback: bool) -> Services:
    """The parts of a gateway with these settings.

    Raises:
        Configuration: the server's URL is not legal.
    """
    client = connect(settings.redis_url, name="lora-gateway", retries=1, timeout_s=_TIMEOUT_S)
    # Not tried again: a compare-and-swap whose reply was lost would be told that it lost against itself.
    mover = connect(
        settings.alias_redis_url or settings.redis_url, name="lora-gateway-aliases", retries=0, timeout_s=_TIMEOUT_S
    )
    inbox, policies = Inbox(client, settings), Policies(client, settings)
    sender = connect_async(settings.redis_url, name="lora-gateway-scripts", retries=1, timeout_s=_TIMEOUT_S)
    listener = connect_async(settings.redis_url, name="lora-gateway-bells")
    return Services(
        settings=settings,
        client=client,
        lifecycle=Lifecycle(mover, settings),
        inbox=inbox,
        ledger=Ledger(client, settings),
        catalog=Catalog(client, settings),
        policies=policies,
        round_trips=RoundTrips(sender),
        bells=Bells(listener, Keys(settings.key_prefix)),
        gatekeeper=Gatekeeper(Tokens(client, settings), policies, on_loopback=on_loopback),
    )


def services_of(request: Request) -> Services:
    """The parts of the gateway that serves the request."""
    services: Services = request.app.state.services
    return services


async def caller_of(request: Request) -> Caller:
    """Who sent the request; the dependency of every route that is not open to all.

    Raises:
        HttpProblem: the token is missing or not known (401).
        RedisUnavailable: the server is out of reach.
    """
    return await services_of(request).gatekeeper.identify(request)
