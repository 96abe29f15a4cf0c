"""What is written into a cache: everybody may read it, and what the disk says of it is a failure in words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lora_registry import node_codes as codes
from lora_workers.node.failures import NodeFailure

READ_ONLY_FILE: Final = 0o444
READ_ONLY_DIRECTORY: Final = 0o555
OPEN_DIRECTORY: Final = 0o755
"""Engines run as other users: everybody reads. Source: safetensors 0.8 writes mode 0600."""
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def make_directory(root: Path, part: str) -> Path:
    """A part of the cache at `root`, for the engine's user to enter whatever the umask is.

    Raises:
        OSError: it cannot be made.
    """
    made = root / part
    for directory in (root, made) if not made.is_dir() else ():
        if not directory.is_dir():
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(OPEN_DIRECTORY)
    return made


def write_file(path: Path, content: bytes) -> None:
    """Write a file that nobody changes any more.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), READ_ONLY_FILE)


@contextmanager
def disk_failures() -> Iterator[None]:
    """Map what the file system says to NodeFailure.

    Raises:
        NodeFailure: the cache cannot be used, or is full; both may pass.
    """
    try:
        yield
    except OSError as error:
        code = codes.NODE_CACHE_FULL if error.errno in _NO_ROOM else codes.NODE_CACHE_UNUSABLE
        raise NodeFailure(code, f"cache: {error.strerror or error}: {error.filename}", may_pass=True) from error
