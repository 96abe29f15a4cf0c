"""list, show, alias: the catalog."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from lora_registry.catalog import Catalog
from lora_registry.catalog_records import AliasTarget, VersionRecord
from lora_registry.names import AdapterName, check_word, parse_adapter, parse_reference
from lora_registry.selection import Selector
from lora_workers.cli.changing import alias_history, remove_alias, who
from lora_workers.cli.options import AsJson, check_base, open_client, parse_pairs, parse_version
from lora_workers.cli.output import as_text, print_json, print_line, print_table

alias_commands = typer.Typer(no_args_is_help=True, help="Move aliases, or let them follow.")
_COLUMNS = ("served name", "lora_int_id", "rank", "base model", "digest", "labels")
Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]
Alias = Annotated[str, typer.Argument(metavar="ALIAS", show_default=False)]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="3 or v3.", show_default=False)]


def list_versions(
    base: Annotated[str | None, typer.Option(help="Of this base model only.", callback=check_base)] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="K=V", help="With this label only.")] = None,
    namespace: Annotated[str | None, typer.Option(help="In this namespace only.")] = None,
    alias: Annotated[
        str | None, typer.Option(help="Only what this alias points at; @own: each adapter's own; @any: any.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List published versions; JSON is a list of version records."""
    wanted = Selector().narrowed(
        namespace=namespace, aliases=() if alias is None else (alias,), labels=parse_pairs(label, option="--label")
    )
    found = open_client().catalog.select(
        base_model=base,
        namespace=wanted.namespace or None,
        labels=wanted.labels,
        alias=next(iter(wanted.aliases), None),
    )
    records = sorted(found, key=lambda record: (record.adapter, record.version))
    if as_json:
        print_json([record.model_dump(mode="json") for record in records])
    else:
        print_records(records)


def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME[.vN|@ALIAS]", help="An adapter, a version or an alias.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Show an adapter with its versions and aliases, or one version of it."""
    reference = parse_reference(name)
    catalog = open_client().catalog
    if reference.version is not None or reference.alias is not None:
        _show_version(catalog.version(reference), as_json=as_json)
    else:
        _show_adapter(catalog, reference.adapter, as_json=as_json)


@alias_commands.command("set")
def set_alias(
    name: Name,
    alias: Alias,
    version: Version,
    expect: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Only if it points at this one now; 0: at none.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias of NAME at a version and pin it there; the adapter's own alias is its name."""
    expected = None if expect is None else parse_version(expect, option="--expect")
    _move(name, alias, parse_version(version, option="VERSION"), expect=expected, as_json=as_json)


@alias_commands.command("follow")
def follow(name: Name, as_json: AsJson = False) -> None:
    """Let the adapter's own alias follow its newest version again."""
    _move(name, parse_adapter(name).name, None, as_json=as_json)


alias_commands.command("history")(alias_history)
alias_commands.command("remove")(remove_alias)


def _move(name: str, alias: str, version: int | None, *, expect: int | None = None, as_json: bool) -> None:
    adapter = parse_adapter(name)
    check_word(alias, what="alias")
    record = open_client().catalog.move_alias(adapter, alias, version, expect=expect, by=who())
    if as_json:
        print_json({"alias": f"{adapter}@{alias}", "version": record.model_dump(mode="json")})
    else:
        print_line(f"{adapter}@{alias} -> {record.served_name}  lora_int_id={record.lora_int_id}")


def _show_version(record: VersionRecord, *, as_json: bool) -> None:
    fields = record.model_dump(mode="json")
    if as_json:
        print_json(fields)
    else:
        del fields["schema_version"]
        print_table(("field", "value"), [(field, as_text(value)) for field, value in fields.items()])


def _show_adapter(catalog: Catalog, adapter: AdapterName, *, as_json: bool) -> None:
    versions, aliases = catalog.versions(adapter), catalog.aliases(adapter)
    if as_json:
        return print_json(
            {
                "namespace": adapter.namespace,
                "adapter": adapter.name,
                "base_model": catalog.base_of(adapter),
                "versions": [record.model_dump(mode="json") for record in versions],
                "aliases": {name: _alias(target) for name, target in sorted(aliases.items())},
            }
        )
    print_records(versions)
    for name, target in sorted(aliases.items()):
        print_line(f"{adapter}@{name} -> {adapter.served_name(target.version)}  {target.mode}")
    return None


def _alias(target: AliasTarget) -> dict[str, Any]:
    return {"version": target.version, "mode": target.mode.value}


def print_records(records: Sequence[VersionRecord]) -> None:
    """Versions as a table."""
    rows = [
        (each.served_name, each.lora_int_id, each.rank, each.base_model, each.digest[:19], as_text(each.labels))
        for each in records
    ]
    if rows:
        print_table(_COLUMNS, rows)
    else:
        print_line("nothing is published")
