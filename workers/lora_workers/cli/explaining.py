"""explain: what a code means and what to do about it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from lora_registry.codes import CODES
from lora_registry.errors import RegistryError
from lora_workers.cli.options import AsJson
from lora_workers.cli.output import print_json, print_line, print_table


@dataclass(frozen=True)
class Explanation:
    """What a code stands for; `kind` is the severity of a finding, or `failure` of a command."""

    code: str
    kind: str
    cause: str
    remedy: str


def explain(
    code: Annotated[
        str | None,
        typer.Argument(metavar="[CODE]", help="A code, such as SHAPE_MISMATCH; without one: all.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain a code of a finding or of an error."""
    known = explanations()
    if code is None:
        return _print_all(known, as_json=as_json)
    found = known.get(code.upper())
    if found is None:
        raise typer.BadParameter(f"{code[:80]!r} is no code; `lora-registry explain` lists them", param_hint="CODE")
    if as_json:
        return print_json(asdict(found))
    return print_line(f"{found.code} ({found.kind}): {found.cause} {found.remedy}")


def explanations() -> dict[str, Explanation]:
    """Every code of a finding or an error → what it stands for."""
    failures = {
        each.code: Explanation(each.code, "failure", inspect.getdoc(each) or "", each.remedy)
        for each in _subclasses(RegistryError)
    }
    findings = {
        each.code: Explanation(each.code, each.severity.value, each.cause, each.remedy) for each in CODES.values()
    }
    return failures | findings


def _subclasses(kind: type[RegistryError]) -> Iterator[type[RegistryError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _subclasses(each)


def _print_all(known: dict[str, Explanation], *, as_json: bool) -> None:
    if as_json:
        return print_json([asdict(each) for each in known.values()])
    return print_table(("code", "kind", "cause"), [(each.code, each.kind, each.cause) for each in known.values()])
