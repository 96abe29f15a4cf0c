"""A finding: one thing that is wrong or noteworthy about a registration, readable by people and programs."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

MAX_FINDINGS_KEPT = 32
"""Findings kept with a registration in Redis; the report in the artifact store holds all of them."""


class Severity(StrEnum):
    """How much a finding weighs: one `error` rejects the registration."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Finding(BaseModel):
    """One observation about a registration.

    Attributes:
        code: stable identifier, listed in `lora_registry.codes`.
        severity: `error` rejects; `warning` and `info` do not.
        subject: what it is about: a tensor, a field of adapter_config.json, a file, or a name.
        message: one sentence of cause.
        expected: what would have been right, as text; empty if there is nothing to compare.
        actual: what was found, as text.
        remedy: one sentence: what to do.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    code: str
    severity: Severity = Severity.ERROR
    subject: str = ""
    message: str = ""
    expected: str = ""
    actual: str = ""
    remedy: str = ""


def has_error(findings: list[Finding] | tuple[Finding, ...]) -> bool:
    """Whether one of the findings rejects the registration."""
    return any(finding.severity is Severity.ERROR for finding in findings)
