"""What a path or a source that a person typed is on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from lora_registry.errors import Rejected


def absolute_path(path: str | Path) -> Path:
    """The path made whole; a `~` for a user that there is not stays, and is then no directory."""
    return Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 # pathlib raises where there is no such user


def local_path(source: str | Path) -> str | None:
    """The absolute path that a source means; None: it is a URL, or `org/repo` that is not here, hence on the Hub.

    Raises:
        Rejected: the source is empty.
    """
    text = check_given(str(source))
    if "://" in text:
        return None
    is_plain = text.startswith((".", "~", "/")) or text.count("/") != 1
    is_path = is_plain or isinstance(source, Path) or Path(text).exists()
    return str(absolute_path(text)) if is_path else None


def check_given(source: str) -> str:
    """Return the source, if there is any: an empty one is a slip, and not the working directory.

    Raises:
        Rejected: it is empty.
    """
    if not source:
        raise Rejected("no source is given", remedy="Give the directory where the files are, or its URL.")
    return source
