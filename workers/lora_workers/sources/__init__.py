"""Where adapters come from: one file per scheme, and `SourceRouter`, which knows them all."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from lora_registry import source_codes
from lora_registry.artifacts import FileDigest
from lora_registry.errors import Rejected
from lora_registry.readiness import Readiness
from lora_registry.settings import Settings
from lora_registry.sources import Listing, PinnedFile, PinnedSource, ReadRange, Source, Tap
from lora_workers.credentials import Credentials
from lora_workers.sources.local import LocalSource
from lora_workers.sources.remote import RemoteSource, Store

_REPOSITORY = re.compile(r"[A-Za-z0-9][^/:]*/[^/:]+(/.*)?")
"""A bare `org/repo…`: it begins with no slash or dot and has no scheme, so no local path that is accepted looks so."""


class SourceRouter:
    """The source that hands each request to the one that owns the URL's scheme, which it opens on first use."""

    def __init__(self, openers: Mapping[str, Callable[[], Source]]) -> None:
        self._openers = dict(openers)
        self._opened: dict[str, Source] = {}

    def resolve(self, url: str, *, credential: str = "") -> PinnedSource:
        """See `Source.resolve`."""
        return self._owner(url).resolve(url, credential=credential)

    def list(self, url: str, *, credential: str = "") -> Listing:
        """See `Source.list`."""
        return self._owner(url).list(url, credential=credential)

    def read(self, file: PinnedFile, *, limit_bytes: int) -> bytes:
        """See `Source.read`."""
        return self._owner(file.location).read(file, limit_bytes=limit_bytes)

    def ranged(self, file: PinnedFile) -> AbstractContextManager[ReadRange]:
        """See `Source.ranged`."""
        return self._owner(file.location).ranged(file)

    def copy(self, file: PinnedFile, to: str, *, tap: Tap | None = None) -> FileDigest:
        """See `Source.copy`."""
        return self._owner(file.location).copy(file, to, tap=tap)

    def _owner(self, url: str) -> Source:
        scheme = scheme_of(url)
        if scheme not in self._openers:
            finding = source_codes.SOURCE_UNSUPPORTED.finding(scheme[:100], expected=", ".join(sorted(self._openers)))
            raise Rejected(finding.message, findings=(finding,))
        if scheme not in self._opened:
            self._opened[scheme] = self._openers[scheme]()
        return self._opened[scheme]


def scheme_of(url: str) -> str:
    """The scheme of a source: what stands before `://`; `hf` for a bare `org/repo`, else `file`."""
    scheme, separator, _ = url.partition("://")
    if separator:
        return scheme
    return "hf" if _REPOSITORY.fullmatch(url) else "file"


def open_sources(settings: Settings) -> SourceRouter:
    """All sources that the settings allow.

    Raises:
        Configuration: the credentials file is not legal, or an allowed scheme has no library here.
    """
    credentials = Credentials(settings.credentials_file)
    return SourceRouter({scheme: _opener(scheme, settings, credentials) for scheme in settings.allowed_schemes})


def _opener(scheme: str, settings: Settings, credentials: Credentials) -> Callable[[], Source]:
    """What opens a scheme's source; its library is heavy, and loaded only then."""
    readiness = Readiness(settings.incomplete_deadline_s(scheme), needs_marker=scheme in settings.marker_required)
    if scheme == "file":
        return lambda: LocalSource(settings.source_roots, readiness=readiness)
    if scheme in _STORES:
        return lambda: RemoteSource(scheme, _STORES[scheme](settings, credentials), readiness)
    from lora_workers.sources.other import FsspecStore

    store = FsspecStore(scheme, credentials)  # a scheme that there is no library for is said at the start
    return lambda: RemoteSource(scheme, store, readiness)


def _open_hub(settings: Settings, credentials: Credentials) -> Store:
    from lora_workers.sources.hub import HubStore

    return HubStore(
        credentials,
        endpoint=settings.hub_endpoint,
        is_offline=settings.hub_offline,
        deadline_s=settings.incomplete_deadline_s("hf"),
    )


def _open_s3(_: Settings, credentials: Credentials) -> Store:
    from lora_workers.sources.s3 import S3Store

    return S3Store(credentials)


def _open_web(settings: Settings, _: Credentials) -> Store:
    from lora_workers.sources.guarded_http import GuardedHttp
    from lora_workers.sources.web import WebStore

    schemes = [scheme for scheme in settings.allowed_schemes if scheme in ("http", "https")]
    return WebStore(GuardedHttp(schemes, allowed=settings.allowed_networks))


_STORES = {"hf": _open_hub, "s3": _open_s3, "http": _open_web, "https": _open_web}
