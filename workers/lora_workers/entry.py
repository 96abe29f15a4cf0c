"""The console script `lora-registry`; importing it needs the standard library only."""

from __future__ import annotations

import sys

_WRONG_CONFIGURATION = 2
_INTERRUPTED = 130


def main() -> None:
    """Run the command line, or say which extra it takes."""
    try:
        _run()
    except KeyboardInterrupt:  # before a command runs: the commands see to it themselves
        sys.exit(_INTERRUPTED)


def _run() -> None:
    from lora_workers.extras import MissingExtra, require

    try:
        require("cli")
    except MissingExtra as error:
        print(f"lora-registry: {error.message}", file=sys.stderr)
        sys.exit(_WRONG_CONFIGURATION)
    from lora_workers.cli.app import app

    app(prog_name="lora-registry")
