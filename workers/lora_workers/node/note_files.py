"""Notes in a node's cache, for when Redis is away and for whoever starts anew beside an engine.

<cache>/served/<served name>.json   the version record of a served name whose files were here
<cache>/routes.json                 `namespace.name@alias` → served name: what each alias stood for on this node
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from lora_registry.catalog_records import VersionRecord
from lora_workers.node.disk import disk_failures, make_directory, write_file

_ROUTES = TypeAdapter(dict[str, str])


class NoteFiles:
    """The notes of one cache; an agent, the plug-in and the middleware of its engine share them.

    Args:
        root: the cache's directory.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    def remember(self, record: VersionRecord) -> None:
        """Note what a served name stands for.

        Raises:
            NodeFailure: the cache cannot be written.
        """
        self._write("served", f"{record.served_name}.json", record.model_dump_json())

    def recall(self, served_name: str) -> VersionRecord | None:
        """What a served name stands for, if that was noted."""
        with suppress(OSError, ValidationError):
            return VersionRecord.model_validate_json(self._note(served_name).read_bytes())
        return None

    def noted(self) -> set[str]:
        """Served names that were noted."""
        with suppress(OSError):
            return {path.stem for path in (self._root / "served").glob("[!.]*.json")}
        return set()

    def noted_s(self, served_name: str) -> float:
        """When that was noted, in seconds since 1970-01-01; infinity: it was not."""
        with suppress(OSError):
            return self._note(served_name).stat().st_mtime
        return math.inf

    def forget(self, served_name: str) -> None:
        """Remove the note of a served name."""
        with suppress(OSError):
            self._note(served_name).unlink(missing_ok=True)

    def remember_routes(self, routes: Mapping[str, str]) -> None:
        """Note which version each alias stands for here.

        Raises:
            NodeFailure: the cache cannot be written.
        """
        self._write(".", "routes.json", json.dumps(routes, sort_keys=True))

    def recall_routes(self) -> dict[str, str]:
        """Which version each alias stood for here; empty if that was not noted."""
        with suppress(OSError, ValidationError):
            return _ROUTES.validate_json((self._root / "routes.json").read_bytes())
        return {}

    def _write(self, part: str, name: str, text: str) -> None:
        """Write a note that is new or another one than before; it appears whole."""
        path, content = self._root / part / name, text.encode()
        with disk_failures():
            with suppress(FileNotFoundError):
                if path.read_bytes() == content:
                    return
            make_directory(self._root, part)
            aside = path.with_name(f".{name}-{secrets.token_hex(4)}")
            try:
                write_file(aside, content)
                aside.rename(path)
            except OSError:
                aside.unlink(missing_ok=True)
                raise

    def _note(self, served_name: str) -> Path:
        return self._root / "served" / f"{served_name}.json"
