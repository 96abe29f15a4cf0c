"""Every other scheme of fsspec (`gs://`, `az://`, …), where the operator allows it and its library is installed.

fsspec opens far more than stores: other local file systems, archives, other programs. So nothing is opened whose scheme
is not allowed by name, and never a chain of them (`::`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import fsspec

from lora_registry import source_codes
from lora_registry.errors import Configuration, RegistryError, Transient
from lora_registry.sources import Listing, PinnedFile
from lora_workers.credentials import Credentials, FsspecCredential
from lora_workers.sources.remote import changed, check_path, printable, rejected

_CHUNK_BYTES = 1 << 22
_REFUSED = (401, 403)
_VERSIONS = ("etag", "ETag", "generation", "md5Hash", "content_md5", "mtime", "modified", "last_modified", "created")
"""What file systems call that which changes with a file. Source: gcsfs, adlfs, ossfs and fsspec's own."""


class FsspecStore:
    """Files of one scheme.

    Args:
        scheme: one that the operator allows.
        credentials: where options are; `default-SCHEME` is used where none is named.

    Raises:
        Configuration: fsspec does not know the scheme, or its library is not installed.
    """

    def __init__(self, scheme: str, credentials: Credentials) -> None:
        self._scheme = scheme
        self._credentials = credentials
        try:
            fsspec.get_filesystem_class(scheme)
        except (ValueError, ImportError) as error:
            raise Configuration(f"LORA_REGISTRY_ALLOWED_SCHEMES: {scheme}: {error}") from error

    def list(self, url: str, *, credential: str) -> Listing:
        """The files right below the URL."""
        folder = f"{self._scheme}://{check_path(url.partition('://')[2], url=url)}"
        with _mapped(folder):
            try:
                listed = self._open(credential).ls(folder, detail=True, refresh=True)
            except FileNotFoundError:
                listed = []
            except TypeError:  # a file system that caches nothing and does not know `refresh`
                listed = self._open(credential).ls(folder, detail=True)
        pinned = (_pin(info, folder, credential) for info in listed if info.get("type") == "file")
        return Listing(folder, {file.name: file for file in pinned})

    def pin(self, file: PinnedFile) -> PinnedFile:
        """By what is said of this one file; listings say it otherwise."""
        return replace(file, version=_version(self._info(file)))

    def read(self, file: PinnedFile, offset: int, length: int) -> bytes:
        """One range; the file is looked at before."""
        files = self._checked(file)
        with _mapped(file.name):
            content = bytes(files.cat_file(file.location, start=offset, end=offset + length))
        if len(content) != length:
            raise Transient(f"{file.name}: {len(content)} bytes came instead of {length}")
        return content

    def stream(self, file: PinnedFile) -> Iterator[bytes]:
        """All bytes; the file is looked at before and after."""
        files = self._checked(file)
        with _mapped(file.name):
            opened = files.open(file.location, "rb", block_size=_CHUNK_BYTES, cache_type="none")
        with opened:
            read = partial(opened.read, _CHUNK_BYTES)
            while chunk := self._read(read, file):
                yield chunk
        self._checked(file)

    def _read(self, read: partial[bytes], file: PinnedFile) -> bytes:
        with _mapped(file.name):
            return read()

    def _checked(self, file: PinnedFile) -> Any:
        now = self._info(file)
        if now["size"] != file.size_bytes or file.version not in ("", _version(now)):
            raise changed(file)
        return self._open(file.credential)

    def _info(self, file: PinnedFile) -> dict[str, Any]:
        files = self._open(file.credential)
        with _mapped(file.name):
            files.invalidate_cache()
            try:
                return dict(files.info(file.location))
            except FileNotFoundError as error:
                raise changed(file) from error

    def _open(self, credential: str) -> Any:
        found = self._credentials.get(credential, FsspecCredential, default=f"default-{self._scheme}")
        options = {name: value.get_secret_value() for name, value in found.options.items()} if found else {}
        return fsspec.filesystem(self._scheme, skip_instance_cache=True, **options)


def _pin(info: dict[str, Any], folder: str, credential: str) -> PinnedFile:
    name = PurePosixPath(str(info["name"])).name
    return PinnedFile(f"{folder}/{name}", "", int(info["size"] or 0), name, credential=credential)


def _version(info: dict[str, Any]) -> str:
    return ";".join(f"{name}={info[name]}" for name in ("size", *_VERSIONS) if info.get(name) is not None)


@contextmanager
def _mapped(subject: str) -> Iterator[None]:
    """Map the errors of file systems, whose texts may say anything and are left behind."""
    try:
        yield
    except (RegistryError, FileNotFoundError, TypeError):
        raise
    except PermissionError as error:
        raise rejected(source_codes.STORE_ACCESS_DENIED, printable(subject)) from error
    except Exception as error:
        # Source: azure-core's HttpResponseError, which adlfs lets through, has `status_code`.
        if getattr(error, "status_code", None) in _REFUSED:
            raise rejected(source_codes.STORE_ACCESS_DENIED, printable(subject)) from error
        raise Transient(f"{printable(subject)}: out of reach ({type(error).__name__})") from error
