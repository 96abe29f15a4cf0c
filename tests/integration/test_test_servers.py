"""The servers that stand for S3, the Hub and vLLM behave, towards the real clients of theirs, as those do."""

from __future__ import annotations

import secrets
import threading
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lora_workers.node.drivers import open_driver
from tests.helpers.adapters_on_disk import copy_adapter
from tests.helpers.hub_server import TOKEN, HubServer
from tests.helpers.s3_server import UNVERSIONED, VERSIONED, S3Server
from tests.helpers.vllm_server import vllm_server
from tests.helpers.waiting import wait_until


@pytest.fixture
def name() -> str:
    """A name that no other test uses."""
    return f"test-{secrets.token_hex(6)}"


def test_the_versioned_bucket_keeps_versions_and_serves_ranges_of_them(s3_server: S3Server, name: str) -> None:
    """An overwritten object is still there under its version id, and a range of it can be read."""
    files = s3_server.file_system(version_aware=True)
    path = f"{VERSIONED}/{name}/a.bin"
    s3_server.put(path, b"0123456789")
    first = files.info(path)
    s3_server.put(path, b"changed")
    assert first["VersionId"] not in ("", "null", None)
    assert files.info(path)["VersionId"] != first["VersionId"]
    assert files.cat_file(path, start=2, end=5, version_id=first["VersionId"]) == b"234"


def test_the_plain_bucket_has_no_versions_and_refuses_a_stale_etag(s3_server: S3Server, name: str) -> None:
    """Reading with If-Match of the bytes that were there before answers 412."""
    files = s3_server.file_system()
    path = f"{UNVERSIONED}/{name}/a.bin"
    s3_server.put(path, b"one")
    etag = files.info(path)["ETag"]
    assert files.call_s3("get_object", Bucket=UNVERSIONED, Key=f"{name}/a.bin", IfMatch=etag)["ETag"] == etag
    s3_server.put(path, b"two")
    with pytest.raises(OSError, match="condition"):
        files.call_s3("get_object", Bucket=UNVERSIONED, Key=f"{name}/a.bin", IfMatch=etag)


def test_a_wrong_secret_and_a_foreign_bucket_are_refused(s3_server: S3Server, name: str) -> None:
    """Credentials mean something on this server."""
    s3_server.put(f"{UNVERSIONED}/{name}", b"x")
    with pytest.raises(PermissionError):
        s3_server.file_system(secret_key="wrong").cat_file(f"{UNVERSIONED}/{name}")
    reader = s3_server.file_system(access_key="test-reader-key", secret_key="test-reader-secret-cmVhZGVy")
    with pytest.raises(PermissionError):
        reader.cat_file(f"{UNVERSIONED}/{name}")


def test_the_client_resolves_lists_and_downloads(hub_server: HubServer, name: str, tmp_path: Path) -> None:
    """A branch and a tag resolve to commits; sizes and LFS digests are listed; a download is whole."""
    repo = f"team/{name}"
    first = hub_server.commit(repo, {"adapter_config.json": b"{}", "sub/w.safetensors": b"w" * 1000})
    second = hub_server.commit(repo, {"adapter_config.json": b'{"r": 8}'})
    hub_server.tag(repo, "v1", first)
    api = HfApi(endpoint=hub_server.endpoint, token=False)
    assert api.model_info(repo).sha == second
    info = api.model_info(repo, revision="v1", files_metadata=True)
    weights = next(each for each in info.siblings or () if each.rfilename == "sub/w.safetensors")
    tree = {each.path: each for each in api.list_repo_tree(repo, revision=first, recursive=True)}
    assert info.sha == first
    assert weights.lfs is not None
    assert weights.lfs.sha256 == tree["sub/w.safetensors"].lfs.sha256  # type: ignore[union-attr]
    assert [each.target_commit for each in api.list_repo_refs(repo).tags] == [first]
    assert [each.commit_id for each in api.list_repo_commits(repo)] == [second, first]
    path = api.hf_hub_download(repo, "sub/w.safetensors", revision=first, cache_dir=tmp_path)
    assert Path(path).read_bytes() == b"w" * 1000


def test_what_may_not_be_read_answers_as_the_hub_does(hub_server: HubServer, name: str, tmp_path: Path) -> None:
    """Missing, private, gated, missing revision and missing file are the client's own errors."""
    hub_server.add_repo(f"team/{name}", private=True)
    hub_server.commit(f"team/{name}", {"a": b"a"})
    hub_server.add_repo(f"team/{name}-gated", gated=True)
    hub_server.commit(f"team/{name}-gated", {"a": b"a"})
    anonymous = HfApi(endpoint=hub_server.endpoint, token=False)
    known = HfApi(endpoint=hub_server.endpoint, token=TOKEN)
    with pytest.raises(RepositoryNotFoundError):
        anonymous.model_info(f"team/{name}-missing")
    with pytest.raises(RepositoryNotFoundError):
        anonymous.model_info(f"team/{name}")
    assert known.model_info(f"team/{name}").private
    with pytest.raises(RevisionNotFoundError):
        known.model_info(f"team/{name}", revision="f" * 40)
    with pytest.raises(GatedRepoError):
        anonymous.hf_hub_download(f"team/{name}-gated", "a", cache_dir=tmp_path)
    with pytest.raises((RemoteEntryNotFoundError, LocalEntryNotFoundError)):
        known.hf_hub_download(f"team/{name}", "b", cache_dir=tmp_path)


def test_rate_limits_and_fresh_commits_pass(hub_server: HubServer, name: str) -> None:
    """The first answers are 429, or 404 for a fresh commit; then it is there."""
    sha = hub_server.commit(f"team/{name}", {"a": b"a"}, missing_answers=1)
    api = HfApi(endpoint=hub_server.endpoint, token=False)
    with pytest.raises(RevisionNotFoundError):
        api.model_info(f"team/{name}", revision=sha)
    hub_server.limit_rate(1, retry_after_s=7)
    with pytest.raises(HfHubHTTPError) as limited:
        api.model_info(f"team/{name}", revision=sha)
    assert limited.value.response.headers["Retry-After"] == "7"
    assert api.model_info(f"team/{name}", revision=sha).sha == sha


def test_vllm_tells_its_version_and_which_adapters_are_running(tmp_path: Path) -> None:
    """The driver reads both: nothing before the first request, the adapter while one lasts, and nothing after it."""
    with vllm_server() as server:
        driver = open_driver("vllm", server.url)
        told = driver.describe()
        assert (told.version, told.base) == ("0.32.0", "/models/base")
        driver.load("bot.v1", str(copy_adapter(tmp_path / "bot")))
        assert driver.busy() == frozenset()
        server.let_answer.clear()
        request = threading.Thread(target=driver.probe, args=("bot.v1",))
        request.start()
        wait_until(lambda: driver.busy() == {"bot.v1"}, what="the request in the metrics")
        server.let_answer.set()
        request.join()
        assert driver.busy() == frozenset()
        driver.close()
