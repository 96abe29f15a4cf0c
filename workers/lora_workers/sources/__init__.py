"""Where adapters come from: one file per scheme, and `SourceRouter`, which knows them all."""

from __future__ import annotations

from collections.abc import Mapping

from lora_registry import source_codes
from lora_registry.artifacts import FileDigest
from lora_registry.errors import Rejected
from lora_registry.settings import Settings
from lora_registry.sources import PinnedFile, PinnedSource, Source, Tap
from lora_workers.sources.local import LocalSource


class SourceRouter:
    """The source that hands each request to the one that owns the URL's scheme."""

    def __init__(self, schemes: Mapping[str, Source]) -> None:
        self._schemes = dict(schemes)

    def resolve(self, url: str, *, credential: str = "") -> PinnedSource:
        """See `Source.resolve`."""
        return self._owner(url).resolve(url, credential=credential)

    def read(self, file: PinnedFile, *, limit_bytes: int) -> bytes:
        """See `Source.read`."""
        return self._owner(file.location).read(file, limit_bytes=limit_bytes)

    def copy(self, file: PinnedFile, to: str, *, tap: Tap | None = None) -> FileDigest:
        """See `Source.copy`."""
        return self._owner(file.location).copy(file, to, tap=tap)

    def _owner(self, url: str) -> Source:
        scheme = url.partition("://")[0] if "://" in url else "file"
        owner = self._schemes.get(scheme)
        if owner is None:
            finding = source_codes.SOURCE_UNSUPPORTED.finding(scheme, expected=", ".join(sorted(self._schemes)))
            raise Rejected(finding.message, findings=(finding,))
        return owner


def open_sources(settings: Settings) -> SourceRouter:
    """All sources that the settings allow."""
    return SourceRouter({"file": LocalSource(settings.source_roots)})
