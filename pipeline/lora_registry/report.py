"""The report of a validation: what was found, and what becomes of the adapter on each engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_registry.engine_profiles import EngineProfile, Ruling
from lora_registry.engine_verdicts import EngineVerdict, refuse_invalid
from lora_registry.errors import Rejected
from lora_registry.events import describe_validation_error
from lora_registry.findings import Finding, has_error
from lora_registry.judgement import Judgement


class Verdict(StrEnum):
    """Whether an adapter fits its base model."""

    VALID = "valid"
    INVALID = "invalid"


class ValidationReport(BaseModel):
    """What was found about one adapter.

    Attributes:
        schema_version: version of this form.
        verdict: invalid if one of the findings is an error.
        findings: all of them.
        engines: verdict by the name of an engine profile.
        spectra: what the numbers say beyond the findings, the device included; None if they were not looked at.
        bytes_read: bytes of the source that were read.
        timings_ms: milliseconds by part of the work.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    engines: dict[str, EngineVerdict] = {}
    spectra: dict[str, Any] | None = None
    bytes_read: int = 0
    timings_ms: dict[str, float] = {}

    @classmethod
    def of(
        cls,
        findings: tuple[Finding, ...],
        *,
        engines: Mapping[str, EngineVerdict] | None = None,
        spectra: Mapping[str, Any] | None = None,
        bytes_read: int = 0,
        timings_ms: Mapping[str, float] | None = None,
    ) -> Self:
        """The report of these findings; they decide the verdict."""
        return cls(
            verdict=Verdict.INVALID if has_error(findings) else Verdict.VALID,
            findings=findings,
            engines=dict(engines or {}),
            spectra=None if spectra is None else dict(spectra),
            bytes_read=bytes_read,
            timings_ms={part: round(spent, 3) for part, spent in (timings_ms or {}).items()},
        )

    @property
    def is_worth_keeping(self) -> bool:
        """Whether it says more than that all is well."""
        if self.findings or self.spectra is not None:
            return True
        return any(each.verdict is not Ruling.ACCEPT for each in self.engines.values())

    def as_result(self) -> dict[str, Any]:
        """What `check --json` prints: plain JSON types only; the spectra where the numbers were looked at."""
        shown = {"verdict", "findings", "engines", "bytes_read", "timings_ms"}
        return self.model_dump(mode="json", include=shown | ({"spectra"} if self.spectra is not None else set()))

    def to_json(self) -> str:
        """How the artifact store keeps it."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The inverse of `to_json`.

        Raises:
            Rejected: it is no report.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise Rejected(f"not a validation report: {describe_validation_error(error)}") from error


def report_of(
    judged: Judgement,
    *,
    bytes_read: int,
    timings_ms: Mapping[str, float],
    spectra: Mapping[str, Any] | None = None,
) -> ValidationReport:
    """The report of a judgement; `timings_ms` is what was spent before it."""
    return ValidationReport.of(
        judged.findings,
        engines=judged.engines,
        spectra=spectra,
        bytes_read=bytes_read,
        timings_ms={**timings_ms, **judged.timings_ms},
    )


def rejected(error: Rejected, profiles: Sequence[EngineProfile] = (), *, bytes_read: int = 0) -> ValidationReport:
    """The report of an adapter that cannot even be read."""
    findings = error.findings or (Finding(code=error.code, message=error.message, remedy=error.remedy),)
    return ValidationReport.of(findings, engines=refuse_invalid(profiles, findings), bytes_read=bytes_read)
