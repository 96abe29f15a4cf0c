"""POST /v1/registrations and GET /v1/registrations/{id}."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field, ValidationError

from lora_registry.events import RegistrationRequested
from lora_registry.findings import Finding
from lora_registry.hook_events import HOOK_KEY
from lora_registry.registrations import Outcome, Registration
from lora_registry.tokens import Scope
from lora_workers.gateway.admission import admit_event
from lora_workers.gateway.authentication import Caller
from lora_workers.gateway.bodies import check_json, read_body
from lora_workers.gateway.documentation import EVENT_STREAM, IDEMPOTENCY_KEY, LOCATION, REGISTER, problems
from lora_workers.gateway.following import find, stream, wait_for_change
from lora_workers.gateway.plain_route import PlainRoute
from lora_workers.gateway.problems import invalid, invalid_body
from lora_workers.gateway.services import caller_of, services_of

LONGEST_WAIT_S: Final = 60.0
router = APIRouter(prefix="/v1/registrations", tags=["registrations"])


class AcceptedView(BaseModel):
    """What a sender is told of an accepted event."""

    id: Annotated[str, Field(examples=["reg_0123456789abcdef01234567"])]
    created: Annotated[bool, Field(description="False: an earlier request with this Idempotency-Key created it.")]


class RegistrationView(BaseModel):
    """A registration: how far it is, and what came of it."""

    id: str
    namespace: str
    name: str
    base_model: str
    state: Annotated[str, Field(description="The last state reached, or the outcome.", examples=["validated"])]
    stage: Annotated[str, Field(description="The stage it is due in; empty once it has ended.")]
    outcome: Outcome | None
    version: int | None
    lora_int_id: int | None
    served_name: Annotated[str | None, Field(description="What an engine calls the version, once published.")]
    digest: str | None
    attempts: Annotated[int, Field(description="Failed tries of the current stage.")]
    findings: list[Finding]
    timings_ms: dict[str, float]


def view_of(registration: Registration) -> RegistrationView:
    """What is shown of a registration."""
    is_served = bool(registration.served_name)
    return RegistrationView(
        id=registration.id,
        namespace=registration.adapter.namespace,
        name=registration.adapter.name,
        base_model=registration.base_model,
        state=registration.state,
        stage=registration.stage,
        outcome=registration.outcome,
        version=registration.version if is_served else None,
        lora_int_id=registration.lora_int_id if is_served else None,
        served_name=registration.served_name or None,
        digest=registration.digest or None,
        attempts=registration.attempts,
        findings=list(registration.findings),
        timings_ms=registration.timings_ms,
    )


async def register(request: Request) -> Response:
    """Accept an event: an adapter is somewhere, and shall be published under a name.

    2xx means that the event is queued durably, not that the adapter is good: follow the registration for its outcome.
    """
    services = services_of(request)
    caller = (await caller_of(request)).require(Scope.PUBLISH)
    idempotency_key = _idempotency_key(request)
    check_json(request)
    body = await read_body(request, limit_bytes=services.settings.gateway_max_body_bytes)
    try:
        event = RegistrationRequested.model_validate_json(body)
    except ValidationError as error:
        raise invalid_body(error) from None
    caller.require(Scope.PUBLISH, namespace=event.namespace)
    accepted = await admit_event(services, event, idempotency_key=idempotency_key)
    status = HTTPStatus.ACCEPTED if accepted.created else HTTPStatus.OK
    return Response(
        json.dumps({"id": accepted.registration_id, "created": accepted.created}),
        status.value,
        {"Location": f"/v1/registrations/{accepted.registration_id}"},
        media_type="application/json",
    )


router.add_api_route(
    "",
    register,
    methods=["POST"],
    route_class_override=PlainRoute,
    status_code=HTTPStatus.ACCEPTED,
    response_model=AcceptedView,
    summary="Register an adapter",
    openapi_extra=REGISTER,
    responses={
        202: {"description": "The event is queued durably.", "headers": LOCATION},
        200: {"model": AcceptedView, "description": "It was accepted before, under this key.", "headers": LOCATION},
        **problems(401, 403, 408, 409, 413, 415, 422, 429, 503),
    },
)


@router.get(
    "/{registration_id}",
    response_model=RegistrationView,
    summary="Follow a registration",
    responses={200: EVENT_STREAM, **problems(401, 403, 404, 422, 503)},
)
async def follow(
    request: Request,
    caller: Annotated[Caller, Depends(caller_of)],
    registration_id: Annotated[str, Path(pattern="^reg_[0-9a-f]{24}$", examples=["reg_0123456789abcdef01234567"])],
    wait_s: Annotated[
        float, Query(ge=0, le=LONGEST_WAIT_S, description="Answer when the state changes, or after so many seconds.")
    ] = 0,
    seen: Annotated[
        str | None, Query(max_length=32, description="State that the caller knows; default: the one it is in now.")
    ] = None,
) -> Response:
    """The registration now, or (`wait_s`) once it has changed or ended.

    With `Accept: text/event-stream` its states come as events (`state`, and `outcome`, the last one) until it ends.
    """
    services = services_of(request)
    caller.require(Scope.READ, Scope.PUBLISH)
    if wait_s != wait_s:
        raise invalid([{"loc": ("query", "wait_s"), "msg": "It is not a number."}], what="request")
    registration = await run_in_threadpool(find, services, caller, registration_id)
    if "text/event-stream" in request.headers.get("accept", ""):
        events = stream(services, caller, registration, show=_shown)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    if wait_s and not registration.outcome:
        registration = await wait_for_change(services, caller, registration, wait_s=wait_s, seen=seen)
    return Response(_shown(registration), media_type="application/json", headers={"Cache-Control": "no-store"})


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        message = f"It takes 1 to 255 printable ASCII characters without spaces, not beginning with {HOOK_KEY}"
        raise invalid([{"loc": ("header", "Idempotency-Key"), "msg": message}], what="request")
    return key


def _shown(registration: Registration) -> str:
    return view_of(registration).model_dump_json()
