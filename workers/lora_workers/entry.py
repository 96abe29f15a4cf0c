"""The console script `lora-registry`; importing it needs the standard library only."""

from __future__ import annotations

import sys

_WRONG_CONFIGURATION = 2


def main() -> None:
    """Run the command line, or say which extra it takes."""
    from lora_workers.extras import MissingExtra, require

    try:
        require("cli")
    except MissingExtra as error:
        sys.exit(_complain(error.message))
    from lora_workers.cli.app import app

    app(prog_name="lora-registry")


def _complain(message: str) -> int:
    print(f"lora-registry: {message}", file=sys.stderr)
    return _WRONG_CONFIGURATION
