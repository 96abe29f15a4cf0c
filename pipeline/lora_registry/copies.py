"""Stable copies of adapters, which a training job makes for the workers to read: its own files may be gone by then.

    <inbox>/<namespace>/<name>/<32 hex digits>/adapter_config.json  adapter_model.safetensors  …  _ADAPTER_READY.json

So a policy can let a namespace register from its own copies: `--source <inbox>/<namespace>`.

The name of a copy comes from its bytes and from what is asked for, so the same request twice is one copy. It is written
under a temporary name with its marker, synced and renamed; on an object store the marker is what is written last.
Any number of processes may place and remove the same copy at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lora_registry import source_codes
from lora_registry.adapter_files import check_files
from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE, FileDigest
from lora_registry.code import Code
from lora_registry.durable import rename_into_place, sync
from lora_registry.errors import Rejected, Transient
from lora_registry.findings import has_error
from lora_registry.ready_marker import MARKER_FILE, marker_text
from lora_registry.tokenizer_maps import TOKENIZER_FILES

TEMPORARY: Final = ".staging-"
_TRIES: Final = 10
_CHUNK_BYTES = 1 << 20
_READABLE_FILE = 0o644
_READABLE_DIRECTORY = 0o755
"""Workers are other users. Source: safetensors 0.8 writes mode 0600, tempfile 0700."""


@dataclass(frozen=True)
class AdapterCopy:
    """An adapter that was copied to a directory of one's own, and what was copied.

    Attributes:
        directory: where it is.
        files: name → digest and size of the two files, and of a tokenizer's beside them.
    """

    directory: Path
    files: Mapping[str, FileDigest]

    def marker(self) -> bytes:
        """The bytes of its marker file."""
        return marker_text({name: self.files[name] for name in (CONFIG_FILE, WEIGHTS_FILE)})

    def key(self, request: Mapping[str, Any]) -> str:
        """32 hex digits for these bytes and this request (plain JSON types)."""
        content = {name: each.sha256 for name, each in self.files.items()}
        described = json.dumps([request, content], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:32]


@contextmanager
def copied(source: Path, *, below: Path | None = None) -> Iterator[AdapterCopy]:
    """Copy the files of an adapter that are registered to a temporary directory, hashing and syncing them.

    Args:
        source: directory that save_pretrained wrote.
        below: directory to make the temporary one in; None: the system's.

    Raises:
        Rejected: there is no adapter in `source`.
        Transient: a file system failed.
    """
    with _file_errors(source):
        names = sorted(entry.name for entry in source.iterdir())
    if has_error(findings := check_files(names)):
        raise Rejected(f"{source} holds no adapter: {findings[0].message}", findings=tuple(findings))
    with _inbox_errors():
        if below is not None:
            below.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=below))
    try:
        with _file_errors(source):
            wanted = [name for name in (CONFIG_FILE, WEIGHTS_FILE, *TOKENIZER_FILES) if name in names]
            files = {name: _copy(source / name, directory / name) for name in wanted}
            directory.chmod(_READABLE_DIRECTORY)
            sync(directory)
        yield AdapterCopy(directory, files)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def place_copy(copy: AdapterCopy, target: Path) -> None:
    """Rename a copy, with its marker, to `target` in the same file system; one that is there already is kept.

    Raises:
        Transient: the file system failed.
    """
    with _inbox_errors():
        _make(target.parent)
        _write_marker(copy, copy.directory)
        for _ in range(_TRIES):
            if _keep_placed(copy, target):
                return
            with suppress(FileExistsError):  # another process was faster with the same bytes
                rename_into_place(copy.directory, target)
                sync(target.parent)
                return
    raise Transient(f"{target} is placed and removed by other processes over and over")


def _keep_placed(copy: AdapterCopy, target: Path) -> bool:
    """Mark the copy that is there as wanted anew; one that somebody damaged is removed. Returns whether it is there."""
    if not target.exists():  # a moment later another process's may be there, which is whole: it must stay
        return False
    try:
        if not _is_whole(copy, target):
            remove_copy(target)
            return False
        _write_marker(copy, target)  # anew each time: its age tells when the copy was last wanted
    except FileNotFoundError:  # it is being removed
        return False
    return True


def _write_marker(copy: AdapterCopy, directory: Path) -> None:
    temporary = directory / f"{TEMPORARY}{secrets.token_hex(8)}"
    temporary.write_bytes(copy.marker())
    sync(temporary, mode=_READABLE_FILE)
    temporary.replace(directory / MARKER_FILE)
    sync(directory)


def remove_copy(directory: Path) -> None:
    """Remove a copy, at once whole; one that is not there is fine."""
    doomed = directory.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    with suppress(FileNotFoundError):
        directory.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def remove_old_copies(inbox: Path, *, older_than_s: float) -> int:
    """Remove copies, and what killed jobs left of some, that nobody wanted for so long.

    Returns:
        Number of directories removed.

    Raises:
        Transient: the file system failed.
    """
    removed, before = 0, time.time() - older_than_s
    with _inbox_errors():
        for directory in [*inbox.glob(f"{TEMPORARY}*"), *inbox.glob("[!.]*/*/*")]:
            with suppress(FileNotFoundError):
                marker = directory / MARKER_FILE
                if (marker if marker.exists() else directory).stat().st_mtime < before:
                    remove_copy(directory)
                    removed += 1
    return removed


def _make(directory: Path) -> None:
    """Make a directory as open as the one that it is in: other users' jobs put copies of the same namespace there."""
    if directory.is_dir():
        return
    _make(directory.parent)
    with suppress(FileExistsError):
        directory.mkdir()
        directory.chmod(stat.S_IMODE(directory.parent.stat().st_mode))


def _is_whole(copy: AdapterCopy, target: Path) -> bool:
    sizes = {name: (target / name).stat().st_size for name in copy.files if (target / name).is_file()}
    return sizes == {name: each.size_bytes for name, each in copy.files.items()}


def _copy(source: Path, target: Path) -> FileDigest:
    sha256, size = hashlib.sha256(), 0
    with source.open("rb") as read, target.open("wb") as written:
        while chunk := read.read(_CHUNK_BYTES):
            sha256.update(chunk)
            size += len(chunk)
            written.write(chunk)
        written.flush()
        os.fchmod(written.fileno(), _READABLE_FILE)
        os.fsync(written.fileno())
    return FileDigest(sha256.hexdigest(), size)


@contextmanager
def _file_errors(subject: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _rejected(source_codes.SOURCE_NOT_FOUND, subject) from error
    except PermissionError as error:
        raise _rejected(source_codes.SOURCE_PERMISSION, subject) from error
    except OSError as error:
        raise Transient(f"{error.filename or subject}: {error.strerror or error}") from error


@contextmanager
def _inbox_errors() -> Iterator[None]:
    """Whatever is wrong with the inbox is wrong with the world, and not with the adapter."""
    try:
        yield
    except OSError as error:
        raise Transient(f"inbox: {error.filename}: {error.strerror or error}") from error


def _rejected(code: Code, subject: Path) -> Rejected:
    finding = code.finding(str(subject))
    return Rejected(f"{subject}: {finding.message}", findings=(finding,))
