"""watch: a base model's announcements as lines."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from lora_registry.announcements import CatalogView, Change, Cursor, Kind, Update
from lora_registry.connection import connect, redis_errors
from lora_registry.errors import ServerNotAdmitted
from lora_registry.keys import Keys
from lora_registry.names import check_base_name
from lora_registry.settings import Settings, load_settings
from lora_registry.subscriber import Subscriber
from lora_workers.cli.options import AsJson, open_client
from lora_workers.cli.output import print_json, print_line

RESET_TYPE = "io.lora-registry.reset.v1"


def watch(
    base: Annotated[str, typer.Option(help="Base model to follow.", show_default=False)],
    from_sequence: Annotated[
        int | None, typer.Option("--from", min=1, max=2**63 - 1, metavar="SEQ", help="Begin with this announcement.")
    ] = None,
    idle_s: Annotated[
        float | None, typer.Option("--idle", min=0, metavar="S", help="Stop after so long without any.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print announcements as they come: first what there is as one reset, unless --from says where to begin.

    A sequence number that the log no longer (or not yet) holds begins with a reset, too. With --json each line is
    the CloudEvents message, and a reset a message of type io.lora-registry.reset.v1.
    """
    open_client().catalog.bases.get(check_base_name(base))
    settings = load_settings()
    view = None if from_sequence is None else CatalogView(Cursor(_generation(settings), from_sequence - 1))
    subscriber = Subscriber(base, url=settings.redis_url, view=view, key_prefix=settings.key_prefix)
    for update in subscriber.follow(idle_s=idle_s):
        if as_json:
            _print_messages(update, base)
        else:
            for line in lines_of(update):
                print_line(line)


def lines_of(update: Update) -> list[str]:
    """The update for people, a line for each change."""
    number = update.cursor.sequence
    lines = [f"{'reset' if update.reset else number}  {describe(change)}" for change in update.changes]
    lines += [f"reset  gone {name}" for name in update.gone]
    if update.reset:
        lines.append(f"reset  that is the catalog as of announcement {number}")
    return lines


def describe(change: Change) -> str:
    """What changed, in a few words."""
    record, target = change.record, change.target
    if target is not None:
        adapter = change.subject.partition("@")[0]
        served = record.served_name if record else f"{adapter}.v{target.version}"
        return f"{change.kind}  {change.subject} -> {served}  {target.mode}"
    if record is None:
        return f"{change.kind}  {change.subject}"
    labels = "".join(f"  {key}={value}" for key, value in sorted(record.labels.items()))
    if change.kind is Kind.LABELS_CHANGED:
        return f"{change.kind}  {change.subject}{labels}"
    return (
        f"{change.kind}  {change.subject}  lora_int_id={record.lora_int_id}  rank={record.rank}"
        f"  {record.digest[:19]}{labels}"
    )


def _print_messages(update: Update, base: str) -> None:
    if update.reset:
        print_json(_reset_message(update, base))
        return
    for change in update.changes:
        print_json(json.loads(change.message))


def _reset_message(update: Update, base: str) -> dict[str, Any]:
    return {
        "type": RESET_TYPE,
        "subject": base,
        "generation": update.cursor.generation,
        "sequence": update.cursor.sequence,
        "data": {"changes": [_change_data(change) for change in update.changes], "gone": list(update.gone)},
    }


def _change_data(change: Change) -> dict[str, Any]:
    target = change.target
    return {
        "kind": change.kind.value,
        "subject": change.subject,
        "version": change.record.model_dump(mode="json") if change.record else None,
        "alias": {"version": target.version, "mode": target.mode.value} if target else None,
    }


def _generation(settings: Settings) -> str:
    with redis_errors():
        generation = connect(settings.redis_url).hget(Keys(settings.key_prefix).server, "generation")
    if generation is None:
        raise ServerNotAdmitted
    return str(generation)
