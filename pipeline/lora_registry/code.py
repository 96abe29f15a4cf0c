"""What a code is. The codes themselves are in codes.py and the `…_codes.py` beside it; all_codes.py lists them all."""

from __future__ import annotations

from dataclasses import dataclass

from lora_registry.findings import Finding, Severity


@dataclass(frozen=True)
class Code:
    """What a finding's code stands for.

    Attributes:
        code: the stable identifier.
        severity: weight of every finding with this code.
        cause: one sentence; the message of a finding that brings no closer one.
        remedy: one sentence: what the publisher does about it.
        may_pass: whether the cause can go away while the adapter stays as it is.
    """

    code: str
    severity: Severity
    cause: str
    remedy: str
    may_pass: bool = False

    def finding(
        self,
        subject: str = "",
        message: str = "",
        *,
        expected: object = "",
        actual: object = "",
        remedy: str = "",
    ) -> Finding:
        """A finding of this code about `subject`; `message` and `remedy` replace the general ones."""
        return Finding(
            code=self.code,
            severity=self.severity,
            subject=subject,
            message=message or self.cause,
            expected=str(expected),
            actual=str(actual),
            remedy=remedy or self.remedy,
        )


def error(code: str, cause: str, remedy: str) -> Code:
    """A code whose findings reject."""
    return Code(code, Severity.ERROR, cause, remedy)


def obstacle(code: str, cause: str, remedy: str) -> Code:
    """A code whose findings reject for what lies around the adapter: the same one may be accepted later."""
    return Code(code, Severity.ERROR, cause, remedy, may_pass=True)


def warning(code: str, cause: str, remedy: str) -> Code:
    """A code whose findings are worth a look, and reject nothing."""
    return Code(code, Severity.WARNING, cause, remedy)


def info(code: str, cause: str, remedy: str) -> Code:
    """A code whose findings are good to know."""
    return Code(code, Severity.INFO, cause, remedy)
