"""dead-letters list, show, retry: registrations whose retries are exhausted."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lora_registry.ledger import DeadLetter
from lora_workers.cli.options import AsJson, open_ledger
from lora_workers.cli.output import print_json, print_line, print_registration, print_table

dead_letter_commands = typer.Typer(no_args_is_help=True, help="Registrations whose retries are exhausted.")


@dead_letter_commands.command("list")
def list_dead_letters(as_json: AsJson = False) -> None:
    """List the dead letters, oldest first."""
    letters = open_ledger()[0].dead_letters()
    if as_json:
        return print_json([_as_json(letter) for letter in letters])
    if not letters:
        return print_line("there are no dead letters")
    rows = [
        (letter.registration.id, letter.registration.adapter, letter.stage, _last_error(letter)) for letter in letters
    ]
    return print_table(("registration", "adapter", "stage", "last error"), rows)


@dead_letter_commands.command("show")
def show_dead_letter(
    registration_id: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show a dead letter with the history of its failures."""
    letter = open_ledger()[0].dead_letter(registration_id)
    if as_json:
        return print_json(_as_json(letter))
    print_registration(letter.registration)
    for failure in letter.history:
        print_line("  ".join(f"{name}={value}" for name, value in failure.items()))
    return print_line(f"`lora-registry dead-letters retry {registration_id}` tries {letter.stage} again")


@dead_letter_commands.command("retry")
def retry(
    registration_id: Annotated[str | None, typer.Argument(metavar="[ID]", show_default=False)] = None,
    retry_all: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Try a dead letter again, in the stage where it died."""
    if (registration_id is None) is not retry_all:
        raise typer.BadParameter("give one registration id, or --all", param_hint="ID")
    ledger, _ = open_ledger()
    ids = [registration_id] if registration_id else [letter.registration.id for letter in ledger.dead_letters()]
    for each in ids:
        ledger.redrive(each)
    if as_json:
        print_json({"retried": ids})
    else:
        print_line(f"{len(ids)} tried again")


def _as_json(letter: DeadLetter) -> dict[str, Any]:
    return {"stage": letter.stage, "history": list(letter.history), "registration": letter.registration.as_result()}


def _last_error(letter: DeadLetter) -> str:
    return str(letter.history[-1].get("error", "")) if letter.history else ""
