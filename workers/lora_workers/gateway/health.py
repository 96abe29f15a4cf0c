"""GET /healthz and GET /readyz; both are open to all and tell nothing else."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from lora_registry.errors import ServerNotAdmitted
from lora_registry.inbox import is_admitted
from lora_workers.gateway.documentation import problems
from lora_workers.gateway.services import services_of

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """All is well."""

    status: Annotated[Literal["ok"], Field(examples=["ok"])] = "ok"


@router.get("/healthz", response_model=Health, summary="Is the process alive?")
async def healthz() -> Health:
    """The process answers; it looks at nothing else, so that an outage of Redis restarts no gateway."""
    return Health()


@router.get("/readyz", response_model=Health, summary="Would an event be accepted?", responses=problems(503))
def readyz(request: Request) -> Health:
    """Redis answers, and a dispatcher has admitted it."""
    services = services_of(request)
    if not is_admitted(services.client, services.settings):
        raise ServerNotAdmitted
    return Health()
