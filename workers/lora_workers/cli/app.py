"""All commands together. What they raise is turned into one line and an exit code here, and nowhere else."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Annotated, Any

import redis
import typer
from typer.core import TyperGroup

from lora_registry.errors import Configuration, RedisUnavailable, RegistryError, WrongUsage
from lora_workers.cli import (
    changing,
    checking,
    explaining,
    machine,
    node_process,
    published,
    registering,
    resyncing,
    running,
    storing,
    watching,
)
from lora_workers.cli.bases import base_commands
from lora_workers.cli.collecting import collection_commands
from lora_workers.cli.dead_letters import dead_letter_commands
from lora_workers.cli.fleet import node_commands, rollout
from lora_workers.cli.hooks import hook_commands
from lora_workers.cli.namespaces import namespace_commands
from lora_workers.cli.options import is_json_asked
from lora_workers.cli.output import (
    EXIT_CODES,
    INTERRUPTED,
    NOBODY_READS,
    described,
    exit_code_of_error,
    print_error,
    print_json,
)
from lora_workers.cli.tokens import token_commands

_UsageError: Any = typer.BadParameter.__base__  # what typer names it by depends on its version


class Commands(TyperGroup):
    """The root of the commands."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for; a failure that is no bug ends in one line and an exit code."""
        given = list(ctx.args)
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
            raise typer.Exit(NOBODY_READS) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except _UsageError as error:
            if "--json" in given:  # the options may not have been read yet
                print_json({"error": described(WrongUsage(error.format_message()))})
            raise
        except (RegistryError, redis.RedisError, OSError) as error:
            failure = _as_registry_error(error)
            print_error(failure, as_json=is_json_asked(ctx))
            raise typer.Exit(exit_code_of_error(failure)) from None
        return result


app = typer.Typer(
    cls=Commands,
    help="Register LoRA adapters: numbered, validated, immutable, announced.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(version("lora-registry"))
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Nothing is common to all commands; the version is printed by its option."""


app.command()(machine.up)
app.command()(machine.demo)
app.command()(machine.demo_files)
app.command()(checking.check)
app.command(cls=registering.WaitCommand)(registering.register)
app.command()(registering.status)
app.command("list")(published.list_versions)
app.command()(published.show)
app.add_typer(published.alias_commands, name="alias")
app.command()(changing.promote)
app.command()(changing.rollback)
app.command()(changing.retire)
app.command()(changing.label)
app.command("keep-last")(changing.keep_last)
app.add_typer(collection_commands, name="collection")
app.add_typer(node_commands, name="nodes")
app.command()(rollout)
app.add_typer(base_commands, name="base")
app.command()(watching.watch)
app.add_typer(dead_letter_commands, name="dead-letters")
app.add_typer(storing.store_commands, name="store")
app.add_typer(hook_commands, name="hooks")
app.add_typer(namespace_commands, name="namespace")
app.add_typer(token_commands, name="token")
app.command()(explaining.explain)
app.command()(running.worker)
app.command()(running.dispatcher)
app.command()(running.gateway)
app.command()(resyncing.resync)
app.command()(running.admit)
app.command()(node_process.node)


def _as_registry_error(error: Exception) -> RegistryError:
    if isinstance(error, RegistryError):
        return error
    if isinstance(error, redis.RedisError):
        return RedisUnavailable(f"Redis answered with an error: {error}")
    return Configuration(str(error))
