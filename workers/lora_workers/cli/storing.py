"""store list, verify, gc: the artifact store."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from typing import Annotated

import typer

from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE
from lora_registry.catalog import Catalog
from lora_registry.connection import connect
from lora_registry.errors import ArtifactDamaged, NotFound
from lora_registry.marks import Marks
from lora_registry.nodes import NodeRegistry
from lora_registry.settings import Settings, load_settings
from lora_workers.artifact_store import Store, open_artifact_store
from lora_workers.cli.options import AsJson
from lora_workers.cli.output import REJECTED, print_json, print_line, print_lines, print_table
from lora_workers.garbage import Collected, GarbageCollection
from lora_workers.training import sweep_inbox

store_commands = typer.Typer(no_args_is_help=True, help="The artifact store.")


@store_commands.command("list")
def list_artifacts(as_json: AsJson = False) -> None:
    """List the artifacts, with the versions that refer to them."""
    settings, store, catalog = _open()
    versions = defaultdict(list)
    for record in catalog.select():
        versions[record.digest].append(record.served_name)
    found = [(digest, store.size_bytes(digest), sorted(versions[digest])) for digest in store.digests()]
    if as_json:
        return print_json([{"digest": digest, "size_bytes": size, "versions": names} for digest, size, names in found])
    if not found:
        return print_line(f"{settings.artifact_store} holds no artifact")
    return print_table(("digest", "bytes", "versions"), [(*each[:2], ", ".join(each[2]) or "none") for each in found])


@store_commands.command("verify")
def verify(
    digests: Annotated[list[str] | None, typer.Argument(metavar="[DIGEST]...", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Read artifacts that versions refer to (or those named) and compare sizes and SHA-256; 1 if one is damaged."""
    _, store, catalog = _open()
    wanted = digests or sorted({record.digest for record in catalog.select()})
    damaged = {digest: trouble for digest in wanted if (trouble := _check(store, digest))}
    if as_json:
        print_json({"verified": len(wanted), "damaged": damaged})
    else:
        print_lines(f"{digest}: {trouble}" for digest, trouble in damaged.items())
        print_line(f"{len(wanted)} artifacts read, {len(damaged)} damaged or missing")
    if damaged:
        raise typer.Exit(REJECTED)


@store_commands.command("gc")
def collect(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the grace of all that is marked is over.")] = False,
    allow_all: Annotated[bool, typer.Option("--all", help="Even if nothing at all is published.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove artifacts that no version refers to and no node holds, and old reports; run it regularly.

    One run marks them; a run after LORA_REGISTRY_GC_GRACE_S (or this one, with --wait) looks again and removes them.
    """
    settings, store, catalog = _open()
    client = connect(settings.redis_url, name="lora-cli")
    collection = GarbageCollection(
        store,
        catalog=catalog,
        marks=Marks(client, settings),
        in_use=NodeRegistry(client, settings).digests_in_use,
        grace_s=settings.gc_grace_s,
        reports_for_s=max(settings.retention_s, settings.dead_letter_retention_s),
    )
    collected = collection.preview() if dry_run else collection.run(wait=wait, allow_all=allow_all)
    collected.copies = 0 if dry_run else sweep_inbox(settings)
    if as_json:
        return print_json({"dry_run": dry_run, **asdict(collected)})
    return _print_collected(collected, dry_run=dry_run, settings=settings)


def _print_collected(collected: Collected, *, dry_run: bool, settings: Settings) -> None:
    print_lines(f"{digest}  {'would be ' if dry_run else ''}removed" for digest in collected.removed)
    print_lines(f"{digest}  waits: marked for less than {settings.gc_grace_s:g} s" for digest in collected.waiting)
    print_lines(f"report of {each}  {'would be ' if dry_run else ''}removed" for each in collected.reports)
    print_line(
        f"removed {len(collected.removed)} artifacts ({collected.removed_bytes} bytes), "
        f"{collected.uploads} half made ones, {len(collected.reports)} reports, {collected.copies} inbox copies; "
        f"{len(collected.waiting)} wait, {collected.referenced} are referred to" + (" (dry run)" if dry_run else "")
    )


def _check(store: Store, digest: str) -> str:
    """What is wrong with an artifact, or nothing."""
    try:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            for _ in store.read(digest, name):
                pass
    except (ArtifactDamaged, NotFound) as error:
        return error.message
    return ""


def _open() -> tuple[Settings, Store, Catalog]:
    settings = load_settings()
    return settings, open_artifact_store(settings), Catalog(connect(settings.redis_url, name="lora-cli"), settings)
