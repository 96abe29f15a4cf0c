"""Registrations: what the ledger's hash means, what a publisher gets to see of it, and which findings are kept."""

from __future__ import annotations

import json

import pytest

from lora_registry import fit_codes
from lora_registry.findings import MAX_FINDINGS_KEPT, Finding, Severity
from lora_registry.names import AdapterName
from lora_registry.registrations import Outcome, dump_findings, load_findings, parse_registration


def make_hash(**changes: str) -> dict[str, str]:
    """A registration's hash as a claim returns it after the validate stage."""
    return {
        "id": "reg_000000000000000000000001",
        "namespace": "team",
        "name": "support-bot",
        "base_model": "tiny-llama",
        "source": "/adapters/support-bot",
        "labels": '{"team":"support"}',
        "metadata": "{}",
        "state": "validated",
        "stage": "publish",
        "outcome": "",
        "owner": "",
        "epoch": "3",
        "attempts": "1",
        "order": "4",
        "version": "1004",
        "lora_int_id": "17",
        "digest": "sha256:" + "0" * 64,
        "findings": "[]",
        "allocate_us": "1500",
        "resolve_us": "2.5e+05",
        "dispatched_at": "1700000000000000",
    } | changes


def make_finding(severity: Severity, subject: str) -> Finding:
    """A finding that differs from others in its subject."""
    return Finding(code="SHAPE_MISMATCH", severity=severity, subject=subject)


def test_running_registration_is_read_from_its_hash() -> None:
    """Every field finds its place; times are milliseconds; what is raw stays for later stages."""
    registration = parse_registration(make_hash())
    assert registration.adapter == AdapterName("team", "support-bot")
    assert registration.outcome is None
    assert (registration.order, registration.version, registration.lora_int_id) == (4, 1004, 17)
    assert registration.labels == {"team": "support"}
    assert registration.metadata == {}
    assert registration.timings_ms == {"allocate": 1.5, "resolve": 250.0}
    assert registration.fields["epoch"] == "3"


def test_registration_that_was_just_accepted_has_no_more_than_it_asked_for() -> None:
    """Before any stage there is no id, no digest and no timing."""
    fields = make_hash(version="", outcome="")
    for name in ("lora_int_id", "digest", "findings", "allocate_us", "resolve_us", "labels"):
        del fields[name]
    registration = parse_registration(fields)
    assert (registration.version, registration.lora_int_id, registration.digest) == (None, None, "")
    assert (registration.findings, registration.timings_ms, registration.labels) == ((), {}, {})


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_is_read(outcome: Outcome) -> None:
    """What a script writes as the outcome is one of the six."""
    registration = parse_registration(make_hash(outcome=outcome.value, state=outcome.value, stage=""))
    assert registration.outcome is outcome


def test_an_unknown_outcome_is_no_outcome() -> None:
    """Nothing else passes for an outcome."""
    with pytest.raises(ValueError, match="lost"):
        parse_registration(make_hash(outcome="lost"))


def test_result_has_exactly_these_keys() -> None:
    """Programs read `register --wait --json`: its keys neither come nor go."""
    assert list(parse_registration(make_hash()).as_result()) == [
        "registration_id",
        "outcome",
        "namespace",
        "adapter",
        "version",
        "lora_int_id",
        "served_name",
        "digest",
        "base_model",
        "findings",
        "timings_ms",
    ]


def test_result_of_a_published_registration() -> None:
    """It says all that a serving node needs, in plain JSON types."""
    warning = fit_codes.BASE_NAME_ABSENT.finding("base_model_name_or_path")
    fields = make_hash(
        outcome="published",
        state="published",
        stage="",
        served_name="team.support-bot.v1004",
        findings=dump_findings([warning]),
    )
    result = json.loads(json.dumps(parse_registration(fields).as_result()))
    assert result == {
        "registration_id": "reg_000000000000000000000001",
        "outcome": "published",
        "namespace": "team",
        "adapter": "support-bot",
        "version": 1004,
        "lora_int_id": 17,
        "served_name": "team.support-bot.v1004",
        "digest": "sha256:" + "0" * 64,
        "base_model": "tiny-llama",
        "findings": [warning.model_dump(mode="json")],
        "timings_ms": {"allocate": 1.5, "resolve": 250.0},
    }


def test_result_names_no_version_that_was_not_published() -> None:
    """A number and an id that were taken but stay unused are nobody's to use."""
    result = parse_registration(make_hash(outcome="rejected", state="rejected", stage="")).as_result()
    assert (result["version"], result["lora_int_id"], result["served_name"]) == (None, None, None)


def test_findings_survive_the_ledger() -> None:
    """They are read as they were written, signs outside ASCII included."""
    finding = fit_codes.SHAPE_MISMATCH.finding("ü.lora_A.weight", expected=[8, 64], actual=[8, 96])
    assert load_findings(dump_findings([finding])) == (finding,)
    assert load_findings(dump_findings([])) == ()


def test_at_most_32_findings_are_kept_errors_first() -> None:
    """However many warnings come before them, the errors are kept; within one weight the order stays."""
    infos = [make_finding(Severity.INFO, f"info {number}") for number in range(40)]
    warnings = [make_finding(Severity.WARNING, f"warning {number}") for number in range(40)]
    errors = [make_finding(Severity.ERROR, f"error {number}") for number in range(3)]
    kept = load_findings(dump_findings([*infos, *warnings, *errors]))
    assert len(kept) == MAX_FINDINGS_KEPT == 32
    assert list(kept) == [*errors, *warnings[:29]]


def test_registration_shows_no_raw_fields() -> None:
    """What is logged of a registration leaves its raw hash out."""
    assert "dispatched_at" not in repr(parse_registration(make_hash()))
