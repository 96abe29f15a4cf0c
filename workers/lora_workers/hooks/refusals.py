"""How a delivery ends that asks for nothing: it is refused, or there is a reason to ignore it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from lora_registry import hook_codes
from lora_registry.code import Code

STATUS: Final = {
    hook_codes.HOOK_UNKNOWN: HTTPStatus.NOT_FOUND,
    hook_codes.HOOK_UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    hook_codes.HOOK_FORGED: HTTPStatus.FORBIDDEN,
    hook_codes.HOOK_STALE: HTTPStatus.FORBIDDEN,
    hook_codes.HOOK_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    hook_codes.HOOK_MALFORMED: HTTPStatus.BAD_REQUEST,
    hook_codes.HOOK_SENDER_AWAY: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""What the sender is answered. None of the refusals is one that senders repeat, but the last."""


class Refused(Exception):
    """The hook refuses the delivery; it stays between the hooks and the gateway, which answers it."""

    def __init__(self, code: Code, message: str = "") -> None:
        self.message = message or code.cause
        super().__init__(self.message)
        self.why = code

    @property
    def remedy(self) -> str:
        """What the sender's owner does about it."""
        return self.why.remedy

    @property
    def status(self) -> HTTPStatus:
        """Status of the answer."""
        return STATUS[self.why]


class Ignored(Exception):
    """The delivery is authentic, and about nothing that is to be registered; the message says why."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def malformed(message: str) -> Refused:
    """The refusal of a body that cannot be read."""
    return Refused(hook_codes.HOOK_MALFORMED, message)
