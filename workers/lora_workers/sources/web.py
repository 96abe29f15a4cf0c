"""A folder on a web server: `https://host/folder`. Files are asked for by name, since there is nothing to list."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse

from lora_registry import source_codes
from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE
from lora_registry.errors import RateLimited, Transient
from lora_registry.ready_marker import MARKER_FILE
from lora_registry.sources import Listing, PinnedFile
from lora_workers.sources.guarded_http import GuardedHttp
from lora_workers.sources.remote import changed, check_path, printable, rejected

_ASKED_FOR = (CONFIG_FILE, WEIGHTS_FILE, MARKER_FILE)
_CHUNK_BYTES = 1 << 20


class WebStore:
    """Files below a URL, pinned by ETag or, without one, by time and size.

    Args:
        http: makes the requests, and looks at where they go.
    """

    def __init__(self, http: GuardedHttp) -> None:
        self._http = http

    def list(self, url: str, *, credential: str) -> Listing:
        """Those of an adapter's files that are there: one request for each."""
        if credential:
            raise rejected(source_codes.CREDENTIAL_UNKNOWN, credential, expected="none: access is anonymous")
        scheme, _, rest = url.partition("://")
        host, _, path = rest.partition("/")
        if "?" in url or "#" in url:
            raise rejected(source_codes.SOURCE_URL_INVALID, printable(url))
        folder = "/".join(part for part in (f"{scheme}://{host}", check_path(path, url=url)) if part)
        found = (self._find(f"{folder}/{name}", name) for name in _ASKED_FOR)
        return Listing(folder, {file.name: file for file in found if file is not None})

    def pin(self, file: PinnedFile) -> PinnedFile:
        """It is pinned as well as can be."""
        return file

    def read(self, file: PinnedFile, offset: int, length: int) -> bytes:
        """One range."""
        with self._opened(file, {"Range": f"bytes={offset}-{offset + length - 1}"}) as response:
            told = response.headers.get("Content-Range", "")
            if response.status == 206 and told != f"bytes {offset}-{offset + length - 1}/{file.size_bytes}":
                raise changed(file)
            if response.status != 206 and length != file.size_bytes:
                raise rejected(source_codes.RANGES_UNSUPPORTED, file.name, actual=f"status {response.status}")
            content = response.read(length)
        if len(content) != length:
            raise Transient(f"{file.name}: {len(content)} bytes came instead of {length}")
        return content

    def stream(self, file: PinnedFile) -> Iterator[bytes]:
        """All bytes of the pinned file."""
        left = file.size_bytes
        with self._opened(file, {}) as response:
            while left > 0 and (chunk := response.read(min(left, _CHUNK_BYTES))):
                left -= len(chunk)
                yield chunk
        if left == 0 and self._find(file.location, file.name) != file:
            raise changed(file)

    def _find(self, url: str, name: str) -> PinnedFile | None:
        with self._http.request(url, method="HEAD", headers={}) as response:
            if response.status in (404, 410):
                return None
            _check_status(response, name)
            size = response.headers.get("Content-Length", "")
            if not size.isdigit():
                raise rejected(source_codes.RANGES_UNSUPPORTED, name)
            return PinnedFile(url, _version(response, int(size)), int(size), name)

    @contextmanager
    def _opened(self, file: PinnedFile, headers: dict[str, str]) -> Iterator[HTTPResponse]:
        with self._http.request(file.location, headers=headers) as response:
            if response.status in (404, 410, 412, 416):
                raise changed(file)
            _check_status(response, file.name)
            if _version(response, file.size_bytes) != file.version:
                raise changed(file)
            yield response


def _version(response: HTTPResponse, size_bytes: int) -> str:
    etag = response.headers.get("ETag", "")
    return f"etag:{etag}" if etag else f"time:{response.headers.get('Last-Modified', '')}:{size_bytes}"


def _check_status(response: HTTPResponse, name: str) -> None:
    status = response.status
    if status in (200, 206):
        return
    if status in (401, 403):
        raise rejected(source_codes.STORE_ACCESS_DENIED, name, actual=f"status {status}")
    if status == 429:
        told = response.headers.get("Retry-After", "")
        raise RateLimited(f"{name}: the server limits the rate", retry_after_s=float(told) if told.isdigit() else 0.0)
    if status < 500:
        raise rejected(source_codes.SOURCE_NOT_FOUND, name, actual=f"status {status}")
    raise Transient(f"{name}: the server answers {status}")
