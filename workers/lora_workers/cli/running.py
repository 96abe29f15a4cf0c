"""worker, dispatcher, gateway, admit: the processes of a registry, one by one."""

from __future__ import annotations

from typing import Annotated

import typer

from lora_registry.connection import connect
from lora_registry.inbox import admit as admit_server
from lora_registry.settings import load_settings
from lora_registry.stages import ORDER, Stage
from lora_workers.cli.options import AsJson, LogLevel, start_logging
from lora_workers.cli.output import print_json, print_line
from lora_workers.extras import require


def worker(
    queues: Annotated[str, typer.Option(metavar="STAGES", help=f"Stages to work on, such as {','.join(ORDER)}.")],
    concurrency: Annotated[int, typer.Option(min=1, help="Child processes; each works on one claim.")] = 1,
    device: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="auto, cpu or cuda (validate; on GPUs, one process for each)."),
    ] = None,
    log_level: LogLevel = "info",
) -> None:
    """Run a worker for some stages until SIGTERM."""
    stages = _parse_stages(queues)
    require("workers")
    start_logging(log_level)
    from lora_workers.worker import run_worker

    raise typer.Exit(run_worker(load_settings(device=device), stages, concurrency=concurrency))


def dispatcher(log_level: LogLevel = "info") -> None:
    """Run a dispatcher until SIGTERM; any number may run."""
    require("workers")
    start_logging(log_level)
    from lora_workers.dispatcher import Dispatcher

    Dispatcher(load_settings()).run()


def gateway(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; beyond loopback only once there is a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one.")] = 8080,
    log_level: LogLevel = "info",
) -> None:
    """Run the HTTP gateway until SIGTERM; any number may run."""
    require("gateway")
    start_logging(log_level)
    from lora_workers.gateway.serving import serve

    serve(load_settings(), host=host, port=port, say=print_line)


def admit(
    id_floor: Annotated[
        int, typer.Option(min=0, help="After a restore: the largest lora_int_id that any node has seen.")
    ] = 0,
    number_floor: Annotated[int, typer.Option(min=0, help="Likewise the largest version number.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Say that a new, restored or emptied Redis server counts as it is; dispatchers admit all but an emptied one."""
    settings = load_settings()
    client = connect(settings.redis_url, name="lora-cli")
    is_new, generation = admit_server(client, settings, id_floor=id_floor, number_floor=number_floor, by_operator=True)
    if as_json:
        return print_json({"new": is_new, "generation": generation})
    return print_line(f"{'admitted' if is_new else 'was already admitted'}; generation {generation}")


def _parse_stages(text: str) -> list[Stage]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in set(Stage)]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(ORDER)}", param_hint="--queues")
    return [Stage(name) for name in dict.fromkeys(names)]
