"""Options that several commands share, and what opens the registry with the settings of the environment."""

from __future__ import annotations

import logging
import re
import signal
from typing import Annotated, NoReturn

import typer

from lora_registry.client import RegistrationClient
from lora_registry.connection import connect
from lora_registry.ledger import Ledger
from lora_registry.names import check_base_name
from lora_registry.settings import Settings, load_settings
from lora_workers.logs import log_to_stderr

_JSON_ASKED = "lora_workers.json"
_VERSION = re.compile(r"v?[0-9]{1,95}", re.ASCII)


def _remember(context: typer.Context, asked: bool) -> bool:
    context.meta[_JSON_ASKED] = asked
    return asked


def is_json_asked(context: typer.Context) -> bool:
    """Whether the command that ran under `context` was given --json."""
    return bool(context.meta.get(_JSON_ASKED))


AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON.", callback=_remember, is_eager=True, show_default=False)
]
Credential = Annotated[
    str, typer.Option(metavar="NAME", help="Credential in LORA_REGISTRY_CREDENTIALS_FILE to read it with.")
]
LogLevel = Annotated[str, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")]


def check_base(base: str | None) -> str | None:
    """Callback of --base options.

    Raises:
        InvalidName: it is no legal name of a base model.
    """
    return base if base is None else check_base_name(base)


def parse_pairs(pairs: list[str] | None, *, option: str) -> dict[str, str]:
    """Parse the `K=V` of an option that may be repeated.

    Raises:
        typer.BadParameter: one has no `=`, or a key comes with two values.
    """
    parsed: dict[str, str] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or parsed.setdefault(key, value) != value:
            raise typer.BadParameter(f"{pair!r}: give KEY=VALUE, with one value for each key", param_hint=option)
    return parsed


def parse_version(text: str, *, option: str) -> int:
    """Parse a version number, `3` or `v3`.

    Raises:
        typer.BadParameter: it is none.
    """
    if not _VERSION.fullmatch(text):
        raise typer.BadParameter(f"{text[:100]!r} is no version number", param_hint=option)
    return int(text.removeprefix("v"))


def unwind_when_ended() -> None:
    """Have SIGTERM, and the end of the terminal unless that is ignored, end the command as Ctrl-C does: it tidies up.

    The exit code is the shell's for that signal.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _unwind)


def _unwind(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def open_client() -> RegistrationClient:
    """The publisher's client with the settings of the environment.

    Raises:
        Configuration: a setting is not legal.
    """
    return RegistrationClient.from_url()


def open_ledger() -> tuple[Ledger, Settings]:
    """The ledger, and the settings of the environment.

    Raises:
        Configuration: a setting is not legal.
    """
    settings = load_settings()
    return Ledger(connect(settings.redis_url, name="lora-cli"), settings), settings


def start_logging(level: str) -> None:
    """Log to standard error.

    Raises:
        typer.BadParameter: there is no such level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise typer.BadParameter(f"{level!r} is no level", param_hint="--log-level")
    log_to_stderr(number)
