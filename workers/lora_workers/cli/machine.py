"""up, demo: a whole registry on one machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from lora_registry.connection import connect, redis_errors
from lora_registry.settings import Settings, load_settings
from lora_workers.cli.options import LogLevel, start_logging
from lora_workers.cli.output import print_line
from lora_workers.embedded import EmbeddedValkey
from lora_workers.extras import require
from lora_workers.installation import Installation, Staffing, data_directory
from lora_workers.local_paths import absolute_path
from lora_workers.numeric_needs import settled

_TERMINATED = 143
"""As a program ends that SIGTERM stops."""


def up(
    redis_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Use this server instead of starting one.", show_default=False)
    ] = None,
    data: Annotated[Path, typer.Option(metavar="DIR", help="Where the server and the artifacts are kept.")] = Path(
        "lora-registry-data"
    ),
    source_root: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Where local adapters may lie. [default: LORA_REGISTRY_SOURCE_ROOTS, or here]"
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Worker processes of each stage.")] = 1,
    validate_workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Worker processes of validate, if not as many.")
    ] = None,
    gateway: Annotated[
        int | None, typer.Option(min=1, max=65535, metavar="PORT", help="Also run the HTTP gateway on this port.")
    ] = None,
    log_level: LogLevel = "info",
) -> None:
    """Run everything: a Valkey server, the dispatcher and the workers, restarted when they die.

    Ctrl-C or SIGTERM ends all in order (exit code 0); a second one does not wait.
    """
    require(*(["workers"] if redis_url else ["workers", "embedded"]), *(["gateway"] if gateway else []))
    start_logging(log_level)
    staffing = Staffing(
        workers, validate_workers or workers, log_level, gateway_port=gateway, with_resync=has_watches(load_settings())
    )
    with ExitStack() as held:
        directory = held.enter_context(data_directory(absolute_path(data)))
        server = None if redis_url else EmbeddedValkey(directory / "valkey")
        settings = settled(_settings_for_up(server.url if server else redis_url, directory, source_root))
        _run(Installation(settings, server=server, staffing=staffing), settings, has_server=server is not None)


def demo() -> None:
    """Take a tour: real adapters through the real pipeline, in a temporary folder; takes some seconds."""
    require("workers", "embedded")
    signal.signal(signal.SIGTERM, _terminated)
    from lora_workers.demo import run_demo

    raise typer.Exit(0 if run_demo(say=print_line) else 1)


def demo_files(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A directory to make; it must not exist yet.")],
) -> None:
    """Write the demo's base models and adapters to DIR, to try the commands with."""
    from lora_workers.demo import write_demo_files

    write_demo_files(directory)
    print_line(f"wrote {directory}/bases and {directory}/adapters")


def _settings_for_up(redis_url: str | None, directory: Path, source_root: list[Path] | None) -> Settings:
    roots = tuple(map(absolute_path, source_root or ()))
    if not roots and not os.environ.get("LORA_REGISTRY_SOURCE_ROOTS"):
        roots = (Path.cwd(),)
    settings = load_settings(redis_url=redis_url, source_roots=roots or None)
    kept_elsewhere = os.environ.get("LORA_REGISTRY_ARTIFACT_STORE")
    store = settings.artifact_directory or settings.artifact_store if kept_elsewhere else directory / "artifacts"
    return settings.model_copy(update={"artifact_store": str(store)})


def has_watches(settings: Settings) -> bool:
    """Whether a hook watches a place."""
    if settings.hooks_file is None:
        return False
    require("gateway")
    from lora_workers.hooks.configuration import load_hooks, watching

    return bool(watching(load_hooks(settings.hooks_file)))


def _run(installation: Installation, settings: Settings, *, has_server: bool) -> None:
    stopping = _stop_signals()
    try:
        if has_server:
            print_line("starting Valkey")
            installation.start_server()
        with redis_errors():
            connect(settings.redis_url, name="lora-up").ping()
        print_line(f"starting {', '.join(installation.others)} and {installation.worker_count} workers")
        installation.start_processes()
        _tell_when_ready(installation, settings, has_server=has_server)
        installation.run(until=stopping)
    finally:
        print_line("stopping")
        installation.stop()
    print_line("stopped")


def _tell_when_ready(installation: Installation, settings: Settings, *, has_server: bool) -> None:
    if not installation.is_ready():
        print_line("some workers are not ready yet; the log says why")
    for root in settings.source_roots:
        print_line(f"local adapters may lie in {root}")
    print_line(f"artifacts go to {settings.artifact_store}")
    if settings.numeric == "off":
        print_line(
            "the numbers of the weights are not looked at (that takes torch: pip install 'lora-registry[numeric]')"
        )
    if not has_server:  # whoever gave its URL has it, and there may be a password in it
        print_line("ready")
        return
    print_line("ready; in other terminals:")
    print_line(f"export LORA_REGISTRY_REDIS_URL={settings.redis_url}")


def _stop_signals() -> Callable[[], bool]:
    """Have SIGTERM, SIGINT and SIGHUP noted; the answer tells whether one came. A second one interrupts."""
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, note)
    return lambda: bool(received)


def _terminated(*_: object) -> NoReturn:
    raise SystemExit(_TERMINATED)
