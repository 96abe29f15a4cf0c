"""collection: selectors under a name."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lora_registry.named_collections import Collection
from lora_registry.names import check_word
from lora_registry.selection import parse_selector
from lora_workers.cli.options import AsJson, check_base, open_client, parse_pairs
from lora_workers.cli.output import print_json, print_line, print_table
from lora_workers.cli.published import print_records

collection_commands = typer.Typer(no_args_is_help=True, help="Selectors under a name.")
Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]


@collection_commands.command("set")
def set_collection(
    name: Name,
    select: Annotated[
        str, typer.Option(metavar="TERMS", help="As in namespace=team,tier=gold,env!=test,alias=stable.")
    ] = "",
    base: Annotated[str | None, typer.Option(help="Of this base model only.", callback=check_base)] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="K=V", help="With this label only.")] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(help="What this alias points at; @any: any alias; @own, or none given: each adapter's own."),
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="In this namespace only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Give a name to a selector; what it stands for changes with the catalog."""
    labels = parse_pairs(label, option="--label")
    selector = parse_selector(select).narrowed(namespace=namespace, aliases=alias or (), labels=labels)
    collection = Collection(name=check_word(name, what="collection"), base_model=base or "", selector=selector)
    is_new = open_client().collections.set(collection)
    if as_json:
        print_json({"new": is_new, **_described(collection)})
    else:
        terms = str(collection.selector) or "what each adapter's own alias points at"
        print_line(f"{'added' if is_new else 'changed'} {name}: {terms}")


@collection_commands.command("list")
def list_collections(as_json: AsJson = False) -> None:
    """List the collections."""
    found = open_client().collections.all()
    if as_json:
        return print_json([_described(each) for each in found])
    rows = [(each.name, each.base_model, each.selector) for each in found]
    return print_table(("collection", "base model", "selector"), rows)


@collection_commands.command("show")
def show_collection(name: Name, as_json: AsJson = False) -> None:
    """Show the versions that a collection stands for now."""
    collections = open_client().collections
    collection = collections.get(name)
    records = sorted(collections.resolve(collection), key=lambda record: (record.adapter, record.version))
    if as_json:
        versions = [record.model_dump(mode="json") for record in records]
        print_json({**_described(collection), "versions": versions})
    else:
        print_records(records)


@collection_commands.command("remove")
def remove_collection(name: Name, as_json: AsJson = False) -> None:
    """Forget a collection; its versions stay."""
    open_client().collections.remove(name)
    if as_json:
        print_json({"removed": name})
    else:
        print_line(f"removed {name}")


def _described(collection: Collection) -> dict[str, Any]:
    return {
        "name": collection.name,
        "base_model": collection.base_model,
        "selector": collection.selector.model_dump(mode="json"),
    }
