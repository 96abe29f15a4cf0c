"""explain: what a code means and what to do about it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from lora_registry.all_codes import CODES, ENGINE_CODES, GATEWAY_CODES
from lora_registry.engine_conditions import CONDITIONS
from lora_registry.engine_profiles import BUILT_IN, engine_table
from lora_registry.errors import RegistryError
from lora_workers.cli.options import AsJson
from lora_workers.cli.output import print_json, print_line, print_table


@dataclass(frozen=True)
class Explanation:
    """What a code stands for.

    Attributes:
        code: the stable identifier.
        kind: severity of a finding, `engine` for a reason of an engine's verdict, or `failure` of a command.
        cause: one sentence. remedy: one sentence: what to do.
        engines: for the code of an engine's verdict, the rules of the built-in engines that lead to it.
    """

    code: str
    kind: str
    cause: str
    remedy: str
    engines: tuple[dict[str, str], ...] = ()


def explain(
    code: Annotated[
        str | None,
        typer.Argument(metavar="[CODE]", help="A code, such as SHAPE_MISMATCH; without one: all.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain a code of a finding, of an engine's verdict or of an error."""
    known = explanations()
    if code is None:
        return _print_all(known, as_json=as_json)
    found = known.get(code.upper())
    if found is None:
        raise typer.BadParameter(f"{code[:80]!r} is no code; `lora-registry explain` lists them", param_hint="CODE")
    if as_json:
        return print_json(asdict(found))
    print_line(f"{found.code} ({found.kind}): {found.cause} {found.remedy}")
    for rule in found.engines:
        print_line(f"  {rule['engine']}: {rule['verdict']}: {rule['reason']}  [{rule['source']}]")
    return None


def explanations() -> dict[str, Explanation]:
    """Every code of a finding, a verdict, a refusal or an error → what it stands for."""
    failures = {
        each.code: Explanation(each.code, "failure", inspect.getdoc(each) or "", each.remedy)
        for each in _subclasses(RegistryError)
    }
    findings = {
        each.code: Explanation(each.code, each.severity.value, each.cause, each.remedy) for each in CODES.values()
    }
    refusals = {
        each.code: Explanation(each.code, "refusal", each.cause, each.remedy) for each in GATEWAY_CODES.values()
    }
    engines = {
        each.code: Explanation(each.code, "engine", each.cause, each.remedy, _rules_of(each.code))
        for each in ENGINE_CODES.values()
    }
    return failures | findings | refusals | engines


def _rules_of(code: str) -> tuple[dict[str, str], ...]:
    return tuple(
        {
            "engine": engine,
            "verdict": rule.verdict.value,
            "condition": rule.condition,
            "versions": rule.versions,
            "reason": rule.reason,
            "source": rule.source,
        }
        for engine in BUILT_IN
        for rule in engine_table(engine).rules
        if CONDITIONS[rule.condition].code.code == code
    )


def _subclasses(kind: type[RegistryError]) -> Iterator[type[RegistryError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _subclasses(each)


def _print_all(known: dict[str, Explanation], *, as_json: bool) -> None:
    if as_json:
        return print_json([asdict(each) for each in known.values()])
    return print_table(("code", "kind", "cause"), [(each.code, each.kind, each.cause) for each in known.values()])
