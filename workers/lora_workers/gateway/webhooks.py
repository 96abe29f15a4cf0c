"""POST /v1/webhooks/{hook}: what senders call. It answers when what they ask for is in Redis, and not before."""

from __future__ import annotations

import time
from http import HTTPStatus

import redis
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from lora_registry import hook_codes
from lora_registry.errors import RegistryError, Transient
from lora_registry.hook_deliveries import Heard, Verdict
from lora_registry.settings import Settings
from lora_workers.hooks.configuration import load_hooks
from lora_workers.hooks.fetching import AwsFetcher
from lora_workers.hooks.intake import Clock, Fetcher, Intake
from lora_workers.hooks.refusals import Refused
from lora_workers.hooks.request import HookRequest

_RETRY_AFTER_S = "1"
"""MLflow waits as long as it is told, in a pool of ten threads, so this is short."""


def hook_router(
    settings: Settings, client: redis.Redis, *, fetcher: Fetcher | None = None, clock: Clock = time.time
) -> APIRouter:
    """The route of all hooks.

    Args:
        settings: the registry's settings.
        client: connection to the registry's server.
        fetcher: gets certificates of Amazon SNS; None: over https.
        clock: the time, in seconds since 1970, that signed timestamps are compared with.

    Raises:
        Configuration: the hooks file is wrong, or a secret is missing.
    """
    intake = Intake(load_hooks(settings.hooks_file), client, settings, fetcher=fetcher or AwsFetcher(), clock=clock)
    router = APIRouter(tags=["webhooks"])

    @router.post("/v1/webhooks/{hook}", responses={code: {"description": text} for code, text in _ANSWERS.items()})
    async def deliver(hook: str, request: Request) -> JSONResponse:
        """Take a delivery of a configured hook; its body is what the sender of that kind sends."""
        try:
            intake.check_known(hook)
            body = await _read_body(request, settings.hook_max_body_bytes)
            headers = {name.lower(): value for name, value in request.headers.items()}
            return _answer(await run_in_threadpool(intake.take, hook, HookRequest(headers, body)))
        except Refused as error:
            if error.why is hook_codes.HOOK_TOO_LARGE:
                await run_in_threadpool(intake.note, hook, error)
            return _failure(error.status, error, error.why.code)
        except Transient as error:
            return _failure(HTTPStatus.SERVICE_UNAVAILABLE, error, error.code)

    return router


_ANSWERS: dict[int | str, str] = {
    200: "Nothing new is asked for: ignored, or a duplicate",
    202: "What it asks for is queued",
    400: "The body cannot be read",
    401: "No secret and no signature",
    403: "A wrong secret or signature, or an old delivery",
    404: "No such hook",
    413: "The body is too long",
    503: "Try again: nothing was queued",
}


async def _read_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body; reading stops where it is too long.

    Raises:
        Refused: it is longer than `limit_bytes`.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit_bytes:
        raise Refused(hook_codes.HOOK_TOO_LARGE)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise Refused(hook_codes.HOOK_TOO_LARGE)
    return bytes(body)


def _answer(heard: Heard) -> JSONResponse:
    status = HTTPStatus.ACCEPTED if heard.verdict is Verdict.QUEUED else HTTPStatus.OK
    content = {"delivery_id": heard.delivery_id, "verdict": heard.verdict.value, "reason": heard.reason}
    return JSONResponse(content, status)


def _failure(status: HTTPStatus, error: RegistryError, code: str) -> JSONResponse:
    headers = {"Retry-After": _RETRY_AFTER_S} if status is HTTPStatus.SERVICE_UNAVAILABLE else None
    content = {"code": code, "message": error.message, "remedy": error.remedy}
    return JSONResponse(content, status, headers=headers)
