"""hooks list, show, redeliver: the configured webhooks, what was delivered to them, and reading it again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from lora_registry.connection import connect
from lora_registry.errors import NotFound
from lora_registry.hook_deliveries import Delivery, HookDeliveries
from lora_registry.settings import Settings, load_settings
from lora_workers.cli.options import AsJson
from lora_workers.cli.output import print_json, print_line, print_table
from lora_workers.extras import require

hook_commands = typer.Typer(no_args_is_help=True, help="Webhooks: what they delivered, and reading it again.")
HookArgument = Annotated[str, typer.Argument(metavar="HOOK", show_default=False)]
DeliveryArgument = Annotated[str, typer.Argument(metavar="DELIVERY", show_default=False)]


@hook_commands.command("list")
def list_hooks(as_json: AsJson = False) -> None:
    """List the hooks of LORA_REGISTRY_HOOKS_FILE with what was delivered to them lately."""
    require("gateway")
    from lora_workers.hooks.configuration import load_hooks

    settings = load_settings()
    hooks, deliveries = load_hooks(settings.hooks_file), _deliveries(settings)
    rows = []
    for name, hook in sorted(hooks.items()):
        kept, refused = deliveries.history(name), deliveries.refusals(name)
        rows.append((name, hook.kind, hook.namespace, len(hook.rules), len(kept), len(refused)))
    columns = ("hook", "kind", "namespace", "rules", "deliveries", "refused")
    if as_json:
        return print_json([dict(zip(columns, row, strict=True)) for row in rows])
    return print_table(columns, rows) if rows else print_line("there are no hooks")


@hook_commands.command("show")
def show_hook(
    hook: HookArgument,
    delivery: Annotated[str | None, typer.Argument(metavar="[DELIVERY]", show_default=False)] = None,
    refused: Annotated[bool, typer.Option("--refused", help="Those that were refused instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the deliveries of a hook, newest first; or one of them, with its body."""
    deliveries = _deliveries(load_settings())
    if delivery is not None:
        one = deliveries.delivery(hook, delivery)
        if as_json:
            return print_json(one.as_json() | {"body": one.body})
        _print_table([one])
        return print_line(one.body or "its body is not kept")
    kept = deliveries.refusals(hook) if refused else deliveries.history(hook)
    if as_json:
        return print_json([each.as_json() for each in kept])
    return _print_table(kept) if kept else print_line("there are no such deliveries")


@hook_commands.command()
def redeliver(hook: HookArgument, delivery: DeliveryArgument, as_json: AsJson = False) -> None:
    """Read a delivery again, by the rules of now, and register what it asks for even if that went well before."""
    require("gateway")
    from lora_workers.hooks.configuration import load_hooks
    from lora_workers.hooks.redelivery import redeliver as read_again

    settings = load_settings()
    hooks = load_hooks(settings.hooks_file)
    if hook not in hooks:
        raise NotFound(f"there is no hook {hook[:100]!r}", remedy="List them with `lora-registry hooks list`.")
    heard = read_again(hook, hooks[hook], delivery, _deliveries(settings))
    if as_json:
        return print_json({"id": heard.delivery_id, "verdict": heard.verdict.value, "reason": heard.reason})
    return print_line("  ".join(part for part in (heard.delivery_id, heard.verdict.value, heard.reason) if part))


def _deliveries(settings: Settings) -> HookDeliveries:
    return HookDeliveries(connect(settings.redis_url, name="lora-cli"), settings)


def _print_table(deliveries: list[Delivery]) -> None:
    rows = [
        (
            datetime.fromtimestamp(each.at_s, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            each.id,
            each.verdict,
            each.times,
            " ".join(each.registrations),
            each.reason,
        )
        for each in deliveries
    ]
    print_table(("time (UTC)", "delivery", "verdict", "times", "registrations", "reason"), rows)
