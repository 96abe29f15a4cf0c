"""nodes, rollout: who serves, and how far versions have come there."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lora_registry.nodes import Ack, Node, describe_ack
from lora_workers.cli.options import AsJson, check_base, open_client
from lora_workers.cli.output import as_text, print_json, print_line, print_standings, print_table, when

node_commands = typer.Typer(help="Serving nodes: who is there, and what each said.")


@node_commands.callback(invoke_without_command=True)
def list_nodes(
    context: typer.Context,
    base: Annotated[str | None, typer.Option(help="Of this base model only.", callback=check_base)] = None,
    as_json: AsJson = False,
) -> None:
    """List serving nodes, those that died not long ago included."""
    if context.invoked_subcommand is not None:
        return None
    found = open_client().nodes.nodes(base)
    if as_json:
        return print_json([_described(node) for node in found])
    if not found:
        of_base = f" of {base}" if base else ""
        return print_line(f"no serving node{of_base} is known; start one with `lora-registry node`")
    rows = [
        (
            node.info.node_id,
            "alive" if node.alive else "dead",
            node.info.base_model,
            f"{node.info.engine} {node.info.engine_version}".strip(),
            "eager" if node.info.eager else "lazy",
            node.artifacts,
            when(node.since_s if node.alive else node.expires_s),
            node.info.select,
        )
        for node in found
    ]
    return print_table(("node", "", "base model", "engine", "", "artifacts", "since", "select"), rows)


@node_commands.command("show")
def show_node(
    node_id: Annotated[str, typer.Argument(metavar="NODE", show_default=False)], as_json: AsJson = False
) -> None:
    """Show what a node is, and what it said of each version."""
    nodes = open_client().nodes
    node, acks = nodes.node(node_id), nodes.acks_of(node_id)
    if as_json:
        return print_json({**_described(node), "acknowledged": [describe_ack(ack) for ack in acks]})
    fields = {"alive": node.alive, "artifacts": node.artifacts, **node.info.model_dump(mode="json")}
    del fields["schema_version"]
    print_table(("field", "value"), [(field, as_text(value)) for field, value in fields.items()])
    return print_table(("version", "state", "since", "why"), [_row(ack) for ack in acks])


def rollout(
    name: Annotated[
        str, typer.Argument(metavar="NAME[.vN|@ALIAS]", help="An adapter, a version or an alias.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Show which node has which version of an adapter in which state since when, and why not."""
    standings = open_client().standings(name)
    if as_json:
        print_json([each.as_result() for each in standings])
    elif standings:
        print_standings(standings)
    else:
        print_line(f"no node that lives wants {name} or said anything of it")


def _described(node: Node) -> dict[str, Any]:
    return {
        **node.info.model_dump(mode="json"),
        "alive": node.alive,
        "since_s": node.since_s,
        "expires_s": node.expires_s,
        "artifacts": node.artifacts,
    }


def _row(ack: Ack) -> tuple[str, ...]:
    why = " ".join(part for part in (ack.code, ack.reason) if part)
    return (ack.served_name, ack.state, when(ack.since_s), why)
