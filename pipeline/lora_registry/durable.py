"""What must outlive a power failure is synced before anybody is told of it."""

from __future__ import annotations

import errno
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


def rename_into_place(directory: Path, target: Path) -> None:
    """Rename a directory that is whole to the name by which others look for it.

    Raises:
        FileExistsError: something is there already: another process was faster.
        OSError: the file system failed.
    """
    try:
        directory.rename(target)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:  # what Linux says of it
            raise FileExistsError(str(target)) from error
        raise
