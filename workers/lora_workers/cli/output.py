"""What the command line prints, and how it ends: JSON, tables, findings, errors, exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lora_registry.errors import (
    Conflict,
    NotFound,
    NotServed,
    PromotionAborted,
    RegistryError,
    Transient,
    WaitTimeout,
)
from lora_registry.findings import Finding
from lora_registry.registrations import Outcome, Registration
from lora_registry.rollout import Standing

OK: Final = 0
REJECTED: Final = 1
WRONG_USAGE: Final = 2
NO_OUTCOME: Final = 3
OUT_OF_REACH: Final = 4
INTERRUPTED: Final = 130
NOBODY_READS: Final = 141
"""As a program ends that SIGPIPE stops."""

EXIT_CODES: Final = (
    "Exit codes: 0 done; a registration is published, unchanged or superseded · "
    "1 the registration was rejected, or what was named is not there or not as expected (NOT_FOUND, CONFLICT) · "
    "2 wrong usage or configuration, a request refused before it was queued included · "
    "3 dead-lettered, no outcome in time, or not served as asked · "
    "4 Redis is out of reach, has not been admitted, or the event queue is full; or a watched place is out of reach · "
    "130 interrupted"
)
_WIDTH_OF_A_FILE = 240
"""Columns of tables that no terminal shows."""


def exit_code_of_outcome(outcome: Outcome | None) -> int:
    """How a command ends that waited for `outcome`."""
    return {Outcome.REJECTED: REJECTED, Outcome.DEAD_LETTERED: NO_OUTCOME, None: NO_OUTCOME}.get(outcome, OK)


def exit_code_of_error(error: RegistryError) -> int:
    """How a command ends that failed with `error`."""
    if isinstance(error, WaitTimeout | NotServed | PromotionAborted):
        return NO_OUTCOME
    if isinstance(error, NotFound | Conflict):
        return REJECTED
    return OUT_OF_REACH if isinstance(error, Transient) else WRONG_USAGE


def print_json(value: object) -> None:
    """One JSON document on one line."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def print_line(text: str) -> None:
    """One line, written at once, since threads print too; what is not printable in it is escaped."""
    sys.stdout.write(f"{printable(text)}\n")
    sys.stdout.flush()


def print_lines(texts: Iterable[str]) -> None:
    """Lines, as `print_line` prints them."""
    for text in texts:
        print_line(text)


def print_error(error: RegistryError, *, as_json: bool) -> None:
    """One line on standard error; with `as_json` also an object on standard output."""
    message = error.message.rstrip(".")
    print(printable(f"error: {error.code}: {message}. {error.remedy}"), file=sys.stderr, flush=True)
    if as_json:
        print_json({"error": described(error)})


def described(error: RegistryError) -> dict[str, str]:
    """An error as --json prints it."""
    return {"code": error.code, "message": error.message, "remedy": error.remedy}


def print_standings(standings: Sequence[Standing]) -> None:
    """How nodes stand to versions: a line for each."""
    rows = [
        (
            each.served_name,
            each.node_id,
            each.state or ("silent" if each.wanted else ""),
            "" if each.since_s is None else when(each.since_s),
            " ".join(part for part in (each.code, each.reason) if part),
        )
        for each in standings
    ]
    print_table(("version", "node", "state", "since", "why"), rows)


def when(at_s: float) -> str:
    """A time, in UTC."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, indent: str = "") -> None:
    """Rows under `columns`, or nothing but the columns."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(printable(str(cell)), overflow="fold") for cell in row))
    out = console()
    if not indent:
        return out.print(table)
    from rich.padding import Padding

    return out.print(Padding(table, (0, 0, 0, len(indent)), expand=False))


def print_findings(findings: Sequence[Finding]) -> None:
    """Findings, those of one kind together: cause, the tensors or fields with expected and actual, remedy."""
    for (severity, code, message, remedy), alike in groupby(findings, key=_kind):
        print_line(f"{severity} {code}: {message}")
        rows = [(each.subject, each.expected, each.actual) for each in alike]
        if any(expected or actual for _, expected, actual in rows):
            print_table(("subject", "expected", "actual"), rows, indent="  ")
        else:
            print_lines(f"  {subject}" for subject, _, _ in rows if subject)
        print_line(f"  remedy: {remedy}")


def print_registration(registration: Registration) -> None:
    """A registration for people: what became of it, and its findings."""
    print_line(describe(registration))
    print_findings(registration.findings)


def describe(registration: Registration) -> str:
    """A registration in one line."""
    parts = [registration.id, registration.state, registration.served_name or str(registration.adapter)]
    if registration.served_name:
        parts += [f"lora_int_id={registration.lora_int_id}", registration.digest]
    if registration.attempts and not registration.outcome:
        parts.append(f"{registration.attempts} failed attempts of {registration.stage}")
    return "  ".join(part for part in parts if part)


def as_text(value: object) -> str:
    """A value of a record for people: mappings as `key=value`, lists with spaces between."""
    if isinstance(value, dict):
        return " ".join(f"{key}={each}" for key, each in sorted(value.items()))
    if isinstance(value, list):
        return " ".join(str(each) for each in value)
    return str(value)


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would obey: names of tensors come from strangers."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class _PlainConsole(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the root of the commands: Rich would end with 1, which here means rejected."""
        raise BrokenPipeError


def console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is; made anew, because tests replace the streams."""
    out = _PlainConsole(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not out.is_terminal:
        out.width = _WIDTH_OF_A_FILE
    return out


def _kind(finding: Finding) -> tuple[Any, ...]:
    return (finding.severity.value, finding.code, finding.message, finding.remedy)
