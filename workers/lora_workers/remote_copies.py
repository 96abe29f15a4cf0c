"""Copies of adapters in an inbox that fsspec opens; see `lora_registry.copies` for one in a directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import fsspec

from lora_registry.copies import AdapterCopy
from lora_registry.errors import Configuration, RegistryError, Transient
from lora_registry.ready_marker import MARKER_FILE
from lora_registry.settings import Settings
from lora_workers.credentials import ADAPTER_INBOX
from lora_workers.store_options import options_for

ANSWER_S = 60.0
"""An object store has so long to answer, and so much longer as the bytes take at _SLOW; then training goes on."""
_SLOW_BYTES_PER_S = 1_000_000


def send_copy(copy: AdapterCopy, url: str, *, settings: Settings) -> None:
    """Send a copy to the prefix `url`, its marker last; what is there already is the same.

    Raises:
        Configuration: no library for the scheme is installed.
        Transient: the store cannot take it now.
    """
    files, place = _open(url, settings)

    def send() -> None:
        for name in copy.files:
            files.put_file(str(copy.directory / name), f"{place}/{name}")
        files.pipe_file(f"{place}/{MARKER_FILE}", copy.marker())

    size_bytes = sum(each.size_bytes for each in copy.files.values())
    _within(ANSWER_S + size_bytes / _SLOW_BYTES_PER_S, send)


def remove_remote_copy(url: str, *, settings: Settings) -> None:
    """Remove a copy, marker first.

    Raises:
        Configuration: no library for the scheme is installed.
        Transient: the store is out of reach.
    """
    files, place = _open(url, settings)
    _within(ANSWER_S, lambda: _remove(files, place))


def remove_old_remote_copies(url: str, *, older_than_s: float, settings: Settings) -> int:
    """Remove copies below the inbox `url` that nobody wanted for so long, half sent ones included.

    Returns:
        Number of copies removed.

    Raises:
        Configuration: no library for the scheme is installed.
        Transient: the store is out of reach.
    """
    files, inbox = _open(url, settings)
    before, newest = datetime.now(UTC) - timedelta(seconds=older_than_s), dict[str, datetime]()
    with _store_errors():
        for path in files.find(inbox):
            place = path.rpartition("/")[0]
            # Only what lies as deep as copies do: an inbox that is shared with something else by mistake survives, and
            # what a store lists in place of an emptied folder is no file (s3fs: IsADirectoryError).
            if place.removeprefix(inbox).count("/") == 3:
                changed = files.modified(path)
                aware = changed if changed.tzinfo else changed.replace(tzinfo=UTC)
                newest[place] = max(newest.get(place, aware), aware)
        old = [place for place, at in newest.items() if at < before]
        for place in old:
            _remove(files, place)
    return len(old)


def _remove(files: Any, place: str) -> None:
    for path in sorted(files.find(place), key=lambda path: not path.endswith(f"/{MARKER_FILE}")):
        files.rm_file(path)


def _open(url: str, settings: Settings) -> tuple[Any, str]:
    options = options_for(url, settings, name=ADAPTER_INBOX)
    try:
        files, place = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:
        raise Configuration(f"inbox: {error}") from error
    return files, place.rstrip("/")


def _within(timeout_s: float, work: Callable[[], None]) -> None:
    """Do it in a thread that is left alone when it takes too long: not every library below fsspec gives up by itself.

    (s3fs 2026.9 waits for ever for a server that accepts an upload and does not answer.)

    Raises:
        Transient: the store cannot do it, or not in time.
    """
    ended: SimpleQueue[Exception | None] = SimpleQueue()

    def run() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised again by the thread that waits
            ended.put(error)
        else:
            ended.put(None)

    Thread(target=run, name="inbox", daemon=True).start()
    try:
        error = ended.get(timeout=timeout_s)
    except Empty:
        raise Transient(f"inbox: no answer within {timeout_s:g} s") from None
    if error is not None:
        with _store_errors():
            raise error


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:  # each of fsspec's back-ends raises what its own library does
        raise Transient(f"inbox: {type(error).__name__}: {error}") from error
