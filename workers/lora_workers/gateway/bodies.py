"""A request's body: of the type that is expected, no longer than its cap, in time; nothing is parsed before that."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

from fastapi import Request

from lora_registry import gateway_codes
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
            gateway_codes.UNSUPPORTED_MEDIA_TYPE.code,
            "the body is not said to be JSON",
            remedy=gateway_codes.UNSUPPORTED_MEDIA_TYPE.remedy,
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
            gateway_codes.BODY_TIMEOUT.code,
            f"the body did not come within {_WITHIN_S:g} s",
            remedy=gateway_codes.BODY_TIMEOUT.remedy,
            headers={"Connection": "close"},
        ) from None
    return bytes(body)


def _too_large(limit_bytes: int) -> HttpProblem:
    return HttpProblem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        gateway_codes.BODY_TOO_LARGE.code,
        f"the body is longer than {limit_bytes} bytes",
        remedy=gateway_codes.BODY_TOO_LARGE.remedy,
        headers={"Connection": "close"},
    )
