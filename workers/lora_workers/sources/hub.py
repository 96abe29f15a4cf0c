"""The Hugging Face Hub, or another server that speaks its protocol: `hf://org/repo@revision/folder`, or `org/repo`.

Whatever revision is asked for, it is resolved to a commit once, and everything is read at that commit. Two requests
find and pin an adapter, one of them for all names, sizes and digests. What is read is verified by the digest that the
commit has of it: SHA-256 of a large file (LFS), git's own of a small one.

Only named credentials are used, never the token that a machine happens to be logged in with.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote

import httpx2
from huggingface_hub import HfApi, constants, get_session
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status, parse_ratelimit_headers

from lora_registry import source_codes
from lora_registry.errors import RateLimited, RegistryError, Transient
from lora_registry.readiness import deferred
from lora_registry.sources import Listing, PinnedFile
from lora_workers.credentials import Credentials, HubCredential
from lora_workers.sources.remote import changed, check_path, printable, rejected

_URL = re.compile(
    r"(?:hf://)?(?P<repo>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:pr/\d+|convert/[^/]+)|[^/]+))?(?:/(?P<folder>.*))?"
)
"""A branch with "/" in its name is written with %2F, as huggingface_hub's own HfFileSystem has it."""
_REPO: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION: Final = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}")
_SHA: Final = re.compile(r"[0-9a-f]{40}")
_LOCATION = re.compile(r"hf://([^/]+/[^@]+)@([0-9a-f]{40})/(.+)")
_TIMEOUT = httpx2.Timeout(30.0, connect=10.0)
_CHUNK_BYTES = 1 << 20
_FRESH_COMMIT_S = 60.0
"""For so long a commit that was named by its id may be unknown. Source: huggingface_hub issue 1945."""


@dataclass(frozen=True)
class _Place:
    """A folder of a repository at a revision."""

    repo: str
    revision: str
    folder: str

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.revision}{'/' if self.folder else ''}{self.folder}"


class HubStore:
    """Model repositories.

    Args:
        credentials: where tokens are; `default-hub` is used where none is named.
        endpoint: the Hub, unless the credential names another.
        is_offline: refuse everything.
        deadline_s: longest that a commit may be on its way.
    """

    def __init__(
        self, credentials: Credentials, *, endpoint: str, is_offline: bool = False, deadline_s: float = _FRESH_COMMIT_S
    ) -> None:
        self._credentials = credentials
        self._endpoint = endpoint.rstrip("/")
        self._is_offline = is_offline
        self._fresh_commit_s = min(deadline_s, _FRESH_COMMIT_S)
        # It would log the addresses of files, which have signatures in them.
        logging.getLogger("httpx2").setLevel(logging.WARNING)

    def list(self, url: str, *, credential: str) -> Listing:
        """All files of the folder, at the commit that its revision means now: one request."""
        place = _parse_url(url)
        endpoint, token = self._access(credential)
        with self._mapped(place, token):
            info = HfApi(endpoint=endpoint, token=token or False).model_info(
                place.repo, revision=place.revision, files_metadata=True, timeout=_TIMEOUT.read
            )
        commit, prefix = str(info.sha), f"{place.folder}/" if place.folder else ""
        if not _SHA.fullmatch(commit):
            raise Transient(f"{place}: the Hub gives no commit")
        pinned = (
            _pin(sibling, f"hf://{place.repo}@{commit}", prefix, credential)
            for sibling in info.siblings or ()
            if sibling.rfilename.startswith(prefix)
        )
        at_commit = _Place(place.repo, commit, place.folder)
        return Listing(str(at_commit), {file.name: file for file in pinned}, is_final=place.revision == commit)

    def refs(self, repo: str, *, credential: str) -> dict[str, str]:
        """The commits of all branches and tags, by the full names of these: one request."""
        endpoint, token = self._access(credential)
        with self._mapped(_Place(repo, "main", ""), token):
            found = HfApi(endpoint=endpoint, token=token or False).list_repo_refs(repo)
        return {each.ref: str(each.target_commit) for each in (*found.branches, *found.tags)}

    def repos(self, owner: str, *, credential: str, limit: int) -> Sequence[str]:
        """Names (`owner/name`) of the model repositories that a user or organisation has, at most `limit`."""
        # The library's own listing would sleep, for minutes, where the Hub limits requests.
        endpoint, token = self._access(credential)
        url = f"{endpoint}/api/models?author={quote(owner, safe='')}&limit={limit}"
        names: tuple[str, ...] = ()
        with self._mapped(_Place(f"{owner}/*", "main", ""), token):
            while url.startswith(f"{endpoint}/") and len(names) < limit:
                response = get_session().get(url, headers=build_hf_headers(token=token or False), timeout=_TIMEOUT)
                hf_raise_for_status(response)
                names += tuple(str(each["id"]) for each in response.json())
                url = response.links.get("next", {}).get("url", "")
        return sorted(each for each in names[:limit] if each.startswith(f"{owner}/"))

    def pin(self, file: PinnedFile) -> PinnedFile:
        """It is pinned by its commit."""
        return file

    def read(self, file: PinnedFile, offset: int, length: int) -> bytes:
        """One range; the whole of a file is verified."""
        whole = length == file.size_bytes
        wanted = {} if whole else {"Range": f"bytes={offset}-{offset + length - 1}"}
        parts, left = [], length
        with self._opened(file, wanted) as response:
            if not whole:
                _check_range(response, file, offset, length)
            for chunk in response.iter_bytes(_CHUNK_BYTES):
                parts.append(chunk[:left])
                left -= len(parts[-1])
                if len(chunk) > len(parts[-1]):  # it sends more than was asked for
                    break
        content = b"".join(parts)
        if left:
            raise Transient(f"{file.name}: {len(content)} bytes came instead of {length}")
        if whole:
            verify = _Verified(file)
            verify.update(content)
            verify.check()
        return content

    def stream(self, file: PinnedFile) -> Iterator[bytes]:
        """All bytes, verified when the last has passed."""
        verify = _Verified(file)
        with self._opened(file, {}) as response:
            for chunk in response.iter_bytes(_CHUNK_BYTES):
                verify.update(chunk)
                yield chunk
        verify.check()

    def _access(self, credential: str) -> tuple[str, str]:
        """Endpoint and token ("" for none)."""
        if self._is_offline or constants.is_offline_mode():
            raise rejected(source_codes.HUB_OFFLINE, "hf")
        found = self._credentials.get(credential, HubCredential, default="default-hub")
        if found is None:
            return self._endpoint, ""
        return found.endpoint.rstrip("/") or self._endpoint, found.token.get_secret_value() if found.token else ""

    @contextmanager
    def _opened(self, file: PinnedFile, headers: dict[str, str]) -> Iterator[httpx2.Response]:
        found = _LOCATION.fullmatch(file.location)
        if found is None:
            raise rejected(source_codes.SOURCE_URL_INVALID, printable(file.location))
        repo, commit, path = found.groups()
        endpoint, token = self._access(file.credential)
        url = f"{endpoint}/{repo}/resolve/{commit}/{quote(path)}"
        asked = build_hf_headers(token=token or False, headers={"Accept-Encoding": "identity", **headers})
        with (
            self._mapped(_Place(repo, commit, path), token),
            get_session().stream("GET", url, headers=asked, timeout=_TIMEOUT) as response,
        ):
            hf_raise_for_status(response)
            yield response

    @contextmanager
    def _mapped(self, place: _Place, token: str) -> Iterator[None]:
        """Map the client's errors; their own texts, which have addresses with signatures in them, are left behind."""
        try:
            yield
        except RegistryError:
            raise
        except OfflineModeIsEnabled as error:
            raise rejected(source_codes.HUB_OFFLINE, str(place)) from error
        except HFValidationError as error:
            raise rejected(source_codes.SOURCE_URL_INVALID, str(place)) from error
        except HfHubHTTPError as error:
            raise self._of_answer(error, place, token) from error
        except (httpx2.HTTPError, httpx2.StreamError, OSError, ValueError) as error:
            raise Transient(f"{place}: the Hub is out of reach ({type(error).__name__})") from error

    def _of_answer(self, error: HfHubHTTPError, place: _Place, token: str) -> RegistryError:
        status, subject = error.response.status_code, str(place)
        if status == 429:
            return RateLimited(f"{place}: the Hub limits the rate of requests", retry_after_s=_retry_after_s(error))
        if isinstance(error, GatedRepoError):
            return rejected(source_codes.HUB_GATED, subject)
        if isinstance(error, DisabledRepoError):
            return rejected(source_codes.HUB_FORBIDDEN, subject)
        if isinstance(error, RevisionNotFoundError):
            missing = rejected(source_codes.HUB_REVISION_MISSING, subject, actual=place.revision)
            if _SHA.fullmatch(place.revision) and self._fresh_commit_s:
                return deferred(missing.message, missing.findings, deadline_s=self._fresh_commit_s)
            return missing
        if status == 401 and token and not isinstance(error, GatedRepoError):
            return rejected(source_codes.HUB_TOKEN_REFUSED, subject)
        if isinstance(error, RepositoryNotFoundError) or status == 401:
            code = source_codes.HUB_REPO_MISSING if token else source_codes.HUB_REPO_HIDDEN
            return rejected(code, subject)
        if status == 403:
            return rejected(source_codes.HUB_FORBIDDEN, subject)
        if status == 404:
            return rejected(source_codes.SOURCE_CHANGED, subject)
        return Transient(f"{place}: the Hub answers {status}")


def _parse_url(url: str) -> _Place:
    found = _URL.fullmatch(url)
    if found is None:
        raise rejected(source_codes.SOURCE_URL_INVALID, printable(url))
    repo, revision = found["repo"], unquote(found["revision"] or "main")
    if not _REPO.fullmatch(repo) or ".." in repo or not _REVISION.fullmatch(revision):
        raise rejected(source_codes.SOURCE_URL_INVALID, printable(url))
    return _Place(repo, revision, check_path(found["folder"] or "", url=url))


def _pin(sibling: Any, root: str, prefix: str, credential: str) -> PinnedFile:
    version = f"sha256:{sibling.lfs.sha256}" if sibling.lfs is not None else f"git:{sibling.blob_id}"
    name = sibling.rfilename
    return PinnedFile(
        f"{root}/{name}", version, int(sibling.size or 0), name.removeprefix(prefix), credential=credential
    )


def _check_range(response: httpx2.Response, file: PinnedFile, offset: int, length: int) -> None:
    """Whether the answer is the range, of a file of that size."""
    if response.status_code != 206:
        raise rejected(source_codes.RANGES_UNSUPPORTED, file.name, actual=f"status {response.status_code}")
    told = response.headers.get("Content-Range", "")
    if told != f"bytes {offset}-{offset + length - 1}/{file.size_bytes}":
        raise changed(file)


def _retry_after_s(error: HfHubHTTPError) -> float:
    told = error.response.headers.get("Retry-After", "")
    window = parse_ratelimit_headers(error.response.headers)
    asked_s = float(told) if told.isdigit() else 0.0
    return max(asked_s, float(window.reset_in_seconds) if window and not window.remaining else 0.0)


class _Verified:
    """The digest that a commit has of a file, taken of the bytes that come."""

    def __init__(self, file: PinnedFile) -> None:
        self._file = file
        kind, _, self._expected = file.version.partition(":")
        start = {"sha256": hashlib.sha256, "git": _git_blob_of(file.size_bytes)}
        self._digest = start[kind]()

    def update(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self._digest.update(chunk)

    def check(self) -> None:
        """Compare: what differs was damaged on its way, because a commit cannot change.

        Raises:
            Transient: it differs.
        """
        if self._digest.hexdigest() != self._expected:
            raise Transient(f"{self._file.name}: the bytes that came are not those of the commit")


def _git_blob_of(size_bytes: int) -> Callable[[], Any]:
    return lambda: hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
