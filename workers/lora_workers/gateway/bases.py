"""GET /v1/bases: the base models that adapters are compared with."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import Response
from pydantic import BaseModel

from lora_registry.base_profile import BaseProfile
from lora_registry.names import check_base_name
from lora_registry.tokens import Scope
from lora_workers.gateway.authentication import Caller
from lora_workers.gateway.documentation import problems
from lora_workers.gateway.services import caller_of, services_of

router = APIRouter(prefix="/v1/bases", tags=["bases"])


class BaseView(BaseModel):
    """A base model in short."""

    name: str
    revision: str
    architecture: str
    num_layers: int
    also_known_as: tuple[str, ...]


class BaseList(BaseModel):
    """All base models, by name."""

    bases: list[BaseView]


@router.get("", response_model=BaseList, summary="List base models", responses=problems(401, 403, 503))
def list_bases(request: Request, caller: Annotated[Caller, Depends(caller_of)]) -> BaseList:
    """The registered base models."""
    caller.require(Scope.READ, Scope.PUBLISH)
    profiles = services_of(request).catalog.bases.all()
    fields = BaseView.model_fields
    return BaseList(bases=[BaseView(**{name: getattr(each, name) for name in fields}) for each in profiles])


@router.get(
    "/{name:path}",
    response_model=BaseProfile,
    summary="Show a base model",
    responses=problems(401, 403, 404, 422, 503),
)
def show_base(
    request: Request,
    caller: Annotated[Caller, Depends(caller_of)],
    name: Annotated[str, Path(max_length=200, examples=["meta-llama/Llama-3.1-8B"])],
) -> Any:
    """A base model's whole profile: every module's shape as [out, in]."""
    caller.require(Scope.READ, Scope.PUBLISH)
    profile = services_of(request).catalog.bases.get(check_base_name(name))
    return Response(profile.model_dump_json(), media_type="application/json")
