"""Why a node cannot serve a version now: one error, with a code of lora_registry.node_codes."""

from __future__ import annotations

from lora_registry.code import Code


class NodeFailure(Exception):
    """The node cannot serve a version; it ends in an acknowledgement, not at a user.

    Args:
        reason: the code of the reason.
        message: closer words; empty: the code's cause.
        may_pass: whether trying again soon can help; what cannot pass is tried again rarely.
    """

    def __init__(self, reason: Code, message: str = "", *, may_pass: bool) -> None:
        self.message = message or reason.cause
        super().__init__(self.message)
        self.code, self.remedy = reason.code, reason.remedy
        self.may_pass = may_pass
