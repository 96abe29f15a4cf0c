"""Every error as RFC 9457 has it: `application/problem+json`, with our code, remedy and findings beside it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException

from lora_registry import gateway_codes, namespace_codes
from lora_registry.errors import (
    Configuration,
    Conflict,
    IdempotencyConflict,
    InvalidName,
    NotFound,
    RegistryError,
    Rejected,
    Transient,
)
from lora_registry.findings import MAX_FINDINGS_KEPT, Finding

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 2
_FORBIDDING: Final = frozenset({"SOURCE_NOT_ALLOWED", "NAMESPACE_UNKNOWN"})
logger = logging.getLogger(__name__)


class Problem(BaseModel):
    """What went wrong with a request (RFC 9457).

    Attributes:
        type: names the kind of problem: `urn:lora-registry:problem:` and the code.
        title: the kind of problem in words.
        status: the HTTP status.
        detail: what is wrong this time.
        code: stable identifier.
        remedy: one sentence: what to do.
        findings: each thing that is wrong with the request, if several may be.
        current_version: of an alias that does not point at what was expected: what it points at; 0: at none.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    remedy: str
    findings: list[Finding] = []
    current_version: int | None = None


class HttpProblem(Exception):
    """A request is refused for a reason that only HTTP has."""

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        detail: str,
        *,
        remedy: str,
        findings: Sequence[Finding] = (),
        headers: Mapping[str, str] | None = None,
        current_version: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.remedy = remedy
        self.findings = tuple(findings)
        self.headers = dict(headers or {})
        self.current_version = current_version

    def response(self) -> Response:
        """The answer to the request."""
        problem = Problem(
            type=f"urn:lora-registry:problem:{self.code.lower().replace('_', '-')}",
            title=self.status.phrase,
            status=self.status.value,
            detail=self.detail,
            code=self.code,
            remedy=self.remedy,
            findings=list(self.findings[:MAX_FINDINGS_KEPT]),
            current_version=self.current_version,
        )
        left_out = {"current_version"} if self.current_version is None else None
        text = problem.model_dump_json(exclude=left_out)
        return Response(text, self.status.value, self.headers, media_type=MEDIA_TYPE)


def problem_of(error: RegistryError) -> HttpProblem:
    """How a gateway answers what the registry raised."""
    findings: Sequence[Finding] = error.findings if isinstance(error, Rejected) else ()
    codes = {finding.code for finding in findings}
    status, code, headers = HTTPStatus.UNPROCESSABLE_ENTITY, error.code, {}
    if any(each.startswith("QUOTA_") for each in codes):
        status, code = HTTPStatus.TOO_MANY_REQUESTS, gateway_codes.QUOTA_EXCEEDED.code
    elif codes & _FORBIDDING:
        status, code = HTTPStatus.FORBIDDEN, findings[0].code
    elif isinstance(error, (IdempotencyConflict, Conflict)):
        status = HTTPStatus.CONFLICT
    elif isinstance(error, NotFound):
        status = HTTPStatus.NOT_FOUND
    elif isinstance(error, (Transient, Configuration)):
        status, headers = HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": str(RETRY_AFTER_S)}
    elif isinstance(error, InvalidName):
        findings = (Finding(code=error.code, subject="name", message=error.message, remedy=error.remedy),)
    elif not isinstance(error, Rejected):
        status = HTTPStatus.INTERNAL_SERVER_ERROR
    remedy = findings[0].remedy if len(codes) == 1 else error.remedy
    current = error.current_version if isinstance(error, Conflict) else None
    return HttpProblem(
        status, code, error.message, remedy=remedy, findings=findings, headers=headers, current_version=current
    )


def invalid(errors: Sequence[ErrorDetails | Mapping[str, Any]], *, what: str) -> HttpProblem:
    """422: parts of the request are not legal; nothing that was sent is repeated."""
    findings = [
        namespace_codes.FIELD_INVALID.finding(_subject(each["loc"]) or what, str(each["msg"])) for each in errors
    ]
    return HttpProblem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        gateway_codes.REQUEST_INVALID.code,
        f"the {what} is not legal: {findings[0].subject}: {findings[0].message}",
        remedy=gateway_codes.REQUEST_INVALID.remedy,
        findings=findings,
    )


def invalid_body(error: ValidationError) -> HttpProblem:
    """422 for a body that does not fit its model."""
    return invalid(error.errors(include_url=False, include_input=False, include_context=False), what="body")


def install(app: FastAPI) -> None:
    """Have every error of `app` answered as a problem."""
    app.add_exception_handler(HttpProblem, _http_problem)
    app.add_exception_handler(RegistryError, _registry_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, _unexpected)


async def _http_problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpProblem)  # noqa: S101 - Starlette calls it for nothing else
    return error.response()


async def _registry_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RegistryError)  # noqa: S101 - as above
    problem = problem_of(error)
    if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.warning("%s: %s", error.code, error.message)
    return problem.response()


async def _validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - as above
    return invalid(error.errors(), what="request").response()


async def _http_exception(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    status = HTTPStatus(error.status_code)
    remedy = gateway_codes.METHOD_NOT_ALLOWED.remedy
    return HttpProblem(
        status, status.name, status.description or status.phrase, remedy=remedy, headers=error.headers
    ).response()


async def _unexpected(_request: Request, _error: Exception) -> Response:
    # Starlette raises it again afterwards, so that the server logs it with its traceback.
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    remedy = "Report it, with the gateway's log of that time."
    return HttpProblem(
        status, "UNEXPECTED", "the gateway failed in a way that was not foreseen", remedy=remedy
    ).response()


def _subject(location: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in location)[:200]
