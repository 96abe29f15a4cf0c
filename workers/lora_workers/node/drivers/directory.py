"""A directory that an engine watches, or was told of: a link called like the served name, to the adapter's files.

The link appears whole and never changes its target; what else has its name is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lora_registry import node_codes as codes
from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE
from lora_registry.errors import Configuration
from lora_workers.node.drivers import EngineDescription
from lora_workers.node.failures import NodeFailure


class DirectoryDriver:
    """Drives a directory.

    Args:
        directory: the directory; made if it is not there.
    """

    is_at_once = True

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()

    def describe(self) -> EngineDescription:
        """See `Driver`. A directory tells nothing of who reads it."""
        return EngineDescription("directory")

    def listed(self) -> dict[str, str | None]:
        """See `Driver`."""
        with _directory_errors():
            try:
                return self._links()
            except FileNotFoundError:  # it is made, or a link went meanwhile
                self._directory.mkdir(parents=True, exist_ok=True)
                return self._links()

    def _links(self) -> dict[str, str | None]:
        with os.scandir(self._directory) as entries:
            links = [entry for entry in entries if entry.is_symlink() and entry.name[0] != "."]
        return {link.name: os.readlink(link.path) for link in links}  # noqa: PTH115 - at every look, of each

    def busy(self) -> frozenset[str]:
        """See `Driver`: nobody knows."""
        return frozenset()

    def load(self, served_name: str, path: str) -> None:
        """See `Driver`."""
        link = self._directory / served_name
        with _directory_errors():
            self._directory.mkdir(parents=True, exist_ok=True)
            try:
                link.symlink_to(path)
            except FileExistsError:
                if not (link.is_symlink() and str(link.readlink()) == path):
                    raise

    def unload(self, served_name: str) -> None:
        """See `Driver`."""
        with _directory_errors(), suppress(FileNotFoundError):
            (self._directory / served_name).unlink()

    def probe(self, served_name: str) -> None:
        """See `Driver`: both files can be read through the link."""
        try:
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                os.close(os.open(self._directory / served_name / name, os.O_RDONLY))
        except OSError as error:
            raise NodeFailure(codes.NODE_PROBE_FAILED, f"{error.filename}: {error.strerror}", may_pass=True) from error

    def close(self) -> None:
        """See `Driver`."""


def open_driver(url: str, *, api_key: str = "") -> DirectoryDriver:  # noqa: ARG001 - as all drivers
    """A driver of the directory at `url`: a path, or a file:// URL.

    Raises:
        Configuration: that is no directory.
    """
    path = url.removeprefix("file://")
    if not path or "://" in path:
        raise Configuration(f"engine URL {url[:200]!r} is no directory; give its path")
    return DirectoryDriver(Path(path))


@contextmanager
def _directory_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NodeFailure(
            codes.NODE_ENGINE_UNREACHABLE, f"{error.filename}: {error.strerror or error}", may_pass=True
        ) from error
