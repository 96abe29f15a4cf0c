"""Two pages of the documentation, made from the code itself: python -m lora_workers.cli.code_page DIRECTORY

codes.md lists every code of a finding, a verdict or a failure; engines.md the rules of the built-in engines. Code that
is not installed here adds nothing, so both are the same everywhere.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from lora_registry import errors
from lora_registry.all_codes import CODES, ENGINE_CODES, GATEWAY_CODES
from lora_registry.code import Code
from lora_registry.engine_conditions import CONDITIONS
from lora_registry.engine_profiles import BUILT_IN, EngineProfile, EngineRule, EngineTable, Ruling, engine_table
from lora_workers.extras import MissingExtra

_MADE = "<!-- Made by `make docs-codes`. Do not edit. -->"
_WORDS = {
    Ruling.ACCEPT: "accepted; a note",
    Ruling.REFUSE: "refused",
    Ruling.SILENTLY_WRONG: "silently wrong",
}


def codes_page() -> str:
    """codes.md."""
    failures = [(f"`{each.code}`", inspect.getdoc(each) or "", each.remedy) for each in _failures()]
    refusals = [(f"`{each.code}`", each.cause, each.remedy) for each in GATEWAY_CODES.values()]
    return _page(
        _MADE,
        "# Codes",
        "`lora-registry explain CODE` says the same on the command line.",
        "## Findings",
        "An `error` rejects a registration; a `warning` and an `info` do not.",
        _codes_table(CODES.values()),
        "## Reasons of an engine's verdict",
        "None of them rejects a registration. [engines.md](engines.md) has the rules that lead to them.",
        _codes_table(ENGINE_CODES.values()),
        "## Refusals of the HTTP gateway",
        "Beside these it answers with the codes of findings and of failures.",
        _table(("code", "cause", "remedy"), refusals),
        "## Failures of commands and calls",
        _table(("code", "cause", "remedy"), failures),
    )


def engines_page() -> str:
    """engines.md."""
    return _page(
        _MADE,
        "# What engines do with valid adapters",
        "Whether an adapter fits its base model is one question; what an engine makes of it another. A profile says "
        "how a node's engine runs, and the rules of its engine lead to a verdict: `accept`, `refuse` (the engine "
        "refuses it, or dies of it), or `silently_wrong` (it would be served wrongly without a word, so the registry "
        "does not give it to that engine).",
        "A node that was started otherwise is described by a JSON file with these fields, given to "
        "`lora-registry check --engine` or in `LORA_REGISTRY_ENGINE_PROFILES`. `rules` of its own replace those of the "
        "engine under the same condition; one with the verdict `accept` takes them away.",
        _table(("field", "default"), _fields()),
        "## Conditions",
        _table(
            ("condition", "code", "holds when"),
            (
                (f"`{name}`", f"`{each.code.code}`", (inspect.getdoc(each.holds) or "").rstrip("."))
                for name, each in CONDITIONS.items()
            ),
        ),
        *(part for engine in BUILT_IN for part in _engine(engine_table(engine))),
    )


def main(arguments: Sequence[str]) -> None:
    """Write both pages into the directory that is named."""
    directory = Path(arguments[0] if arguments else "deploy/docs")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "codes.md").write_text(codes_page(), encoding="utf-8")
    (directory / "engines.md").write_text(engines_page(), encoding="utf-8")


def _failures() -> Iterable[type[errors.RegistryError]]:
    for each in vars(errors).values():
        if isinstance(each, type) and issubclass(each, errors.RegistryError):
            yield each
    yield MissingExtra


def _engine(table: EngineTable) -> Iterable[str]:
    yield f"## {table.engine}"
    yield f"From {table.read}. The built-in profile: {_profile(table.profile)}. Source: {table.profile_source}."
    yield _table(
        ("verdict", "condition", "reason", "source"),
        ((_WORDS[rule.verdict], _condition(rule), rule.reason, rule.source) for rule in table.rules),
    )


def _condition(rule: EngineRule) -> str:
    values = ", ".join((*rule.values, *([] if rule.limit is None else [str(rule.limit)])))
    parts = [f"`{rule.condition}`{f' ({values})' if values else ''}"]
    parts += [f"versions {rule.versions}"] if rule.versions else []
    parts += [f"unless the profile has the flag `{rule.unless_flag}`"] if rule.unless_flag else []
    return ", ".join(parts)


def _profile(profile: EngineProfile) -> str:
    fields = profile.model_dump(mode="json", exclude_defaults=True)
    return ", ".join(f"{name} `{value}`" for name, value in fields.items())


def _fields() -> Iterable[tuple[str, str]]:
    for name, field in EngineProfile.model_fields.items():
        default = "required" if field.is_required() else f"`{_json(field.get_default())}`"
        yield f"`{name}`", default


def _json(value: object) -> str:
    return {None: "null", (): "[]"}.get(value, str(value))  # type: ignore[call-overload,no-any-return] # defaults only


def _codes_table(codes: Iterable[Code]) -> str:
    rows = ((f"`{each.code}`", each.severity.value, each.cause, each.remedy) for each in codes)
    return _table(("code", "severity", "cause", "remedy"), rows)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _page(*parts: str) -> str:
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
