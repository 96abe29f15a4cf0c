"""Codes with which the HTTP gateway refuses a request that says nothing of an adapter yet."""

from __future__ import annotations

from lora_registry.code import error

UNAUTHENTICATED = error(
    "UNAUTHENTICATED",
    "The request has no token, or none that counts.",
    "Send `Authorization: Bearer TOKEN`; an operator makes one with `lora-registry token create`.",
)
FORBIDDEN = error(
    "FORBIDDEN",
    "The token does not allow this request.",
    "Use a token with the scope and the namespace, or have an operator make one.",
)
QUOTA_EXCEEDED = error(
    "QUOTA_EXCEEDED",
    "A quota of the namespace is used up; the finding says which one.",
    "Wait until it counts anew, retire what is not needed, or have an operator raise it.",
)
REQUEST_INVALID = error(
    "REQUEST_INVALID",
    "The request or its body is not as the API describes it.",
    "Correct what the findings name.",
)
UNSUPPORTED_MEDIA_TYPE = error(
    "UNSUPPORTED_MEDIA_TYPE",
    "The body is not said to be JSON.",
    "Send JSON with `Content-Type: application/json`.",
)
BODY_TOO_LARGE = error(
    "BODY_TOO_LARGE",
    "The body is longer than the gateway takes.",
    "Send less; the limit is LORA_REGISTRY_GATEWAY_MAX_BODY_BYTES.",
)
BODY_TIMEOUT = error(
    "BODY_TIMEOUT",
    "The body did not come in time.",
    "Send it again, faster.",
)
METHOD_NOT_ALLOWED = error(
    "METHOD_NOT_ALLOWED",
    "The path does not take this method.",
    "Look at /openapi.json for the paths and methods there are.",
)
