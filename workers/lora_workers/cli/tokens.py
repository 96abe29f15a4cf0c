"""token create, token list, token revoke: the bearer tokens of the HTTP gateway."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from lora_registry.connection import connect
from lora_registry.settings import load_settings
from lora_registry.tokens import ALL_NAMESPACES, Scope, Token, Tokens
from lora_workers.cli.options import AsJson
from lora_workers.cli.output import print_json, print_line, print_table

token_commands = typer.Typer(no_args_is_help=True, help="Bearer tokens of the HTTP gateway.")


@token_commands.command("create")
def create(
    scope: Annotated[list[Scope], typer.Option(help="What it is for; may be repeated.", show_default=False)],
    namespace: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help=f"Whose adapters it reaches; {ALL_NAMESPACES!r} for all; may be repeated.",
            show_default=False,
        ),
    ],
    expires_days: Annotated[
        int | None, typer.Option(min=1, max=36_500, metavar="N", help="Days until it expires; default: never.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token. It is printed once: only its hash is kept."""
    secret, token = _open().create(scopes=scope, namespaces=namespace, expires_days=expires_days)
    if as_json:
        return print_json({"token": secret.get_secret_value(), **_as_json(token)})
    print_line(secret.get_secret_value())
    return print_line(f"token {token.id} is shown this once; `lora-registry token revoke {token.id}` ends it")


@token_commands.command("list")
def list_tokens(as_json: AsJson = False) -> None:
    """List the tokens, without their secrets."""
    tokens = list(_open().all().values())
    if as_json:
        return print_json([_as_json(token) for token in tokens])
    if not tokens:
        return print_line("there are no tokens: a gateway listens on loopback only, and lets everybody in")
    rows = [
        (token.id, " ".join(sorted(token.scopes)), " ".join(sorted(token.namespaces)), *_times(token))
        for token in tokens
    ]
    return print_table(("id", "scopes", "namespaces", "created", "expires"), rows)


@token_commands.command("revoke")
def revoke(token_id: Annotated[str, typer.Argument(metavar="ID", show_default=False)], as_json: AsJson = False) -> None:
    """End a token; gateways refuse it from the next second on."""
    _open().revoke(token_id)
    if as_json:
        return print_json({"revoked": token_id})
    return print_line(f"token {token_id} is revoked")


def _open() -> Tokens:
    settings = load_settings()
    return Tokens(connect(settings.redis_url, name="lora-cli"), settings)


def _as_json(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "scopes": sorted(token.scopes),
        "namespaces": sorted(token.namespaces),
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "expired": token.is_expired(time.time()),
    }


def _times(token: Token) -> tuple[str, str]:
    expires = "never" if token.expires_at is None else _day(token.expires_at)
    return _day(token.created_at), f"{expires} (expired)" if token.is_expired(time.time()) else expires


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
