"""What a source that a person typed is on this machine: a directory, or nothing of it."""

from __future__ import annotations

import os
from pathlib import Path

from lora_registry.errors import Rejected


def local_path(source: str | Path) -> str | None:
    """The absolute path that a source means; None: it is a URL, or `org/repo` that is nothing here and so on the Hub.

    Raises:
        Rejected: the source is empty.
    """
    text = str(source)
    if not text:
        raise Rejected("no source is given", remedy="Give the directory that save_pretrained wrote, or its URL.")
    if "://" in text:
        return None
    is_path = (
        isinstance(source, Path) or text.startswith((".", "~", "/")) or text.count("/") != 1 or Path(text).exists()
    )
    expanded = os.path.expanduser(text)  # noqa: PTH111 # as it is where there is no such user; pathlib raises
    return str(Path(expanded).absolute()) if is_path else None
