"""Why a node cannot serve a version now: one error, with a code of lora_registry.node_codes."""

from __future__ import annotations

from lora_registry.code import Code
from lora_registry.errors import RegistryError


class NodeFailure(RegistryError):
    """The node cannot serve a version.

    Args:
        reason: the code of the reason.
        message: closer words; empty: the code's cause.
        may_pass: whether trying again soon can help; what cannot pass is tried again rarely.
    """

    def __init__(self, reason: Code, message: str = "", *, may_pass: bool) -> None:
        super().__init__(message or reason.cause, remedy=reason.remedy)
        self.code = reason.code  # type: ignore[misc] # it is of the reason, not of the class
        self.may_pass = may_pass
