"""Local directories in which adapters are judged: one for each, gone at the end, swept when their worker was killed."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from lora_registry.errors import Transient

PREFIX: Final = "lora-staging-"


@contextmanager
def staging_directory(parent: Path) -> Iterator[Path]:
    """A directory of one's own below `parent`, removed when the context ends.

    Raises:
        Transient: the file system cannot take it now.
    """
    with file_system_errors():
        directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def remove_stale(parent: Path, *, older_than_s: float, pattern: str = f"{PREFIX}*") -> int:
    """Remove what killed workers left below `parent`.

    Args:
        parent: where staging directories are made.
        older_than_s: age from which on nobody works on one any more.
        pattern: which of them; others than ours may be in `parent`.

    Returns:
        Number of directories removed.

    Raises:
        Transient: the file system cannot do it now.
    """
    removed = 0
    with file_system_errors():
        for directory in list(parent.glob(pattern)):
            with suppress(FileNotFoundError, PermissionError):  # another worker was faster; another user's in /tmp
                if time.time() - directory.stat().st_mtime > older_than_s:
                    shutil.rmtree(directory, ignore_errors=True)
                    removed += 1
    return removed


@contextmanager
def file_system_errors() -> Iterator[None]:
    """Map the file system's errors to Transient.

    Raises:
        Transient: the file system cannot do it now.
    """
    try:
        yield
    except OSError as error:
        raise Transient(f"artifact store: {error.strerror or error}: {error.filename}") from error
