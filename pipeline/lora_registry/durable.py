"""What must outlive a power failure is synced before anybody is told of it."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path, *, mode: int | None = None) -> None:
    """Wait until a file, or the names in a directory, are on the disk.

    Args:
        path: the file or directory.
        mode: permissions that it gets first; None: those that it has.

    Raises:
        OSError: the file system failed.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if mode is not None:
            os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
