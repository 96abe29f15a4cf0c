"""POST /v1/webhooks/{hook}: what senders call. It answers when what they ask for is in Redis, and not before."""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from lora_registry import hook_codes
from lora_registry.hook_deliveries import DeliveryVerdict, Heard, HookDeliveries
from lora_workers.gateway.bodies import read_body
from lora_workers.gateway.delivery_fetches import DeliveryFetches, Fetcher
from lora_workers.gateway.documentation import problems
from lora_workers.gateway.intake import Clock, Intake
from lora_workers.gateway.plain_route import PlainRoute
from lora_workers.gateway.problems import HttpProblem
from lora_workers.gateway.services import Services
from lora_workers.hooks.configuration import load_hooks
from lora_workers.hooks.fetching import AwsFetcher
from lora_workers.hooks.refusals import Refused
from lora_workers.hooks.request import HookRequest

_DELIVERY: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "hook",
            "in": "path",
            "required": True,
            "schema": {"type": "string", "title": "Hook"},
            "example": "hub",
        }
    ],
    "requestBody": {
        "required": True,
        "description": "What a sender of the hook's kind sends.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    },
}


class HeardView(BaseModel):
    """What a sender is told of its delivery."""

    delivery_id: Annotated[str, Field(description="The sender's id of it, or one that it was given here.")]
    verdict: DeliveryVerdict
    reason: Annotated[str, Field(description="Why it is ignored, a duplicate, or not queued whole.")]


def hook_router(services: Services, *, fetcher: Fetcher | None = None, clock: Clock = time.time) -> APIRouter:
    """The route of all hooks.

    Args:
        services: the gateway's.
        fetcher: gets certificates of Amazon SNS; None: over https.
        clock: the time, in seconds since 1970, that signed timestamps are compared with.

    Raises:
        Configuration: the hooks file is wrong, or a secret is missing.
    """
    settings = services.settings
    intake = Intake(
        load_hooks(settings.hooks_file),
        HookDeliveries(services.client, settings),
        settings,
        round_trips=services.round_trips,
        fetches=DeliveryFetches(fetcher or AwsFetcher()),
        clock=clock,
    )
    router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], route_class=PlainRoute)

    @router.post(
        "/{hook}",
        status_code=HTTPStatus.ACCEPTED,
        response_model=HeardView,
        summary="Deliver to a hook",
        openapi_extra=_DELIVERY,
        responses={
            202: {"description": "What the delivery asks for is queued durably."},
            200: {"model": HeardView, "description": "It asks for nothing new: it is ignored, or a duplicate."},
            **problems(400, 401, 403, 404, 408, 413, 503),
        },
    )
    async def deliver(request: Request) -> Response:
        """Take a delivery. It is proved by what its kind of sender has: a secret, a signature or a bearer token."""
        hook: str = request.path_params["hook"]
        try:
            intake.check_known(hook)
            body = await _read_body(request, hook, intake, limit_bytes=settings.hook_max_body_bytes)
            return _answer(await intake.take(hook, HookRequest(_headers(request), body)))
        except Refused as error:
            raise _problem(error) from error

    return router


async def _read_body(request: Request, hook: str, intake: Intake, *, limit_bytes: int) -> bytes:
    """The whole body; one that is too long is refused by the hook.

    Raises:
        Refused: it is longer than `limit_bytes`.
        HttpProblem: it does not come (408).
    """
    try:
        return await read_body(request, limit_bytes=limit_bytes)
    except HttpProblem as problem:
        if problem.status is not HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            raise
    refusal = Refused(hook_codes.HOOK_TOO_LARGE)
    await intake.note(hook, refusal)
    raise refusal


def _headers(request: Request) -> dict[str, str]:
    """Headers by name; one that came twice is as good as one with both values, and so proves nothing."""
    joined: dict[str, str] = {}
    for name, value in request.headers.items():
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def _answer(heard: Heard) -> Response:
    status = HTTPStatus.ACCEPTED if heard.verdict is DeliveryVerdict.QUEUED else HTTPStatus.OK
    text = json.dumps({"delivery_id": heard.delivery_id, "verdict": heard.verdict, "reason": heard.reason})
    return Response(text, status.value, media_type="application/json")


def _problem(refused: Refused) -> HttpProblem:
    headers = {
        HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": "Bearer"},
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: {"Connection": "close"},
        HTTPStatus.SERVICE_UNAVAILABLE: {"Retry-After": "1"},
    }.get(refused.status, {})
    return HttpProblem(refused.status, refused.why.code, refused.message, remedy=refused.remedy, headers=headers)
