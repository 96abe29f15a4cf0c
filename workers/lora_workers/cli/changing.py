"""retire, rollback, promote, label, keep-last: what people do with published versions."""

from __future__ import annotations

import getpass
import os
import re
from typing import Annotated, Any

import typer

from lora_registry.catalog_records import VersionRecord
from lora_registry.names import AdapterName, check_word, parse_adapter, parse_reference
from lora_registry.nodes import NODE_ID
from lora_workers.cli.options import AsJson, open_client, parse_version, unwind_when_ended
from lora_workers.cli.output import as_text, print_json, print_line, print_standings, print_table, when

Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]
OptionalAlias = Annotated[
    str | None, typer.Argument(metavar="ALIAS", help="The adapter's own, its name, if none.", show_default=False)
]

_NODE = re.compile(NODE_ID)
_MOST_KEPT = 2**31 - 1
"""As many as there are integer ids."""


def who() -> str:
    """Who runs the command, for histories."""
    try:
        return f"{getpass.getuser()}@{os.uname().nodename}"
    except (KeyError, OSError):
        return f"{os.getuid()}@{os.uname().nodename}"


def retire(
    name: Annotated[str, typer.Argument(metavar="NAME[.vN]", show_default=False)], as_json: AsJson = False
) -> None:
    """Retire a version that no alias points at, or an adapter with all its versions and aliases.

    Nodes unload what is retired, and its artifact may be collected then. Ids and numbers are never given again.
    """
    reference = parse_reference(name)
    if reference.alias is not None:
        raise typer.BadParameter(f"{name!r} is an alias; retire a version, or `alias remove` it", param_hint="NAME")
    lifecycle = open_client().lifecycle
    if reference.version is not None:
        count = int(lifecycle.retire_version(reference.adapter, reference.version))
    else:
        count = lifecycle.retire_adapter(reference.adapter, by=who())
    if as_json:
        print_json({"retired": count})
    else:
        print_line(f"retired {count} version{'' if count == 1 else 's'} of {reference.adapter}")


def rollback(name: Name, alias: OptionalAlias = None, as_json: AsJson = False) -> None:
    """Point an alias at the version it pointed at before, and pin it there; again goes further back."""
    adapter = parse_adapter(name)
    named = _named(alias, adapter)
    record = open_client().lifecycle.rollback(adapter, named, by=who())
    _print_moved(f"{adapter}@{named}", record, as_json=as_json)


def promote(
    name: Name,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="3 or v3.", show_default=False)],
    alias: Annotated[str | None, typer.Option(help="Alias to move; the adapter's own, its name, if none.")] = None,
    canary: Annotated[
        str | None,
        typer.Option(metavar="NODES|N", help="Only if these nodes, or so many of them, serve it first."),
    ] = None,
    timeout_s: Annotated[
        float,
        typer.Option("--timeout", min=0, max=86_400, metavar="S", help="Longest wait for the canaries, then for all."),
    ] = 300.0,
    as_json: AsJson = False,
) -> None:
    """Point an alias at a version and pin it there, if asked for through a gate.

    With --canary these nodes have to serve the version before the alias moves, and all others that follow the alias
    after it did; if one of them fails or it takes too long, the alias is where it was before.
    """
    adapter = parse_adapter(name)
    named = _named(alias, adapter)
    unwind_when_ended()
    done = (
        open_client()
        .promotions()
        .promote(
            adapter,
            parse_version(version, option="VERSION"),
            named,
            canaries=_parse_canaries(canary),
            timeout_s=timeout_s,
            by=who(),
        )
    )
    if as_json:
        print_json(
            {
                "alias": f"{adapter}@{named}",
                "before": done.before,
                "version": done.record.model_dump(mode="json"),
                "canaries": list(done.canaries),
                "nodes": [each.as_result() for each in done.standings],
            }
        )
        return
    _print_moved(f"{adapter}@{named}", done.record, as_json=False)
    if done.standings:
        print_standings(done.standings)


def label(
    name: Annotated[str, typer.Argument(metavar="NAME[.vN|@ALIAS]", show_default=False)],
    changes: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE|KEY-…", help="Labels to set, or to drop.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Set or drop labels of a version; a bare NAME means what its own alias points at."""
    reference = parse_reference(name)
    labels: dict[str, str] = {}
    dropped: list[str] = []
    for change in changes:
        key, equals, value = change.partition("=")
        if equals:
            contradicts = key in dropped or labels.setdefault(key, value) != value
        elif change.endswith("-") and len(change) > 1:
            dropped.append(change[:-1])
            contradicts = change[:-1] in labels
        else:
            raise typer.BadParameter(f"{change!r}: give KEY=VALUE to set, or KEY- to drop", param_hint="KEY=VALUE")
        if contradicts:
            raise typer.BadParameter(f"{change!r} contradicts what is before it; keep one", param_hint="KEY=VALUE")
    record, changed = open_client().lifecycle.label(reference, labels, drop=dropped)
    if as_json:
        print_json({"changed": changed, "version": record.model_dump(mode="json")})
    else:
        print_line(f"{record.served_name}  {as_text(record.labels)}")


def keep_last(
    name: Annotated[
        str, typer.Argument(metavar="NAME|NAMESPACE.", help="An adapter, or a namespace and a dot.", show_default=False)
    ],
    number: Annotated[
        int | None,
        typer.Argument(min=0, max=_MOST_KEPT, metavar="[N]", help="0 keeps all; none says it.", show_default=False),
    ] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Take back what was said of it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say how many versions of an adapter are kept, besides those that an alias points at; older ones are retired.

    It counts from the next publication on. What is said of an adapter goes before its namespace, that before
    LORA_REGISTRY_KEEP_LAST.
    """
    if forget and number is not None:
        raise typer.BadParameter("give a number to keep, or --forget to take it back, not both", param_hint="--forget")
    lifecycle = open_client().lifecycle
    if name.endswith("."):
        namespace, adapter = check_word(name[:-1], what="namespace"), ""
    else:
        parsed = parse_adapter(name)
        namespace, adapter = parsed.namespace, parsed.name
    if forget or number is not None:
        lifecycle.set_keep_last(None if forget else number, namespace=namespace, name=adapter)
    kept = lifecycle.keep_last_of(namespace, "" if forget else adapter)
    if as_json:
        print_json({"name": name, "keep_last": kept})
    else:
        print_line(f"{name}  {f'the newest {kept}' if kept else 'all versions'} and those that an alias points at")


def alias_history(
    name: Name, alias: Annotated[str, typer.Argument(metavar="ALIAS", show_default=False)], as_json: AsJson = False
) -> None:
    """Show who moved an alias from where to where, newest first; the last 100 moves are kept."""
    adapter = parse_adapter(name)
    moves = open_client().lifecycle.history(adapter, check_word(alias, what="alias"))
    if as_json:
        return print_json([_move(each) for each in moves])
    rows = [(when(each.at_s), _version(each.before), _version(each.after), each.how, each.by) for each in moves]
    return print_table(("when", "from", "to", "how", "by"), rows)


def remove_alias(
    name: Name,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", show_default=False)],
    expect: Annotated[str | None, typer.Option(metavar="VERSION", help="Only if it points at this one now.")] = None,
    as_json: AsJson = False,
) -> None:
    """Remove an alias; the version it points at stays."""
    adapter = parse_adapter(name)
    expected = None if expect is None else parse_version(expect, option="--expect")
    lifecycle = open_client().lifecycle
    version = lifecycle.remove_alias(adapter, check_word(alias, what="alias"), expect=expected, by=who())
    if as_json:
        print_json({"alias": f"{adapter}@{alias}", "before": version})
    else:
        print_line(f"removed {adapter}@{alias}, which pointed at {adapter.served_name(version)}")


def _parse_canaries(text: str | None) -> int | tuple[str, ...]:
    if text is None:
        return ()
    if re.fullmatch(r"[1-9][0-9]{0,5}", text):
        return int(text)
    nodes = tuple(filter(None, map(str.strip, text.split(","))))
    if not nodes or not text.strip("0") or not all(map(_NODE.fullmatch, nodes)):
        raise typer.BadParameter(f"{text!r}: give nodes with commas between, or how many", param_hint="--canary")
    return nodes


def _named(alias: str | None, adapter: AdapterName) -> str:
    """The alias that was named, or the adapter's own; an empty one is a slip, and means neither."""
    return adapter.name if alias is None else check_word(alias, what="alias")


def _print_moved(alias: str, record: VersionRecord, *, as_json: bool) -> None:
    if as_json:
        print_json({"alias": alias, "version": record.model_dump(mode="json")})
    else:
        print_line(f"{alias} -> {record.served_name}  lora_int_id={record.lora_int_id}")


def _move(move: Any) -> dict[str, Any]:
    return {
        "from": move.before,
        "to": move.after,
        "mode": move.mode,
        "how": move.how.value,
        "by": move.by,
        "at_s": move.at_s,
    }


def _version(number: int | None) -> str:
    return "" if number is None else f"v{number}"
