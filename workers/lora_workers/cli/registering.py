"""register, status: what a publisher does."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from lora_registry.client import RegistrationClient
from lora_registry.errors import NotServed, RegistryError, WaitTimeout
from lora_registry.events import Follow
from lora_registry.names import DEFAULT_NAMESPACE, AdapterName, parse_adapter
from lora_registry.registrations import Outcome, Registration
from lora_registry.rollout import Standing
from lora_registry.settings import load_settings
from lora_workers.cli.options import AsJson, open_client, parse_pairs
from lora_workers.cli.output import (
    console,
    described,
    exit_code_of_error,
    exit_code_of_outcome,
    print_error,
    print_json,
    print_line,
    print_registration,
    print_standings,
)
from lora_workers.local_paths import local_path
from lora_workers.training import stage, submit

_LOOK_S = 0.3
_OUTCOME = "outcome"
_AWAITED = re.compile(r"outcome|routable(?::(all|[1-9][0-9]{0,5}))?")


@dataclass(frozen=True)
class _Awaited:
    """What is waited for: the outcome, and then so many nodes that serve the version (None: all)."""

    is_served: bool
    nodes: int | None = 1


def register(
    name: Annotated[str, typer.Argument(metavar="NAME", help="NAME, or NAMESPACE.NAME.", show_default=False)],
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Directory that save_pretrained wrote, or its URL.", show_default=False),
    ],
    base: Annotated[str, typer.Option(help="Base model that it was trained on.", show_default=False)],
    namespace: Annotated[str | None, typer.Option(help="Namespace of a bare NAME; 'default' if none.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="K=V", help="A label that selects.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(metavar="K=V", help="Anything to keep.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Under one key, the same request registers once.")
    ] = None,
    supersede: Annotated[
        bool, typer.Option("--supersede", help="End older pending registrations of it once this one is validated.")
    ] = False,
    follow: Annotated[
        Follow, typer.Option(help="Who moves the adapter's own alias: new versions, or only people.")
    ] = Follow.LATEST,
    stage_to: Annotated[
        str, typer.Option(metavar="INBOX", help="Copy SOURCE to this directory or URL, and register the copy.")
    ] = "",
    wait: Annotated[
        str | None,
        typer.Option(
            "--wait",
            metavar="[routable[:N|:all]]",
            help="Wait for the outcome, or until one, N or all nodes that want it serve the version.",
            show_default=False,
        ),
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0, metavar="S", help="Longest wait.")] = 300.0,
    as_json: AsJson = False,
) -> None:
    """Register an adapter; with --wait the exit code tells the outcome."""
    adapter, awaited = _adapter(name, namespace), _parse_wait(wait)
    client = open_client()
    fields: dict[str, Any] = {
        "namespace": adapter.namespace,
        "name": adapter.name,
        "base_model": base,
        "labels": parse_pairs(label, option="--label"),
        "metadata": parse_pairs(metadata, option="--metadata"),
        "supersede": supersede,
        "follow": follow,
    }
    if stage_to:
        staged = stage(source, load_settings(adapter_inbox=stage_to), request=fields)
        registration_id = submit(client, staged, fields, idempotency_key=idempotency_key).id
    else:
        registration_id = client.submit(source=absolute(source), idempotency_key=idempotency_key, **fields)
    if awaited:
        _report_outcome(client, registration_id, awaited, timeout_s=timeout_s, as_json=as_json)
    elif as_json:
        registration = client.status(registration_id)
        print_json({**registration.as_result(), "state": registration.state})
    else:
        print_line(f"{registration_id}  accepted; `lora-registry status {registration_id}` follows it")


def status(
    registration_id: Annotated[str, typer.Argument(metavar="REGISTRATION", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Say how a registration is doing; the exit code is 0 whatever its outcome."""
    registration = open_client().status(registration_id)
    if as_json:
        print_json({**registration.as_result(), "state": registration.state})
    else:
        print_registration(registration)


def absolute(source: str) -> str:
    """A local path made absolute; what is on the Hub or has a URL, as it is.

    Raises:
        Rejected: it is empty.
    """
    return local_path(source) or source


def _adapter(name: str, namespace: str | None) -> AdapterName:
    adapter = parse_adapter(name, namespace=namespace or DEFAULT_NAMESPACE)
    if namespace not in (None, adapter.namespace):
        raise typer.BadParameter(f"{name!r} names another namespace than {namespace!r}", param_hint="--namespace")
    return adapter


class WaitCommand(TyperCommand):
    """A command whose `--wait` may stand alone or before what is waited for, and never takes NAME for that."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join `--wait` and its value, or give it the one that it stands for alone."""
        joined: list[str] = []
        rest = list(args)
        while rest:
            each = rest.pop(0)
            if each == "--":
                joined += [each, *rest]
                break
            if each == "--wait":
                each = f"--wait={rest.pop(0) if rest and _AWAITED.fullmatch(rest[0]) else _OUTCOME}"
            joined.append(each)
        return super().parse_args(ctx, joined)


def _parse_wait(text: str | None) -> _Awaited | None:
    if text is None:
        return None
    read = _AWAITED.fullmatch(text)
    if read is None:
        raise typer.BadParameter(f"{text!r}: give routable, routable:N or routable:all", param_hint="--wait")
    if read[0] == _OUTCOME:
        return _Awaited(is_served=False)
    return _Awaited(is_served=True, nodes=None if read[1] == "all" else int(read[1] or 1))


def _report_outcome(
    client: RegistrationClient, registration_id: str, awaited: _Awaited, *, timeout_s: float, as_json: bool
) -> None:
    deadline = time.monotonic() + timeout_s
    if console(stderr=True).is_terminal:
        registration = _watch(client, registration_id, timeout_s=timeout_s)
    else:
        registration = client.wait(registration_id, timeout_s=timeout_s)
    standings: list[Standing] = []
    failure: RegistryError | None = None
    if awaited.is_served and registration.outcome in (Outcome.PUBLISHED, Outcome.UNCHANGED):
        try:
            left_s = max(0.0, deadline - time.monotonic())
            standings = client.wait_routable(registration.served_name, nodes=awaited.nodes, timeout_s=left_s)
        except (NotServed, WaitTimeout) as error:
            failure, standings = error, client.standings(registration.served_name)
    if as_json:
        served = {"nodes": [each.as_result() for each in standings]} if awaited.is_served else {}
        failed = {"error": described(failure)} if failure else {}
        print_json({**registration.as_result(), **served, **failed})
    else:
        print_registration(registration)
        if standings:
            print_standings(standings)
    if failure:
        print_error(failure, as_json=False)
    raise typer.Exit(exit_code_of_error(failure) if failure else exit_code_of_outcome(registration.outcome))


def _watch(client: RegistrationClient, registration_id: str, *, timeout_s: float) -> Registration:
    """Wait as `client.wait` does, with the state on the terminal."""
    deadline = time.monotonic() + timeout_s
    with console(stderr=True).status(f"{registration_id}: accepted") as spinner:
        while True:
            left_s = deadline - time.monotonic()
            try:
                return client.wait(registration_id, timeout_s=min(_LOOK_S, max(0.0, left_s)))
            except WaitTimeout as error:
                if left_s <= _LOOK_S:
                    raise WaitTimeout(f"{error.message} (waited {timeout_s:g} s)") from None
                spinner.update(error.message.partition(" after ")[0])
