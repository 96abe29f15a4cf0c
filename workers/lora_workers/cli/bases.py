"""base add, base list, base show: the base models that adapters are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lora_registry.base_profile import BaseProfile
from lora_registry.names import check_base_name
from lora_registry.settings import load_settings
from lora_workers.base_files import BaseFiles, SourceBaseFiles
from lora_workers.base_models import read_base_profile
from lora_workers.cli.options import AsJson, Credential, open_client
from lora_workers.cli.output import as_text, print_json, print_line, print_table
from lora_workers.local_paths import absolute_path, check_given
from lora_workers.sources import open_sources, scheme_of

base_commands = typer.Typer(no_args_is_help=True, help="Base models that adapters are compared with.")
Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]


@base_commands.command("add")
def add(
    name: Name,
    source: Annotated[
        str,
        typer.Argument(
            help="Directory with config.json and *.safetensors, or hf://org/repo@revision, or s3://bucket/prefix.",
            show_default=False,
        ),
    ],
    also_known_as: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Another name that adapters give for it.")
    ] = None,
    credential: Credential = "",
    as_json: AsJson = False,
) -> None:
    """Register a base model, or a new revision of it with the same shapes; only headers are read."""
    profile = read_base_profile(name, _open(source, credential), also_known_as=tuple(also_known_as or ()))
    is_new = open_client().catalog.bases.add(profile)
    if as_json:
        print_json({"new": is_new, **_summary(profile)})
    else:
        done = "added" if is_new else "brought up to date"
        print_line(
            f"{done} {name}: {profile.architecture}, {profile.num_layers} layers, {len(profile.modules)} modules"
        )


def _open(source: str, credential: str) -> Path | BaseFiles:
    """The directory, if there is one; else the files at the URL."""
    if absolute_path(check_given(source)).is_dir() or scheme_of(source) == "file":
        return absolute_path(source.removeprefix("file://"))
    return SourceBaseFiles(open_sources(load_settings()), source, credential=credential)


@base_commands.command("list")
def list_bases(as_json: AsJson = False) -> None:
    """List the registered base models."""
    profiles = open_client().catalog.bases.all()
    if as_json:
        return print_json([_summary(profile) for profile in profiles])
    if not profiles:
        return print_line("no base model is registered; add one with `lora-registry base add`")
    rows = [
        (each.name, each.architecture, each.num_layers, each.revision[:12], " ".join(each.also_known_as))
        for each in profiles
    ]
    return print_table(("name", "architecture", "layers", "revision", "also known as"), rows)


@base_commands.command("show")
def show_base(name: Name, as_json: AsJson = False) -> None:
    """Show a base model's profile: every module's shape as [out, in]."""
    profile = open_client().catalog.bases.get(check_base_name(name))
    if as_json:
        return print_json(profile.model_dump(mode="json"))
    print_table(("field", "value"), [(field, as_text(value)) for field, value in _summary(profile).items()])
    rows = [
        (module, f"[{shape.out_features}, {shape.in_features}]", shape.kind.value)
        for module, shape in profile.modules.items()
    ]
    return print_table(("module", "[out, in]", "kind"), rows)


def _summary(profile: BaseProfile) -> dict[str, Any]:
    return profile.model_dump(mode="json", exclude={"modules", "parameters"})
