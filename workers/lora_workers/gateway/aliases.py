"""GET, PUT and DELETE of /v1/adapters/{namespace}/{name}/aliases/{alias}: who moved it, moving it, removing it.

Moving changes what engines answer with, at once and for everybody, so it takes a token of the scope `admin`: whoever
may publish a version may not thereby choose the one that is served under a pinned alias.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_registry.catalog_records import AliasMode, MovedBy, VersionRecord
from lora_registry.errors import NotFound, Rejected
from lora_registry.lifecycle import AliasMove
from lora_registry.names import AdapterName, check_word
from lora_registry.tokens import Scope
from lora_workers.gateway.adapters import Name, Namespace
from lora_workers.gateway.authentication import Caller
from lora_workers.gateway.bodies import check_json, read_body
from lora_workers.gateway.documentation import body_of, problems
from lora_workers.gateway.problems import invalid_body
from lora_workers.gateway.services import caller_of, services_of

_MOST: Final = 2**31
router = APIRouter(prefix="/v1/adapters/{namespace}/{name}/aliases", tags=["aliases"])
Alias = Annotated[str, Path(max_length=96, examples=["stable"])]


class AliasMoveWanted(BaseModel):
    """Where an alias is to point.

    Attributes:
        version: version to pin it to; null: the adapter's own alias follows the newest version again.
        expect: version it must point at now, 0 for none; null moves it in any case.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Annotated[int, Field(ge=1, lt=_MOST)] | None
    expect: Annotated[int, Field(ge=0, lt=_MOST)] | None = None


class AliasMoveView(BaseModel):
    """One move of an alias."""

    before: Annotated[int | None, Field(description="Null: it pointed at none.")]
    after: Annotated[int | None, Field(description="Null: it was removed.")]
    mode: AliasMode
    how: MovedBy
    by: str
    at_s: Annotated[float, Field(description="Seconds since 1970, by Redis' clock.")]


class AliasDetail(BaseModel):
    """An alias, and its last moves."""

    version: int
    mode: AliasMode
    history: Annotated[list[AliasMoveView], Field(description="Newest first; at most 100.")]


class AliasPointsAt(BaseModel):
    """What an alias points at now."""

    alias: Annotated[str, Field(examples=["default.support-bot@stable"])]
    version: VersionRecord


class AliasRemoved(BaseModel):
    """An alias that is no more."""

    alias: str
    before: Annotated[int, Field(description="The version it pointed at.")]


@router.get(
    "/{alias}", response_model=AliasDetail, summary="Show an alias", responses=problems(401, 403, 404, 422, 503)
)
def show_alias(
    request: Request, caller: Annotated[Caller, Depends(caller_of)], namespace: Namespace, name: Name, alias: Alias
) -> AliasDetail:
    """What an alias points at, and who moved it from where to where."""
    caller.require(Scope.READ, namespace=namespace)
    lifecycle, adapter = services_of(request).lifecycle, AdapterName(namespace, name)
    target = lifecycle.target(adapter, check_word(alias, what="alias"))
    if target is None:
        raise NotFound(f"{adapter} has no alias {alias!r}")
    history = [_view(each) for each in lifecycle.history(adapter, alias)]
    return AliasDetail(version=target.version, mode=target.mode, history=history)


@router.put(
    "/{alias}",
    response_model=AliasPointsAt,
    summary="Move an alias",
    openapi_extra=body_of(AliasMoveWanted, {"version": 3, "expect": 2}),
    responses=problems(401, 403, 404, 408, 409, 413, 415, 422, 503),
)
async def move_alias(
    request: Request, caller: Annotated[Caller, Depends(caller_of)], namespace: Namespace, name: Name, alias: Alias
) -> Response:
    """Point an alias at a version and pin it there, if it points at what is expected.

    Of several who expect the same, one wins; the others are told (409) what it points at now.
    """
    caller.require(Scope.ADMIN, namespace=namespace)
    adapter, services = AdapterName(namespace, name), services_of(request)
    named = check_word(alias, what="alias")
    check_json(request)
    body = await read_body(request, limit_bytes=services.settings.gateway_max_body_bytes)
    try:
        wanted = AliasMoveWanted.model_validate_json(body)
    except ValidationError as error:
        raise invalid_body(error) from None
    if wanted.version is None and named != adapter.name:
        raise Rejected(f"{named!r} cannot follow: only the adapter's own alias does", remedy="Give a version.")
    record = await run_in_threadpool(
        services.lifecycle.catalog.move_alias, adapter, named, wanted.version, expect=wanted.expect, by=_who(caller)
    )
    moved = AliasPointsAt(alias=f"{adapter.qualified}@{named}", version=record)
    return Response(moved.model_dump_json(), HTTPStatus.OK, media_type="application/json")


@router.delete(
    "/{alias}",
    response_model=AliasRemoved,
    summary="Remove an alias",
    responses=problems(401, 403, 404, 409, 422, 503),
)
def remove_alias(
    request: Request,
    caller: Annotated[Caller, Depends(caller_of)],
    namespace: Namespace,
    name: Name,
    alias: Alias,
    expect: Annotated[int | None, Query(ge=0, lt=_MOST, description="Only if it points at this version now.")] = None,
) -> AliasRemoved:
    """Remove an alias other than the adapter's own; the version it points at stays."""
    caller.require(Scope.ADMIN, namespace=namespace)
    adapter, named = AdapterName(namespace, name), check_word(alias, what="alias")
    before = services_of(request).lifecycle.remove_alias(adapter, named, expect=expect, by=_who(caller))
    return AliasRemoved(alias=f"{adapter.qualified}@{named}", before=before)


def _who(caller: Caller) -> str:
    """What the history calls the caller: the id of the token, which is no secret."""
    return f"token {caller.name}" if caller.token else "gateway"


def _view(move: AliasMove) -> AliasMoveView:
    return AliasMoveView(
        before=move.before, after=move.after, mode=AliasMode(move.mode), how=move.how, by=move.by, at_s=move.at_s
    )
