"""S3 and what speaks like it: `s3://bucket/prefix`.

An object is pinned by its version where the bucket is versioned, else by its ETag: every read asks for just that (and
looks at what it gets), and after a copy the ETag is looked at once more. Three requests find and pin an adapter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import s3fs
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from fsspec.asyn import sync

from lora_registry import source_codes
from lora_registry.errors import RateLimited, RegistryError, Transient
from lora_registry.sources import Listing, PinnedFile
from lora_workers.credentials import Credentials, S3Credential
from lora_workers.sources.remote import changed, check_path, printable, rejected

_BUCKET: Final = re.compile(r"(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_CHUNK_BYTES = 1 << 22
_MOST_PAGES = 10
_CREDENTIALS = {
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired",
    "AuthorizationHeaderMalformed", "InvalidSecurity",
}  # fmt: skip
_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden"}
_GONE = {
    "NoSuchKey",
    "NoSuchVersion",
    "404",
    "NotFound",
    "PreconditionFailed",
    "412",
    "MethodNotAllowed",
    "InvalidRange",
}
_SLOW = {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"}
_SETTINGS = {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 1}}
"""Few retries of its own: the registration is tried again, and does not hold up others meanwhile."""


class S3Store:
    """Objects below a prefix of a bucket.

    Args:
        credentials: where keys and endpoints are; `default-s3` is used where none is named.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._clients: dict[S3Credential | None, s3fs.S3FileSystem] = {}

    def list(self, url: str, *, credential: str) -> Listing:
        """The objects right below the prefix: one request for every thousand."""
        bucket, prefix = _parse_url(url)
        below = f"{prefix}/" if prefix else ""
        found: dict[str, PinnedFile] = {}
        folders = self._add_pages(found, bucket, below, credential, Delimiter="/")
        if folders and not found:  # to say in which of them an adapter is
            self._add_pages(found, bucket, below, credential)
        return Listing(f"s3://{bucket}/{prefix}", found)

    def pin(self, file: PinnedFile) -> PinnedFile:
        """By its version, if it has one: one request."""
        head = self._call("head_object", file, **_condition(file))
        if head["ContentLength"] != file.size_bytes:
            raise changed(file)
        version = str(head.get("VersionId") or "null")
        return file if version == "null" else replace(file, version=f"version:{version}")

    def read(self, file: PinnedFile, offset: int, length: int) -> bytes:
        """One range: one request."""
        wanted = {} if length == file.size_bytes else {"Range": f"bytes={offset}-{offset + length - 1}"}
        with self._opened(file, **wanted) as chunks:
            content = b"".join(chunks)
        if len(content) != length:
            raise Transient(f"{file.name}: {len(content)} bytes came instead of {length}")
        return content

    def stream(self, file: PinnedFile) -> Iterator[bytes]:
        """All bytes of the pinned object."""
        with self._opened(file) as chunks:
            yield from chunks
        if not file.version.startswith("version:"):
            self._call("head_object", file, **_condition(file))

    def _add_pages(
        self, found: dict[str, PinnedFile], bucket: str, below: str, credential: str, **options: str
    ) -> bool:
        """Add what is listed; returns whether there are folders, too."""
        place, folders = PinnedFile(f"s3://{bucket}/{below}", "", 0, f"s3://{bucket}/{below}", "", credential), False
        for _ in range(_MOST_PAGES):
            page = self._call("list_objects_v2", place, Prefix=below, **options)
            folders = folders or bool(page.get("CommonPrefixes"))
            for each in page.get("Contents", ()):
                name = each["Key"].removeprefix(below)
                if name and not name.endswith("/"):
                    location, version = f"s3://{bucket}/{each['Key']}", f"etag:{each['ETag']}"
                    found[name] = PinnedFile(location, version, int(each["Size"]), name, credential=credential)
            if not page.get("IsTruncated"):
                break
            options["ContinuationToken"] = page["NextContinuationToken"]
        return folders

    @contextmanager
    def _opened(self, file: PinnedFile, **options: str) -> Iterator[Iterator[bytes]]:
        answer = self._call("get_object", file, **options, **_condition(file))
        body, loop = answer["Body"], self._client(file.credential).loop
        try:
            _check_answer(answer, file, options.get("Range", ""))
            with _mapped(file.location):
                yield _chunks(body, loop)
        finally:
            body.close()

    def _call(self, method: str, file: PinnedFile, **options: str) -> Any:
        bucket, _, key = file.location.removeprefix("s3://").partition("/")
        named = {} if method.startswith("list_") else {"Key": key}
        with _mapped(file.location if named else file.name):
            return self._client(file.credential).call_s3(method, Bucket=bucket, **named, **options)

    def _client(self, credential: str) -> s3fs.S3FileSystem:
        found = self._credentials.get(credential, S3Credential, default="default-s3")
        if found not in self._clients:
            self._clients[found] = _connect(found)
        return self._clients[found]


def _connect(credential: S3Credential | None) -> s3fs.S3FileSystem:
    given = credential or S3Credential(anonymous=True)
    secrets = {
        "key": given.access_key_id,
        "secret": given.secret_access_key,
        "token": given.session_token,
    }
    client = s3fs.S3FileSystem(
        anon=given.anonymous,
        **{name: secret.get_secret_value() for name, secret in secrets.items() if secret is not None},
        endpoint_url=given.endpoint_url or None,
        client_kwargs={"region_name": given.region} if given.region else {},
        config_kwargs=_SETTINGS,
        skip_instance_cache=True,  # that cache would keep the secrets for ever, and share what is listed
        use_listings_cache=False,
    )
    client.retries = 1
    return client


def _condition(file: PinnedFile) -> dict[str, str]:
    """What makes a request fail unless it is for the pinned object."""
    kind, _, value = file.version.partition(":")
    return {"VersionId": value} if kind == "version" else {"IfMatch": value}


def _check_answer(answer: Any, file: PinnedFile, wanted: str) -> None:
    """A store that does not know a condition ignores it, so what it says of the object is looked at, too."""
    kind, _, value = file.version.partition(":")
    told = answer.get("VersionId") if kind == "version" else answer.get("ETag")
    if told != value:
        raise changed(file)
    if not wanted:
        if answer["ContentLength"] != file.size_bytes:
            raise changed(file)
        return
    if answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
        raise rejected(source_codes.RANGES_UNSUPPORTED, file.name)
    if answer.get("ContentRange") != f"bytes {wanted.removeprefix('bytes=')}/{file.size_bytes}":
        raise changed(file)


def _chunks(body: Any, loop: Any) -> Iterator[bytes]:
    while chunk := sync(loop, body.read, _CHUNK_BYTES):
        yield chunk


@contextmanager
def _mapped(subject: str) -> Iterator[None]:
    """Map the library's errors by the code that the store gave, which s3fs keeps as the cause."""
    try:
        yield
    except RegistryError:
        raise
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise rejected(source_codes.STORE_CREDENTIALS_REFUSED, printable(subject)) from error
    except (OSError, BotoCoreError, ClientError) as error:
        raise _of_code(_code_of(error), printable(subject), error) from error


def _code_of(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ClientError):
            return str(cause.response.get("Error", {}).get("Code", ""))
        cause = cause.__cause__
    return ""


def _of_code(code: str, subject: str, error: Exception) -> RegistryError:
    if code == "NoSuchBucket":
        return rejected(source_codes.BUCKET_MISSING, subject)
    if code in _CREDENTIALS:
        return rejected(source_codes.STORE_CREDENTIALS_REFUSED, subject, actual=code)
    if code in _DENIED or isinstance(error, PermissionError):
        return rejected(source_codes.STORE_ACCESS_DENIED, subject, actual=code)
    if code in _GONE:
        return rejected(source_codes.SOURCE_CHANGED, subject, actual=code)
    if code in _SLOW:
        return RateLimited(f"{subject}: the store limits the rate of requests")
    return Transient(f"{subject}: the store is out of reach ({code or type(error).__name__})")


def _parse_url(url: str) -> tuple[str, str]:
    """Bucket and prefix."""
    bucket, _, path = url.removeprefix("s3://").partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise rejected(source_codes.SOURCE_URL_INVALID, printable(url))
    return bucket, check_path(path, url=url)
