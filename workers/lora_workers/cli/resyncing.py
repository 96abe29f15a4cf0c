"""resync: look at the places that hooks watch, once or again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lora_registry.connection import connect
from lora_registry.errors import Configuration
from lora_registry.settings import load_settings
from lora_workers.cli.options import AsJson, LogLevel, start_logging
from lora_workers.cli.output import OUT_OF_REACH, print_json, print_line, print_table
from lora_workers.extras import require

if TYPE_CHECKING:
    from lora_workers.resync import Seen


def resync(
    once: Annotated[bool, typer.Option("--once", help="Look once, say what was seen, and end.")] = False,
    every: Annotated[
        float | None,
        typer.Option(
            min=0.1, metavar="SECONDS", help="Pause between rounds. [default: LORA_REGISTRY_RESYNC_INTERVAL_S]"
        ),
    ] = None,
    as_json: AsJson = False,
    log_level: LogLevel = "info",
) -> None:
    """Register what hooks watch and no webhook told, until SIGTERM; any number may run.

    With --once, exit code 4 says that a watched place could not be looked at now.
    """
    require("gateway")
    start_logging(log_level)
    from lora_workers.hooks.configuration import load_hooks, watching
    from lora_workers.resync import Resync, Sight, run
    from lora_workers.watched_places import WatchedPlaces

    settings = load_settings()
    hooks = watching(load_hooks(settings.hooks_file))
    if not hooks:
        raise Configuration(
            "no hook watches anything",
            remedy="Add `watch` to a hook in the file that LORA_REGISTRY_HOOKS_FILE names; see deploy/hooks/README.md.",
        )
    client = connect(settings.redis_url, name="lora-resync")
    looking = Resync(hooks, client, settings, places=WatchedPlaces(settings))
    if not once:
        run(looking, every_s=every or settings.resync_interval_s, report=lambda seen: _report(seen, as_json=as_json))
        return
    seen = looking.once()
    _report(seen, as_json=as_json, in_full=True)
    if any(each.sight is Sight.UNREACHABLE for each in seen):
        raise typer.Exit(OUT_OF_REACH)


def _report(round_: list[Seen], *, as_json: bool, in_full: bool = False) -> None:
    from lora_workers.resync import counted

    counts = counted(round_)
    if as_json:
        return print_json({"counts": counts, "seen": [each.as_json() for each in round_]})
    if in_full and round_:
        print_table(("hook", "place", "sight", "reason"), [(s.hook, s.place, s.sight, s.reason) for s in round_])
    return print_line(", ".join(f"{count} {sight}" for sight, count in counts.items()))
