"""Codes of findings: each says its cause and its remedy in one sentence, and is found under its own name."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from lora_registry import codes, file_codes, fit_codes, source_codes
from lora_registry.all_codes import CODES, ENGINE_CODES, GATEWAY_CODES, may_pass
from lora_registry.code import Code
from lora_registry.findings import Finding, Severity

SOURCES = Path(__file__).parents[2]
MODULES_OF_CODES = [
    path for path in (SOURCES / "pipeline/lora_registry").glob("*codes.py") if path.name != "all_codes.py"
]


def given_in_the_source() -> str:
    """All of the source but the list of codes itself."""
    paths = [path for root in ("pipeline", "workers") for path in (SOURCES / root).rglob("*.py")]
    lua = (SOURCES / "pipeline").rglob("*.lua")
    return "\n".join(path.read_text() for path in [*paths, *lua] if not path.name.endswith("codes.py"))


@pytest.mark.parametrize("code", (CODES | GATEWAY_CODES).values(), ids=CODES | GATEWAY_CODES)
def test_cause_and_remedy_are_one_sentence_each(code: Code) -> None:
    """Whoever reads a finding learns what is wrong and what to do, in one breath."""
    for sentence in (code.cause, code.remedy):
        first = sentence.split()[0]
        assert first[0].isupper() or "_" in first, "only a file's or a field's name begins in lower case"
        assert sentence.endswith(".")
        assert not re.search(r"[.!?] [A-Z]", sentence)
        assert "\n" not in sentence
        assert len(sentence) <= 140


@pytest.mark.parametrize("code", (CODES | GATEWAY_CODES).values(), ids=CODES | GATEWAY_CODES)
def test_attribute_is_the_code(code: Code) -> None:
    """`fit_codes.SHAPE_MISMATCH` is the code SHAPE_MISMATCH, whose severity is a known one."""
    modules = [import_module(f"lora_registry.{path.stem}") for path in MODULES_OF_CODES]
    assert [module for module in modules if vars(module).get(code.code) is code]
    assert re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*", code.code)
    assert code.severity in Severity


def test_every_code_is_in_the_list() -> None:
    """`explain` knows every code that a module of codes has, and none is given twice."""
    declared = [
        line
        for path in MODULES_OF_CODES
        for line in re.findall(r"^[A-Z_]+ = (?:error|obstacle|warning|info)\(", path.read_text(), re.M)
    ]
    assert len(declared) == len(CODES) + len(ENGINE_CODES) + len(GATEWAY_CODES)


def test_what_an_adapter_is_does_not_pass() -> None:
    """A rejection for what lies around the adapter may be none later; one for its own bytes stays one."""
    about_bytes = [
        each for module in (file_codes, fit_codes) for each in vars(module).values() if isinstance(each, Code)
    ]
    assert not may_pass(each.finding() for each in about_bytes)
    assert may_pass([codes.BASE_UNKNOWN.finding()])
    assert may_pass([file_codes.FILE_MISSING.finding(), source_codes.SOURCE_INCOMPLETE.finding()])
    assert not may_pass([Finding(code="OF_A_LATER_RELEASE", severity=Severity.ERROR)])


def test_causes_are_all_different() -> None:
    """Two codes with one cause would be one code."""
    assert len({code.cause for code in CODES.values()}) == len(CODES)


@pytest.mark.parametrize("name", CODES)
def test_no_code_is_never_given(name: str) -> None:
    """Each is used somewhere: a code that nothing gives is a promise that nothing keeps."""
    assert re.search(rf"\b{name}\b", given_in_the_source())


def test_finding_carries_what_the_code_says() -> None:
    """Without closer words a finding has the code's; whatever is compared becomes text."""
    assert fit_codes.RANK_TOO_LARGE.finding("r", expected=64, actual=[128]) == Finding(
        code="RANK_TOO_LARGE",
        severity=Severity.ERROR,
        subject="r",
        message=fit_codes.RANK_TOO_LARGE.cause,
        expected="64",
        actual="[128]",
        remedy=fit_codes.RANK_TOO_LARGE.remedy,
    )


def test_closer_words_replace_the_general_ones() -> None:
    """A step that knows more says more."""
    finding = fit_codes.RANK_TOO_LARGE.finding("r", "It is 128.", remedy="Take 64.")
    assert (finding.message, finding.remedy) == ("It is 128.", "Take 64.")
