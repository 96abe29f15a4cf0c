"""A request's body: of the type that is expected, no longer than its cap, in time; nothing is parsed before that."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

from fastapi import Request

from lora_workers.gateway.problems import HttpProblem

_WITHIN_S: Final = 30.0


def check_json(request: Request) -> None:
    """Make sure that the body says it is JSON.

    Raises:
        HttpProblem: it does not (415).
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != "application/json":
        raise HttpProblem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "UNSUPPORTED_MEDIA_TYPE",
            "the body is not said to be JSON",
            remedy="Send JSON with `Content-Type: application/json`.",
            headers={"Accept": "application/json"},
        )


async def read_body(request: Request, *, limit_bytes: int) -> bytes:
    """The whole raw body.

    Raises:
        HttpProblem: it is longer than `limit_bytes`, whatever it says of itself (413), or does not come (408).
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit_bytes:
        raise _too_large(limit_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(_WITHIN_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit_bytes:
                    raise _too_large(limit_bytes)
    except TimeoutError:
        raise HttpProblem(
            HTTPStatus.REQUEST_TIMEOUT,
            "BODY_TIMEOUT",
            f"the body did not come within {_WITHIN_S:g} s",
            remedy="Send it again, faster.",
            headers={"Connection": "close"},
        ) from None
    return bytes(body)


def _too_large(limit_bytes: int) -> HttpProblem:
    return HttpProblem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "BODY_TOO_LARGE",
        f"the body is longer than {limit_bytes} bytes",
        remedy="Send less; the limit is LORA_REGISTRY_GATEWAY_MAX_BODY_BYTES.",
        headers={"Connection": "close"},
    )
