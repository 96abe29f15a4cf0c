"""S3 as a source, on a real server: versions, ETags, ranges, and a code for each refusal."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest

from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE, FileDigest
from lora_registry.errors import Transient
from lora_registry.ready_marker import MARKER_FILE, marker_text
from lora_registry.sources import PinnedSource
from lora_workers.sources import SourceRouter
from tests.helpers.s3_server import READER_ACCESS_KEY, READER_SECRET_KEY, SECRET_KEY, UNVERSIONED, VERSIONED, S3Server
from tests.helpers.sources import ADAPTER, CONFIG, WEIGHTS, deferral, make_sources, rejection, unique


@pytest.fixture
def sources(s3_server: S3Server, tmp_path: Path) -> SourceRouter:
    """Sources with the keys of the server, good and bad."""
    reader = s3_server.credential(access_key=READER_ACCESS_KEY, secret_key=READER_SECRET_KEY)
    named = {
        "default-s3": s3_server.credential(),
        "wrong-secret": s3_server.credential(secret_key="wrong"),
        "wrong-key": s3_server.credential(access_key="nobody"),
        "reader": reader,
        "nobody": {"kind": "s3", "anonymous": True, "endpoint_url": s3_server.endpoint_url},
    }
    return make_sources(tmp_path, named)


@pytest.mark.parametrize("bucket", [VERSIONED, UNVERSIONED])
def test_adapter_is_pinned_read_in_ranges_and_copied(
    s3_server: S3Server, sources: SourceRouter, bucket: str, tmp_path: Path
) -> None:
    """By version where there are versions, else by ETag; the pin survives the ledger."""
    prefix = unique()
    s3_server.put_directory(ADAPTER, f"{bucket}/{prefix}/adapter")
    pinned = PinnedSource.from_json(sources.resolve(f"s3://{bucket}/{prefix}/adapter/").to_json())
    kind = "version:" if bucket == VERSIONED else "etag:"
    assert pinned.config.version.startswith(kind)
    assert pinned.weights.version.startswith(kind)
    assert sources.read(pinned.config, limit_bytes=100_000) == CONFIG
    with sources.ranged(pinned.weights) as read:
        assert read(8, 100) == WEIGHTS[8:108]
        assert read(len(WEIGHTS) - 5, 100) == WEIGHTS[-5:]
    copied = sources.copy(pinned.weights, str(tmp_path / "copy"))
    assert copied == FileDigest(hashlib.sha256(WEIGHTS).hexdigest(), len(WEIGHTS))
    assert (tmp_path / "copy").read_bytes() == WEIGHTS


def test_pinned_version_is_copied_though_a_newer_one_is_there(
    s3_server: S3Server, sources: SourceRouter, tmp_path: Path
) -> None:
    """A versioned bucket still has the bytes that were judged; the newer ones have an event of their own."""
    prefix = unique()
    s3_server.put_directory(ADAPTER, f"{VERSIONED}/{prefix}")
    pinned = sources.resolve(f"s3://{VERSIONED}/{prefix}")
    s3_server.put(f"{VERSIONED}/{prefix}/{WEIGHTS_FILE}", b"x" * len(WEIGHTS))
    assert sources.copy(pinned.weights, str(tmp_path / "copy")).sha256 == hashlib.sha256(WEIGHTS).hexdigest()


def test_object_without_versions_that_changed_is_refused(
    s3_server: S3Server, sources: SourceRouter, tmp_path: Path
) -> None:
    """However it is read, other bytes of the same length are not the pinned ones; nor is an object that is gone."""
    prefix = unique()
    s3_server.put_directory(ADAPTER, f"{UNVERSIONED}/{prefix}")
    pinned = sources.resolve(f"s3://{UNVERSIONED}/{prefix}")
    for name, content in ((WEIGHTS_FILE, WEIGHTS), (CONFIG_FILE, CONFIG)):
        s3_server.put(f"{UNVERSIONED}/{prefix}/{name}", content[:-1] + b"x")
    assert rejection(lambda: sources.copy(pinned.weights, str(tmp_path / "copy"))).code == "SOURCE_CHANGED"
    assert rejection(lambda: sources.read(pinned.config, limit_bytes=100_000)).code == "SOURCE_CHANGED"
    with sources.ranged(pinned.weights) as read:
        assert rejection(lambda: read(0, 10)).code == "SOURCE_CHANGED"
    s3_server.file_system().rm_file(f"{UNVERSIONED}/{prefix}/{WEIGHTS_FILE}")
    assert rejection(lambda: sources.copy(pinned.weights, str(tmp_path / "copy"))).code == "SOURCE_CHANGED"


def test_store_that_ignores_conditions_changes_nothing(
    s3_server: S3Server, sources: SourceRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says of the object that it sends is compared as well."""
    prefix = unique()
    for bucket in (VERSIONED, UNVERSIONED):
        s3_server.put_directory(ADAPTER, f"{bucket}/{prefix}")
        pinned = sources.resolve(f"s3://{bucket}/{prefix}")
        s3_server.put(f"{bucket}/{prefix}/{WEIGHTS_FILE}", WEIGHTS[:-1] + b"x")
        with monkeypatch.context() as patched:
            patched.setattr("lora_workers.sources.s3._condition", lambda _: {})
            copy = lambda pinned=pinned: sources.copy(pinned.weights, str(tmp_path / "copy"))  # noqa: E731
            assert rejection(copy).code == "SOURCE_CHANGED"


def test_object_that_changes_while_it_is_copied_is_refused(
    s3_server: S3Server, sources: SourceRouter, tmp_path: Path
) -> None:
    """After the last byte the object is looked at once more."""
    prefix = unique()
    s3_server.put_directory(ADAPTER, f"{UNVERSIONED}/{prefix}")
    pinned = sources.resolve(f"s3://{UNVERSIONED}/{prefix}")

    def change(_: memoryview) -> None:
        s3_server.put(f"{UNVERSIONED}/{prefix}/{WEIGHTS_FILE}", b"other")

    copy = lambda: sources.copy(pinned.weights, str(tmp_path / "copy"), tap=change)  # noqa: E731
    assert rejection(copy).code == "SOURCE_CHANGED"


def test_bucket_prefix_key_and_secret_each_have_a_code(s3_server: S3Server, sources: SourceRouter) -> None:
    """Whoever has to mend something learns what."""
    prefix = unique()
    s3_server.put_directory(ADAPTER, f"{UNVERSIONED}/{prefix}")
    url = f"s3://{UNVERSIONED}/{prefix}"
    assert rejection(lambda: sources.resolve(f"s3://{unique('bucket')}/{prefix}")).code == "BUCKET_MISSING"
    assert rejection(lambda: sources.resolve(url, credential="wrong-secret")).code == "STORE_CREDENTIALS_REFUSED"
    assert rejection(lambda: sources.resolve(url, credential="wrong-key")).code == "STORE_CREDENTIALS_REFUSED"
    assert rejection(lambda: sources.resolve(url, credential="reader")).code == "STORE_ACCESS_DENIED"
    assert rejection(lambda: sources.resolve(url, credential="nobody")).code == "STORE_ACCESS_DENIED"
    assert rejection(lambda: sources.resolve(url, credential="unheard-of")).code == "CREDENTIAL_UNKNOWN"


def test_empty_prefix_and_half_an_upload_wait(s3_server: S3Server, sources: SourceRouter) -> None:
    """An upload may still be under way; what is missing is the reason if it never comes."""
    prefix = unique()
    url = f"s3://{VERSIONED}/{prefix}"
    empty = deferral(lambda: sources.resolve(url))
    assert [each.subject for each in empty.findings[:2]] == [CONFIG_FILE, WEIGHTS_FILE]
    s3_server.put(f"{VERSIONED}/{prefix}/{CONFIG_FILE}", CONFIG)
    half = deferral(lambda: sources.resolve(url))
    assert [(each.code, each.subject) for each in half.findings] == [
        ("FILE_MISSING", WEIGHTS_FILE),
        ("SOURCE_INCOMPLETE", WEIGHTS_FILE),
    ]
    s3_server.put(f"{VERSIONED}/{prefix}/{WEIGHTS_FILE}", WEIGHTS)
    assert sources.resolve(url).may_grow_s == 900


def test_adapter_in_a_folder_below_is_named(s3_server: S3Server, sources: SourceRouter) -> None:
    """A prefix one level too high is rejected at once, with the right one."""
    prefix = unique()
    s3_server.put_directory(ADAPTER, f"{VERSIONED}/{prefix}/checkpoint-9")
    finding = rejection(lambda: sources.resolve(f"s3://{VERSIONED}/{prefix}"))
    assert (finding.code, finding.subject) == ("FILES_IN_SUBFOLDER", "checkpoint-9")


def test_marker_that_does_not_fit_waits_for_the_rest(s3_server: S3Server, sources: SourceRouter) -> None:
    """Old weights beside a new marker are an upload under way."""
    prefix = unique()
    s3_server.put_directory(ADAPTER, f"{VERSIONED}/{prefix}")
    new = WEIGHTS + b"more"
    files = {CONFIG_FILE: FileDigest(hashlib.sha256(CONFIG).hexdigest(), len(CONFIG))}
    files[WEIGHTS_FILE] = FileDigest(hashlib.sha256(new).hexdigest(), len(new))
    s3_server.put(f"{VERSIONED}/{prefix}/{MARKER_FILE}", marker_text(files))
    assert deferral(lambda: sources.resolve(f"s3://{VERSIONED}/{prefix}")).findings[0].code == "MARKER_MISMATCH"
    s3_server.put(f"{VERSIONED}/{prefix}/{WEIGHTS_FILE}", new)
    assert sources.resolve(f"s3://{VERSIONED}/{prefix}").weights.sha256 == files[WEIGHTS_FILE].sha256


def test_marker_may_be_required(s3_server: S3Server, tmp_path: Path) -> None:
    """With the setting, two whole files are not enough."""
    prefix = unique()
    s3_server.put_directory(ADAPTER, f"{VERSIONED}/{prefix}")
    sources = make_sources(tmp_path, {"default-s3": s3_server.credential()}, marker_required="s3")
    waiting = deferral(lambda: sources.resolve(f"s3://{VERSIONED}/{prefix}"))
    assert waiting.findings[0].code == "MARKER_MISSING"


def test_store_out_of_reach_is_tried_again(tmp_path: Path) -> None:
    """A connection that is refused says nothing about the adapter."""
    away = {"kind": "s3", "anonymous": True, "endpoint_url": "http://127.0.0.1:9"}
    with pytest.raises(Transient, match="out of reach"):
        make_sources(tmp_path, {"default-s3": away}).resolve("s3://bucket/prefix")


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3://b", "s3://Bucket/x", "s3://bucket/../x", "s3://bucket/a//b", "s3://bucket/a\nb", "s3://b..c/x"],
)
def test_url_that_is_not_one_is_refused(sources: SourceRouter, url: str) -> None:
    """Without a request."""
    assert rejection(lambda: sources.resolve(url)).code == "SOURCE_URL_INVALID"


def test_keys_are_told_nowhere(s3_server: S3Server, sources: SourceRouter, caplog: pytest.LogCaptureFixture) -> None:
    """Not in an error or a finding, not in the pin, not in the log at any level that operators run."""
    caplog.set_level(logging.INFO)
    prefix = unique()
    s3_server.put_directory(ADAPTER, f"{VERSIONED}/{prefix}")
    pinned = sources.resolve(f"s3://{VERSIONED}/{prefix}")
    refused = rejection(lambda: sources.resolve(f"s3://{VERSIONED}/{prefix}", credential="wrong-key"))
    assert SECRET_KEY not in caplog.text + pinned.to_json() + refused.model_dump_json()
