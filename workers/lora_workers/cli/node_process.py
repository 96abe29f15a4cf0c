"""node: the agent beside an engine."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Annotated

import typer

from lora_registry.settings import load_settings
from lora_workers.cli.options import LogLevel, start_logging
from lora_workers.extras import require


def node(
    base: Annotated[str | None, typer.Option(help="Base model that the engine serves.", show_default=False)] = None,
    engine: Annotated[str | None, typer.Option(help="vllm, sglang or directory.", show_default="vllm")] = None,
    engine_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where the engine answers, or the directory that it watches.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For artifacts; the engine sees it under the same path.")
    ] = None,
    eager: Annotated[
        bool | None, typer.Option("--eager/--lazy", help="Load at once, or at the first request (vLLM's plug-in).")
    ] = None,
    max_cache_gb: Annotated[float | None, typer.Option(help="What the cache may hold, in 10⁹ bytes.")] = None,
    select: Annotated[
        str | None, typer.Option(metavar="SELECTOR", help="What it serves, such as namespace=team,tier=gold.")
    ] = None,
    slots: Annotated[int | None, typer.Option(min=0, help="Adapters loaded at a time; 0: no limit of its own.")] = None,
    node_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Its name; default: host and the URL's port, or a mark of its cache."),
    ] = None,
    drain_s: Annotated[float | None, typer.Option(min=0, metavar="S", help="How long the old version stays.")] = None,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Engine profile that says what the engine takes.")
    ] = None,
    max_lora_rank: Annotated[
        int | None, typer.Option(min=1, help="The engine's --max-lora-rank, where it does not tell.")
    ] = None,
    any_base: Annotated[
        bool | None, typer.Option("--any-base", help="Go on although the engine names another base model.")
    ] = None,
    log_level: LogLevel = "info",
) -> None:
    """Keep an engine as the registry says: fetch, load, read back, acknowledge, until SIGTERM.

    Each option may be given as an environment variable, too: --engine-url is LORA_REGISTRY_NODE_ENGINE_URL.
    LORA_REGISTRY_NODE_ENGINE_API_KEY is the engine's API key, if it asks for one.
    """
    given = {name: value for name, value in locals().items() if name != "log_level"}
    require("node")
    start_logging(log_level)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of each request
    from lora_workers.node.agent import Agent
    from lora_workers.node.drivers import open_driver
    from lora_workers.node.lookup import LazyOrigin
    from lora_workers.node.options import load_options

    options, settings = load_options(**given), load_settings()
    origin = LazyOrigin(settings)
    origin.check()
    driver = open_driver(options.engine, options.engine_url, api_key=options.engine_api_key.get_secret_value())
    agent = Agent(options, settings, driver=driver, origin=origin)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    agent.run()
