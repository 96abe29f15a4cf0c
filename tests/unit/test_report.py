import json
from pathlib import Path

import pytest

from lora_registry import fit_codes
from lora_registry.engine_profiles import BUILT_IN, Ruling, find_profiles
from lora_registry.engine_verdicts import EngineVerdict, refuse_invalid
from lora_registry.errors import Rejected
from lora_registry.report import ValidationReport, Verdict, rejected
from lora_workers.local_artifacts import LocalArtifactStore

ERROR = fit_codes.SHAPE_MISMATCH.finding("t", expected=[1, 2], actual=[2, 1])
WARNING = fit_codes.BASE_NAME_ABSENT.finding()


def test_errors_decide_the_verdict() -> None:
    """A warning leaves an adapter valid."""
    assert ValidationReport.of((WARNING,)).verdict is Verdict.VALID
    assert ValidationReport.of((WARNING, ERROR)).verdict is Verdict.INVALID


def test_a_report_reads_back_equal() -> None:
    """With everything in it."""
    report = ValidationReport.of(
        (ERROR,),
        engines=refuse_invalid(find_profiles(BUILT_IN), [ERROR]),
        spectra={"device": "cpu", "families": [{"frobenius": 1.5}]},
        bytes_read=7,
        timings_ms={"structure": 0.123456},
    )

    assert ValidationReport.from_json(report.to_json()) == report
    assert report.timings_ms == {"structure": 0.123}


def test_a_later_report_is_read_without_what_is_unknown() -> None:
    """Fields of later versions are left out."""
    fields = json.loads(ValidationReport.of(()).to_json()) | {"later": 1}

    assert ValidationReport.from_json(json.dumps(fields)) == ValidationReport.of(())


@pytest.mark.parametrize("text", ["", "[]", '{"verdict": "perhaps"}'])
def test_what_is_no_report_is_rejected(text: str) -> None:
    """With this package's own error."""
    with pytest.raises(Rejected):
        ValidationReport.from_json(text)


def test_only_a_report_that_says_something_is_kept() -> None:
    """All well and accepted everywhere needs no file."""
    wrong = {"sglang": EngineVerdict(verdict=Ruling.SILENTLY_WRONG)}
    accepted = {"vllm": EngineVerdict(verdict=Ruling.ACCEPT)}

    assert not ValidationReport.of((), engines=accepted).is_worth_keeping
    assert ValidationReport.of((), engines=accepted | wrong).is_worth_keeping
    assert ValidationReport.of((WARNING,)).is_worth_keeping
    assert ValidationReport.of((), spectra={}).is_worth_keeping


def test_the_result_has_exactly_the_agreed_fields() -> None:
    """What programs read from `check --json`."""
    result = ValidationReport.of((ERROR,), engines=refuse_invalid(find_profiles(["vllm"]), [ERROR])).as_result()

    assert result.keys() == {"verdict", "findings", "engines", "bytes_read", "timings_ms"}
    assert result["verdict"] == "invalid"
    assert result["engines"]["vllm"].keys() == {"verdict", "reasons"}
    assert result["engines"]["vllm"]["verdict"] == "refuse"
    json.dumps(result)


def test_what_cannot_be_read_is_invalid_even_without_findings() -> None:
    """An error that brings no finding becomes one."""
    report = rejected(Rejected("no adapter"), find_profiles(["tgi"]))

    assert report.verdict is Verdict.INVALID
    assert [finding.message for finding in report.findings] == ["no adapter"]
    assert report.engines["tgi"].verdict is Ruling.REFUSE


def test_the_store_keeps_the_whole_report(tmp_path: Path) -> None:
    """Under the registration's id, beside the artifacts; a second try replaces it."""
    store = LocalArtifactStore(tmp_path)
    store.keep_report("reg_1", ValidationReport.of((WARNING,)))
    report = ValidationReport.of(tuple([ERROR] * 100), bytes_read=3)

    store.keep_report("reg_1", report)

    assert ValidationReport.from_json((tmp_path / "reports" / "reg_1.json").read_bytes()) == report
