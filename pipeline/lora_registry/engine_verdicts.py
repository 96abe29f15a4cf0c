"""What becomes of a valid adapter on an engine: accepted, refused, or served wrongly without a word.

Whether an adapter fits its base model is another question (compatibility.py): rsLoRA is valid, and SGLang serves it
with the wrong scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic import BaseModel, ConfigDict

from lora_registry import engine_codes as codes
from lora_registry.adapter_traits import AdapterTraits
from lora_registry.engine_conditions import CONDITIONS, Match
from lora_registry.engine_profiles import BUILT_IN, EngineProfile, EngineRule, Ruling, engine_table, in_range, rules_of
from lora_registry.findings import Finding

_WEIGHT = list(Ruling)


class EngineReason(Finding):
    """One reason of a verdict: a finding with code ENGINE_…

    Attributes:
        verdict: what this reason alone leads to; `accept` for a note.
        source: where it is known from.
    """

    verdict: Ruling = Ruling.REFUSE
    source: str = ""


class EngineVerdict(BaseModel):
    """What becomes of an adapter on a node.

    Attributes:
        verdict: the worst that a reason leads to; what an engine refuses is not served wrongly.
        reasons: why, worst first; with `accept` only notes.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    verdict: Ruling
    reasons: tuple[EngineReason, ...] = ()


def judge_engines(traits: AdapterTraits, profiles: Iterable[EngineProfile]) -> dict[str, EngineVerdict]:
    """The verdict of each profile on an adapter that fits its base model, by the profile's name."""
    return {profile.name: judge_engine(traits, profile) for profile in profiles}


def judge_engine(traits: AdapterTraits, profile: EngineProfile) -> EngineVerdict:
    """The verdict of one profile on an adapter that fits its base model."""
    reasons = sorted(_reasons(traits, profile), key=lambda reason: -_WEIGHT.index(reason.verdict))
    return EngineVerdict(verdict=reasons[0].verdict if reasons else Ruling.ACCEPT, reasons=tuple(reasons))


def refuse_invalid(profiles: Iterable[EngineProfile], findings: Iterable[Finding]) -> dict[str, EngineVerdict]:
    """The verdict of each profile on an adapter that is not valid: no engine is given it."""
    named = list(dict.fromkeys(finding.code for finding in findings if finding.severity == "error"))
    found = codes.ENGINE_ADAPTER_INVALID.finding(actual=", ".join(named[:5]))
    reason = EngineReason(**found.model_dump(), verdict=Ruling.REFUSE)
    refused = EngineVerdict(verdict=Ruling.REFUSE, reasons=(reason,))
    return {profile.name: refused for profile in profiles}


def _reasons(traits: AdapterTraits, profile: EngineProfile) -> Iterator[EngineReason]:
    for rule in rules_of(profile):
        match = CONDITIONS[rule.condition].holds(traits, profile, rule)
        if match is not None:
            yield _reason(rule, match)
    yield from _unread_version(profile)


def _reason(rule: EngineRule, match: Match) -> EngineReason:
    message = rule.reason.replace("{expected}", match.expected).replace("{actual}", match.actual)
    code = CONDITIONS[rule.condition].code
    found = code.finding(match.subject, message, expected=match.expected, actual=match.actual)
    return EngineReason(**found.model_dump(), verdict=rule.verdict, source=rule.source)


def _unread_version(profile: EngineProfile) -> Iterator[EngineReason]:
    if profile.engine not in BUILT_IN:
        return
    table = engine_table(profile.engine)
    if not in_range(profile.version, table.read_versions):
        found = codes.ENGINE_VERSION_UNKNOWN.finding(expected=table.read_versions, actual=profile.version)
        yield EngineReason(**found.model_dump(), verdict=Ruling.ACCEPT, source=table.read)
