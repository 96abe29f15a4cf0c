"""check: a validation without a registry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_registry.base_profile import BaseProfile
from lora_registry.engine_profiles import BUILT_IN, Ruling, find_profiles
from lora_registry.engine_verdicts import EngineVerdict
from lora_registry.errors import Configuration, InvalidName, NotFound, Transient
from lora_registry.findings import Severity
from lora_registry.names import check_base_name
from lora_registry.report import ValidationReport, Verdict
from lora_registry.settings import load_settings
from lora_workers.base_models import read_base_profile
from lora_workers.cli.options import AsJson, Credential, open_client
from lora_workers.cli.output import (
    OK,
    OUT_OF_REACH,
    REJECTED,
    described,
    print_error,
    print_findings,
    print_json,
    print_line,
    print_lines,
    print_table,
)
from lora_workers.cli.registering import absolute
from lora_workers.dry_run import DryRun, numeric_findings
from lora_workers.local_paths import absolute_path
from lora_workers.sources import open_sources

_UNNAMED_BASE = "local-base"
_WORDS = {Ruling.REFUSE: "refuse", Ruling.SILENTLY_WRONG: "silently wrong"}


def check(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Directories that save_pretrained wrote, or URLs (hf://org/repo, s3://bucket/prefix).",
            show_default=False,
        ),
    ],
    base: Annotated[
        str,
        typer.Option(metavar="BASE|DIR", help="A registered base model, or a directory of one.", show_default=False),
    ],
    engine: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|FILE", help=f"{', '.join(BUILT_IN)}, or a profile's JSON file.  [default: all]"),
    ] = None,
    numeric: Annotated[
        bool,
        typer.Option(
            "--numeric/--no-numeric", help="Look at the numbers, too; that takes torch and reads all of the weights."
        ),
    ] = False,
    also_known_as: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Another name that adapters give for DIR.")
    ] = None,
    credential: Credential = "",
    as_json: AsJson = False,
) -> None:
    """Say whether adapters fit a base model and which engines serve them right, without registering anything.

    With a directory as base it needs no server. With --json each source is one line. Exit code 0: all are valid, 1:
    one is not, 2: the base cannot be read, 4: one is out of reach, whatever the others are.
    """
    settings = load_settings()
    remote = open_sources(settings)
    dry_run = DryRun(
        _base_profile(base, also_known_as or ()),
        profiles=find_profiles(engine or BUILT_IN),
        max_lora_rank=settings.max_lora_rank,
        measure=numeric_findings(settings.device, sources=remote) if numeric else None,
        sources=remote,
    )
    several = len(sources) > 1
    checked: list[tuple[str, ValidationReport]] = []
    out_of_reach = 0
    for source in sources:
        named = {"source": source} if several else {}
        try:
            report = dry_run.check(absolute(source), credential=credential)
        except Transient as error:
            out_of_reach += 1
            print_error(error, as_json=False)
            if as_json:
                print_json({**named, "error": described(error)})
            continue
        checked.append((source, report.model_copy(update={"findings": ()})))
        if as_json:
            print_json({**named, **report.as_result()})
        else:
            _print_report(source, report)
    if several and not as_json:
        _print_overview(checked, out_of_reach)
    invalid = any(report.verdict is Verdict.INVALID for _, report in checked)
    raise typer.Exit(OUT_OF_REACH if out_of_reach else REJECTED if invalid else OK)


def _base_profile(base: str, also_known_as: Iterable[str]) -> BaseProfile:
    directory = absolute_path(base)
    if base and directory.is_dir():
        return read_base_profile(_name_of(directory), directory, also_known_as=tuple(also_known_as))
    if base.startswith((".", "/", "~")):
        raise Configuration(f"{base}: no such directory")
    check_base_name(base)
    catalog = open_client().catalog
    try:
        profile = catalog.bases.get(base)
        return profile.model_copy(update={"tokenizer": catalog.bases.tokenizer_of(profile)})
    except Transient as error:
        raise Configuration(f"{base} is no directory here, and no registry answers for it: {error.message}") from error
    except NotFound as error:  # no adapter is at fault, and 1 would say that one is
        raise Configuration(f"{base} is no directory here, and {error.message}") from error


def _name_of(directory: Path) -> str:
    try:
        return check_base_name(directory.name)
    except InvalidName:
        return _UNNAMED_BASE


def _print_report(source: str, report: ValidationReport) -> None:
    counts = [(severity, sum(each.severity is severity for each in report.findings)) for severity in Severity]
    shown = ", ".join(f"{count} {severity}{'s' * (count > 1)}" for severity, count in counts if count)
    print_line(f"{source}: {report.verdict}{f' ({shown})' if shown else ''}")
    print_findings(report.findings)
    if report.spectra is not None:
        _print_spectra(report.spectra)
    if report.verdict is Verdict.INVALID or not report.engines:
        return  # no engine is given it, which is all that there is to say
    rows = [row for name, each in report.engines.items() for row in _engine_rows(name, each)]
    print_table(("engine", "verdict", "code", "about", "reason"), rows, indent="  ")
    reasons = [reason for each in report.engines.values() for reason in each.reasons]
    print_lines(f"  {code}: {remedy}" for code, remedy in {reason.code: reason.remedy for reason in reasons}.items())


def _print_spectra(spectra: Mapping[str, Any]) -> None:
    """The sizes of the changes that the adapter makes, by kind of module."""
    print_line(f"  the changes that it makes, s·B·A (measured on {spectra['device']}):")
    rows = [
        (
            each["family"],
            each["count"],
            f"{each['frobenius_median']:.3g}",
            f"{each['frobenius_max']:.3g}",
            f"{each['sigma_1_median']:.3g}",
            f"{each['sigma_1_max']:.3g}",
            f"{each['stable_rank_median']:.1f}",
        )
        for each in spectra["families"]
    ]
    print_table(("modules", "count", "norm", "largest", "sigma 1", "largest", "stable rank"), rows, indent="  ")


def _engine_rows(name: str, verdict: EngineVerdict) -> list[tuple[str, ...]]:
    rows = [
        (_WORDS.get(reason.verdict, "note"), reason.code, reason.subject, reason.message) for reason in verdict.reasons
    ]
    if verdict.verdict is Ruling.ACCEPT:
        rows.insert(0, (Ruling.ACCEPT.value, "", "", ""))
    return [("" if place else name, *row) for place, row in enumerate(rows)]


def _print_overview(checked: list[tuple[str, ValidationReport]], out_of_reach: int) -> None:
    engines = list(checked[0][1].engines) if checked else []
    rows = [
        (
            source,
            report.verdict.value,
            *(_short(report, name) for name in engines),
        )
        for source, report in checked
    ]
    print_line("")
    print_table(("source", "verdict", *engines), rows)
    invalid = sum(report.verdict is Verdict.INVALID for _, report in checked)
    tail = f", {out_of_reach} out of reach" if out_of_reach else ""
    print_line(f"{len(checked) - invalid} valid, {invalid} invalid{tail}")


def _short(report: ValidationReport, engine: str) -> str:
    ruling = report.engines[engine].verdict
    return _WORDS.get(ruling, ruling.value) if report.verdict is Verdict.VALID else ""
