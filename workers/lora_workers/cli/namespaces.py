"""namespace set, show, list, remove: what each namespace may do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from lora_registry.connection import connect
from lora_registry.errors import Configuration
from lora_registry.events import describe_validation_error
from lora_registry.names import DEFAULT_NAMESPACE, AdapterName, check_word
from lora_registry.namespaces import NamespacePolicy, Quotas, SourceRule
from lora_registry.policies import Policies
from lora_registry.settings import load_settings
from lora_workers.cli.options import AsJson
from lora_workers.cli.output import print_json, print_line, print_table

namespace_commands = typer.Typer(no_args_is_help=True, help="What each namespace may do: its sources and quotas.")
Namespace = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]
Most = Annotated[int | None, typer.Option(min=0, metavar="N", show_default="no limit")]


@namespace_commands.command("set")
def set_policy(
    name: Namespace,
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PREFIX[::CREDENTIAL]", help="Where it may register from, and with which credential; repeatable."
        ),
    ] = None,
    marker_from: Annotated[
        list[str] | None,
        typer.Option(metavar="PREFIX", help="One of these prefixes where the marker file must be there; repeatable."),
    ] = None,
    any_source: Annotated[
        bool, typer.Option("--any-source", help="It may register from wherever the settings allow.")
    ] = False,
    max_adapters: Most = None,
    max_versions_per_day: Most = None,
    max_bytes: Most = None,
    as_json: AsJson = False,
) -> None:
    """Give a namespace its policy, in place of the one it has."""
    if not source and not any_source:
        raise typer.BadParameter("give at least one prefix, or --any-source", param_hint="--source")
    try:
        policy = NamespacePolicy(
            namespace=name,
            any_source=any_source,
            sources=_parse_rules(source or (), marker_from or ()),
            quotas=Quotas(adapters=max_adapters, versions_per_day=max_versions_per_day, bytes=max_bytes),
        )
    except ValidationError as error:
        raise Configuration(f"the policy is not legal: {describe_validation_error(error)}") from error
    is_new = _open().set(policy)
    if as_json:
        return print_json({"new": is_new, **policy.model_dump(mode="json")})
    return print_line(f"namespace {name} {'has a policy now' if is_new else 'has another policy now'}")


@namespace_commands.command("show")
def show(name: Namespace, as_json: AsJson = False) -> None:
    """Show a namespace's policy, and what it has published."""
    policies = _open()
    policy = policies.get(check_word(name, what="namespace"))
    usage, _ = policies.usage(AdapterName(name, DEFAULT_NAMESPACE))
    used = {"adapters": usage.adapters, "versions_per_day": usage.versions_today, "bytes": usage.bytes}
    if as_json:
        return print_json({**policy.model_dump(mode="json"), "usage": used})
    for rule in policy.sources:
        print_line(f"may register from {rule.prefix}{_with(rule)}")
    if policy.any_source:
        print_line("may register from wherever the settings allow")
    limits = policy.quotas.model_dump()
    rows = [(quota, used[quota], "no limit" if limits[quota] is None else limits[quota]) for quota in used]
    return print_table(("quota", "used", "limit"), rows)


@namespace_commands.command("list")
def list_policies(as_json: AsJson = False) -> None:
    """List the namespaces that have a policy."""
    policies = list(_open().all().values())
    if as_json:
        return print_json([policy.model_dump(mode="json") for policy in policies])
    if not policies:
        return print_line("no namespace has a policy")
    rows = [(policy.namespace, _sources(policy), *_limits(policy.quotas)) for policy in policies]
    return print_table(("namespace", "sources", "adapters", "versions a day", "bytes"), rows)


@namespace_commands.command("remove")
def remove(name: Namespace, as_json: AsJson = False) -> None:
    """Take a namespace's policy away; what it has published stays."""
    _open().remove(name)
    if as_json:
        return print_json({"removed": name})
    return print_line(f"namespace {name} has no policy any more")


def _open() -> Policies:
    settings = load_settings()
    return Policies(connect(settings.redis_url, name="lora-cli"), settings)


def _parse_rules(sources: Sequence[str], marker_from: Sequence[str]) -> tuple[SourceRule, ...]:
    rules = [_parse_rule(each) for each in sources]
    if unknown := set(marker_from) - {rule.prefix for rule in rules}:
        raise typer.BadParameter(f"{min(unknown)} is no prefix of a --source", param_hint="--marker-from")
    return tuple(rule.model_copy(update={"needs_marker": rule.prefix in marker_from}) for rule in rules)


def _parse_rule(text: str) -> SourceRule:
    prefix, separator, credential = text.partition("::")  # no place has that in it
    if "=" in text and not separator:
        place, _, name = text.rpartition("=")
        reason = f"a credential is named by {place}::{name}; if '=' belongs to the place, write {text}::"
        raise typer.BadParameter(reason, param_hint="--source")
    return SourceRule(prefix=prefix, credential=credential)


def _sources(policy: NamespacePolicy) -> str:
    listed = [f"{rule.prefix}{_with(rule)}" for rule in policy.sources]
    return ", ".join([*listed, *(["any"] if policy.any_source else [])])


def _with(rule: SourceRule) -> str:
    credential = f" with credential {rule.credential}" if rule.credential else ""
    return f"{credential}{' if the marker file is there' if rule.needs_marker else ''}"


def _limits(quotas: Quotas) -> list[Any]:
    return ["" if limit is None else limit for limit in quotas.model_dump().values()]
