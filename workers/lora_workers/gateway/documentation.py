"""What OpenAPI says besides what FastAPI finds out by itself: the event as a body, examples, and every error answer."""

from __future__ import annotations

import re
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from lora_registry.events import RegistrationRequested
from lora_registry.hook_events import HOOK_KEY
from lora_workers.gateway.problems import MEDIA_TYPE, RETRY_AFTER_S, Problem

_SIGNED: Final = "/v1/webhooks/"
"""Who calls these proves it by a signature, not by a token."""
_REF: Final = "#/components/schemas/{model}"
_EXAMPLE: Final = {
    "name": "support-bot",
    "base_model": "meta-llama/Llama-3.1-8B",
    "source": "hf://acme/support-bot@main",
    "labels": {"team": "support"},
}
_WHEN: Final = {
    400: "The body cannot be read.",
    401: "The bearer token is missing, unknown or expired.",
    403: "The token has not the scope or the namespace, or the namespace may not register from this source.",
    404: "There is no such thing.",
    408: "The body did not come in time.",
    409: "The Idempotency-Key was used for another request, or the alias does not point at what was expected.",
    413: "The body is longer than the gateway takes.",
    415: "The body is not JSON.",
    422: "Something in the request is not legal; the findings say what.",
    429: "A quota of the namespace is used up; the findings say which.",
    503: "Redis is out of reach or has not been admitted, or the event queue is full: nothing was accepted.",
}
_HEADERS: Final = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}, "required": True}},
    503: {"Retry-After": {"schema": {"type": "integer", "example": RETRY_AFTER_S}, "required": True}},
}
RETRIED: Final = (
    "Send the request again with the same key as often as you like: one registration comes of it. "
    "Keys belong to the namespace and are kept as long as the registration."
)
LOCATION: Final = {"Location": {"description": "The registration.", "schema": {"type": "string"}, "required": True}}
IDEMPOTENCY_KEY: Final = re.compile(rf"(?!{HOOK_KEY})[\x21-\x7e]{{1,255}}")
"""One that begins like those of hooks could make a delivery's event look like another request with its key."""
REGISTER: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": RETRIED,
            "schema": {"type": "string", "pattern": f"^{IDEMPOTENCY_KEY.pattern}$"},
            "example": "run-1234/step-900",
        }
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": _REF.format(model="RegistrationRequested")},
                "examples": {"hub": {"summary": "A repository of a model hub", "value": _EXAMPLE}},
            }
        },
    },
}
EVENT_STREAM: Final[dict[str, Any]] = {
    "description": "The registration, or its states as events.",
    "content": {
        "text/event-stream": {
            "schema": {"type": "string"},
            "example": 'event: state\ndata: {"state": "validated"}\n\nevent: outcome\ndata: {"state": "published"}\n\n',
        }
    },
}


def body_of(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """A body that the route reads by itself, for its `openapi_extra`."""
    content = {"application/json": {"schema": model.model_json_schema(), "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route, for its `responses`."""
    content = {MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}}
    return {
        status: {"description": _WHEN[status], "content": content, "headers": _HEADERS.get(status, {})}
        for status in statuses
    }


def document(app: FastAPI) -> None:
    """Have `app` describe itself with our models, its error answers and its bearer tokens."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way to extend it


def _described(app: FastAPI) -> dict[str, Any]:
    described = get_openapi(
        title="lora-registry",
        version=version("lora-registry"),
        summary="Register LoRA adapters: numbered, validated, immutable, announced.",
        routes=app.routes,
    )
    components = described.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for model in (RegistrationRequested, Problem):
        schema = model.model_json_schema(ref_template=_REF)
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    schemas["Problem"]["example"] = _problem_example()
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    for path, operations in described["paths"].items():
        for operation in operations.values():
            _mend(operation, is_open=not path.startswith("/v1/") or path.startswith(_SIGNED))
    return described


def _mend(operation: dict[str, Any], *, is_open: bool) -> None:
    """FastAPI documents a 422 of its own wherever there are parameters, in a form that we do not send."""
    answer = operation["responses"].get("422")
    if answer and MEDIA_TYPE not in answer.get("content", {}):
        operation["responses"]["422"] = problems(422)[422]
    if not is_open:
        operation["security"] = [{"bearer": []}]


def _problem_example() -> dict[str, Any]:
    status = HTTPStatus.CONFLICT
    return Problem(
        type="urn:lora-registry:problem:idempotency-conflict",
        title=status.phrase,
        status=status.value,
        detail="idempotency key 'run-7' was used for another request (reg_0123456789abcdef01234567)",
        code="IDEMPOTENCY_CONFLICT",
        remedy="Use a new key for a new request; repeat the old request unchanged to get its registration.",
    ).model_dump(mode="json")
