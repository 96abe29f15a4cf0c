"""A registration: one event's run through the stages, as the ledger holds it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from lora_registry.findings import MAX_FINDINGS_KEPT, Finding, Severity
from lora_registry.names import AdapterName


class Outcome(StrEnum):
    """How a registration ends; each ends in exactly one way."""

    PUBLISHED = "published"
    UNCHANGED = "unchanged"
    REJECTED = "rejected"
    SUPERSEDED = "superseded"
    DEAD_LETTERED = "dead-lettered"


@dataclass(frozen=True)
class Registration:
    """One registration, read-only.

    Attributes:
        id: registration id.
        adapter: adapter it is for.
        base_model: name of the base model it is for.
        source: where the publisher says the bytes are.
        state: last state reached: `received`, …, or the outcome.
        stage: stage it is due in; empty once it has ended.
        outcome: None while it runs.
        order: its place among the accepted events of the adapter, from 1.
        version: version number; for `unchanged` that of the version which holds these bytes.
        lora_int_id: integer id in [1, 2**31 - 1], once allocated.
        served_name: what an engine calls the version, once published (or found unchanged).
        digest: content digest `sha256:…` of the artifact, once validated.
        findings: at most 32 of them.
        timings_ms: stage → milliseconds from being due to being done.
        attempts: failed tries of the current stage.
        fields: the raw hash: what stages leave for later ones.
    """

    id: str
    adapter: AdapterName
    base_model: str
    source: str = ""
    state: str = "received"
    stage: str = ""
    outcome: Outcome | None = None
    order: int = 0
    version: int | None = None
    lora_int_id: int | None = None
    served_name: str = ""
    digest: str = ""
    findings: tuple[Finding, ...] = ()
    timings_ms: dict[str, float] = field(default_factory=dict)
    attempts: int = 0
    fields: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def labels(self) -> dict[str, str]:
        """Labels asked for."""
        return dict(json.loads(self.fields.get("labels", "{}")))

    @property
    def is_tried(self) -> bool:
        """Whether it passes the canary stage: the dispatcher said so when it took it into the ledger."""
        return self.fields.get("canary") == "1"

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata asked for."""
        return dict(json.loads(self.fields.get("metadata", "{}")))

    def as_result(self) -> dict[str, Any]:
        """What `register --wait --json` prints: plain JSON types only."""
        return {
            "registration_id": self.id,
            "outcome": self.outcome.value if self.outcome else None,
            "namespace": self.adapter.namespace,
            "adapter": self.adapter.name,
            "version": self.version if self.served_name else None,
            "lora_int_id": self.lora_int_id if self.served_name else None,
            "served_name": self.served_name or None,
            "digest": self.digest or None,
            "base_model": self.base_model,
            "findings": [finding.model_dump(mode="json") for finding in self.findings],
            "timings_ms": self.timings_ms,
        }


def parse_registration(fields: dict[str, str]) -> Registration:
    """Build a registration from its ledger hash."""
    timings = {name[:-3]: round(int(float(us)) / 1000, 3) for name, us in fields.items() if name.endswith("_us")}
    return Registration(
        id=fields["id"],
        adapter=AdapterName(fields["namespace"], fields["name"]),
        base_model=fields["base_model"],
        source=fields["source"],
        state=fields["state"],
        stage=fields["stage"],
        outcome=Outcome(fields["outcome"]) if fields.get("outcome") else None,
        order=int(fields["order"]),
        version=_integer(fields.get("version")),
        lora_int_id=_integer(fields.get("lora_int_id")),
        served_name=fields.get("served_name", ""),
        digest=fields.get("digest", ""),
        findings=load_findings(fields.get("findings", "[]")),
        timings_ms=timings,
        attempts=int(fields["attempts"]),
        fields=fields,
    )


def dump_findings(findings: tuple[Finding, ...] | list[Finding]) -> str:
    """Findings as the ledger keeps them: errors first, at most 32."""
    weight = list(Severity)
    kept = sorted(findings, key=lambda finding: weight.index(finding.severity))[:MAX_FINDINGS_KEPT]
    return json.dumps([finding.model_dump(mode="json") for finding in kept], ensure_ascii=False)


def load_findings(text: str) -> tuple[Finding, ...]:
    """The inverse of `dump_findings`."""
    return tuple(Finding.model_validate(item) for item in json.loads(text))


def _integer(text: str | None) -> int | None:
    return int(text) if text else None
