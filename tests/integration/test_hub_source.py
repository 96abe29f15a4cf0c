"""The Hub as a source, through the real client library: commits, digests, ranges, and a code for each refusal."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE, FileDigest
from lora_registry.errors import Configuration, RateLimited, Transient
from lora_registry.ready_marker import MARKER_FILE, marker_text
from lora_registry.settings import Settings
from lora_registry.sources import PinnedSource
from lora_registry.stages import Stage
from lora_workers.sources import SourceRouter
from lora_workers.worker import run_worker
from tests.helpers.hub_server import HubServer
from tests.helpers.sources import (
    ADAPTER,
    CONFIG,
    WEIGHTS,
    deferral,
    make_sources,
    rejection,
    unique,
    write_credentials,
)


@pytest.fixture
def repo() -> str:
    """A repository that no other test uses."""
    return f"team/{unique()}"


@pytest.fixture
def hub(hub_server: HubServer) -> Iterator[HubServer]:
    """The Hub, with nothing noted yet; what a test does to its answers ends with the test."""
    hub_server.requests.clear()
    yield hub_server
    hub_server.corrupt.clear()
    hub_server.ignore_ranges = False
    hub_server.limit_rate(0)


@pytest.fixture
def sources(hub: HubServer, tmp_path: Path) -> SourceRouter:
    """Sources that know the Hub and one token of it, by name."""
    named = {"reader": hub.credential(), "stale": hub.credential("hf_unknown")}
    return make_sources(tmp_path, named, hub_endpoint=hub.endpoint)


@pytest.mark.parametrize("form", ["{repo}", "hf://{repo}", "hf://{repo}@main", "hf://{repo}@refs%2Fheads%2Fmain"])
def test_every_form_means_the_commit_of_the_branch(
    hub: HubServer, sources: SourceRouter, repo: str, form: str, tmp_path: Path
) -> None:
    """The branch is resolved once; the pin names the commit, and its bytes stay what they were after a push."""
    commit = hub.commit_directory(repo, ADAPTER)
    pinned = PinnedSource.from_json(sources.resolve(form.format(repo=repo)).to_json())
    hub.commit(repo, {WEIGHTS_FILE: b"other weights", CONFIG_FILE: b"{}"})
    assert pinned.url == f"hf://{repo}@{commit}"
    assert sources.read(pinned.config, limit_bytes=100_000) == CONFIG
    assert sources.copy(pinned.weights, str(tmp_path / "copy")).sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert (tmp_path / "copy").read_bytes() == WEIGHTS


@pytest.mark.parametrize("revision", ["v1.0", "refs%2Ftags%2Fv1.0", "refs/pr/3", "{commit}", "{commit:.12}"])
def test_tags_pull_requests_and_commits_are_revisions(
    hub: HubServer, sources: SourceRouter, repo: str, revision: str
) -> None:
    """Whatever names the commit, that commit is pinned."""
    commit = hub.commit_directory(repo, ADAPTER, subfolder="runs/7")
    hub.tag(repo, "v1.0", commit)
    hub._repos[repo].refs["refs/pr/3"] = commit
    hub.commit(repo, {"README.md": b"later"})
    pinned = sources.resolve(f"hf://{repo}@{revision.format(commit=_Sliced(commit))}/runs/7")
    assert pinned.url == f"hf://{repo}@{commit}/runs/7"


class _Sliced(str):
    """A text of which a format can take the first characters."""

    def __format__(self, spec: str) -> str:
        return self[: int(spec[1:])] if spec else str(self)


def test_two_requests_find_it_and_ranges_read_only_what_is_asked_for(
    hub: HubServer, sources: SourceRouter, repo: str
) -> None:
    """Resolving is one request; a range of a large file comes with 206 from its own host, without the token."""
    hub.commit_directory(repo, ADAPTER)
    pinned = sources.resolve(repo, credential="reader")
    assert len(hub.requests) == 1
    with sources.ranged(pinned.weights) as read:
        assert read(8, 100) == WEIGHTS[8:108]
        assert read(len(WEIGHTS) - 5, 100) == WEIGHTS[-5:]
    at_cdn = [each for each in hub.requests if each.path.startswith("/cdn/")]
    assert [each.status for each in at_cdn] == [206, 206]
    assert sum(each.sent_bytes for each in at_cdn) == 105
    assert {each.token for each in at_cdn} == {""}


def test_server_that_ignores_ranges_is_refused_before_it_sends_the_file(
    hub: HubServer, sources: SourceRouter, repo: str
) -> None:
    """Status 200 to a range is no range."""
    hub.commit_directory(repo, ADAPTER)
    pinned = sources.resolve(repo)
    hub.ignore_ranges = True
    with sources.ranged(pinned.weights) as read:
        assert rejection(lambda: read(8, 100)).code == "RANGES_UNSUPPORTED"


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_bytes_that_are_not_those_of_the_commit_are_tried_again(
    hub: HubServer, sources: SourceRouter, repo: str, name: str, tmp_path: Path
) -> None:
    """LFS files are verified by SHA-256, small ones by git's digest; damage on the way is nobody's fault."""
    hub.commit_directory(repo, ADAPTER)
    pinned = sources.resolve(repo)
    hub.corrupt.add(name)
    with pytest.raises(Transient, match="not those of the commit"):
        sources.read(pinned.config, limit_bytes=100_000) if name == CONFIG_FILE else sources.copy(
            pinned.weights, str(tmp_path / "copy")
        )


def test_missing_and_private_are_told_apart_only_with_a_token(hub: HubServer, sources: SourceRouter, repo: str) -> None:
    """Without a token the Hub does not say which, and the finding says so; with one that may see it, it is there."""
    hub.add_repo(repo, private=True)
    hub.commit_directory(repo, ADAPTER)
    hidden = rejection(lambda: sources.resolve(repo))
    assert hidden.code == rejection(lambda: sources.resolve(f"{repo}-missing")).code == "HUB_REPO_HIDDEN"
    assert "does not say which" in hidden.message
    assert rejection(lambda: sources.resolve(f"{repo}-missing", credential="reader")).code == "HUB_REPO_MISSING"
    assert sources.resolve(repo, credential="reader").credential == "reader"


def test_gated_repository_has_a_code_of_its_own(hub: HubServer, sources: SourceRouter, repo: str) -> None:
    """The names are public, the files are not; the credential of somebody with access reads them."""
    hub.add_repo(repo, gated=True)
    hub.commit_directory(repo, ADAPTER)
    for credential in ("", "stale"):
        pinned = sources.resolve(repo, credential=credential)
        assert rejection(lambda: sources.read(pinned.config, limit_bytes=100_000)).code == "HUB_GATED"  # noqa: B023
    assert sources.read(sources.resolve(repo, credential="reader").config, limit_bytes=100_000) == CONFIG


def test_disabled_repository_is_forbidden(hub: HubServer, sources: SourceRouter, repo: str) -> None:
    """403 says that nobody gets it."""
    hub.add_repo(repo, disabled=True)
    assert rejection(lambda: sources.resolve(repo, credential="reader")).code == "HUB_FORBIDDEN"


def test_rate_limit_is_tried_again_when_the_hub_says(hub: HubServer, sources: SourceRouter, repo: str) -> None:
    """429 is no verdict about the adapter, and the worker does not sleep over it."""
    hub.commit_directory(repo, ADAPTER)
    hub.limit_rate(1, retry_after_s=17)
    with pytest.raises(RateLimited) as limited:
        sources.resolve(repo)
    assert (limited.value.code, limited.value.retry_after_s) == ("RATE_LIMITED", 17)
    assert sources.resolve(repo)


def test_worker_does_not_start_with_a_credentials_file_that_is_not_legal(tmp_path: Path) -> None:
    """Said at the start, not at the first registration."""
    path = write_credentials(tmp_path, {"default-hub": {"kind": "hub", "token": "t"}}, mode=0o644)
    with pytest.raises(Configuration, match="CREDENTIALS_FILE"):
        run_worker(Settings(credentials_file=path), [Stage.RESOLVE])


def test_missing_branch_is_rejected_and_a_missing_commit_waits(
    hub: HubServer, sources: SourceRouter, repo: str
) -> None:
    """A commit that an event names may not have arrived everywhere; after a minute it is the rejection's reason."""
    commit = hub.commit_directory(repo, ADAPTER, missing_answers=2)
    assert rejection(lambda: sources.resolve(f"{repo}@no-such-branch")).code == "HUB_REVISION_MISSING"
    waiting = deferral(lambda: sources.resolve(f"{repo}@{commit}"))
    assert [each.code for each in waiting.findings] == ["HUB_REVISION_MISSING", "SOURCE_INCOMPLETE"]
    assert waiting.deadline_s == 60
    deferral(lambda: sources.resolve(f"{repo}@{commit}"))
    assert sources.resolve(f"{repo}@{commit}").url.endswith(commit)


def test_half_a_push_waits_on_a_branch_and_is_final_as_a_commit(
    hub: HubServer, sources: SourceRouter, repo: str
) -> None:
    """The next commit of a branch may bring the weights; a commit that was named never changes."""
    commit = hub.commit(repo, {CONFIG_FILE: CONFIG, "README.md": b"card first"})
    waiting = deferral(lambda: sources.resolve(repo))
    assert (waiting.findings[0].code, waiting.findings[0].subject) == ("FILE_MISSING", WEIGHTS_FILE)
    assert waiting.deadline_s == 900
    assert rejection(lambda: sources.resolve(f"{repo}@{commit}")).code == "FILE_MISSING"
    hub.commit(repo, {WEIGHTS_FILE: WEIGHTS})
    assert sources.resolve(repo)


def test_pickle_is_rejected_at_once(hub: HubServer, sources: SourceRouter, repo: str) -> None:
    """What will never be an adapter does not wait."""
    hub.commit(repo, {CONFIG_FILE: CONFIG, "adapter_model.bin": b"pickle"})
    assert rejection(lambda: sources.resolve(repo)).code == "FORMAT_PICKLE"


def test_marker_beside_the_files_is_held_to(hub: HubServer, sources: SourceRouter, repo: str, tmp_path: Path) -> None:
    """Its sizes are compared when it is resolved, its digests when the bytes come."""
    files = {CONFIG_FILE: FileDigest(hashlib.sha256(CONFIG).hexdigest(), len(CONFIG))}
    files[WEIGHTS_FILE] = FileDigest("0" * 64, len(WEIGHTS))
    hub.commit(repo, {CONFIG_FILE: CONFIG, WEIGHTS_FILE: WEIGHTS, MARKER_FILE: marker_text(files)})
    pinned = sources.resolve(repo)
    assert sources.read(pinned.config, limit_bytes=100_000) == CONFIG
    assert rejection(lambda: sources.copy(pinned.weights, str(tmp_path / "copy"))).code == "MARKER_MISMATCH"


@pytest.mark.parametrize("setting", ["hub_offline", "HF_HUB_OFFLINE"])
def test_offline_says_so_and_asks_nobody(
    hub: HubServer, repo: str, tmp_path: Path, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own setting and the client library's do the same."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", setting == "HF_HUB_OFFLINE")
    sources = make_sources(tmp_path, hub_endpoint=hub.endpoint, hub_offline=setting == "hub_offline")
    assert rejection(lambda: sources.resolve(repo)).code == "HUB_OFFLINE"
    assert hub.requests == []


def test_hub_out_of_reach_is_tried_again(repo: str, tmp_path: Path) -> None:
    """A connection that is refused says nothing about the adapter."""
    sources = make_sources(tmp_path, hub_endpoint="http://127.0.0.1:9")
    with pytest.raises(Transient, match="out of reach"):
        sources.resolve(repo)


@pytest.mark.parametrize(
    "url",
    [
        "hf://only-a-name",
        "hf://a/b/../c",
        "hf://a/b//c",
        "hf://../b",
        "hf://a/..",
        "hf://a/b@../../x",
        "hf://a/b@%2e%2e%2fx",
        "hf://a/b@main/a\nb",
        "hf://a/b@main/a\\b",
        "hf://a/b@ma in",
        "hf://a/b@",
        "a/b@-x",
        "hf://a/b?x=1",
        "hf://a/b@main/x::file:///etc",
    ],
)
def test_url_that_leads_astray_is_refused_without_a_request(hub: HubServer, sources: SourceRouter, url: str) -> None:
    """Nothing of it becomes part of a request's path."""
    assert rejection(lambda: sources.resolve(url)).code in ("SOURCE_URL_INVALID", "SOURCE_UNSUPPORTED")
    assert hub.requests == []


@pytest.mark.parametrize("url", ["./a/b", "../a/b", "~/a", "a", "/a/b"])
def test_local_path_is_never_taken_for_a_repository(hub: HubServer, sources: SourceRouter, url: str) -> None:
    """Bare `org/repo` begins with a letter or digit and has a slash; everything else without a scheme is local."""
    assert rejection(lambda: sources.resolve(url)).code in ("SOURCE_UNSUPPORTED", "SOURCE_OUTSIDE_ROOTS")
    assert hub.requests == []


def test_the_machines_own_token_is_not_used(
    hub: HubServer, repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publisher's request must not be answered with what the operator is logged in as; `default-hub` is asked for."""
    hub.add_repo(repo, private=True)
    hub.commit_directory(repo, ADAPTER)
    monkeypatch.setenv("HF_TOKEN", str(hub.credential()["token"]))
    anonymous = make_sources(tmp_path, hub_endpoint=hub.endpoint)
    assert rejection(lambda: anonymous.resolve(repo)).code == "HUB_REPO_HIDDEN"
    hub.commit_directory(f"{repo}-public", ADAPTER)
    assert anonymous.read(anonymous.resolve(f"{repo}-public").config, limit_bytes=100_000) == CONFIG
    assert {each.token for each in hub.requests} == {""}
    assert make_sources(tmp_path, {"default-hub": hub.credential()}).resolve(repo)


def test_neither_token_nor_signed_address_is_told(
    hub: HubServer, sources: SourceRouter, repo: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Not in an error or a finding, not in the pin, not in the log at any level that operators run."""
    caplog.set_level(logging.INFO)
    hub.commit_directory(repo, ADAPTER)
    pinned = sources.resolve(repo, credential="reader")
    hub.corrupt.add(WEIGHTS_FILE)
    with pytest.raises(Transient) as damaged:
        sources.copy(pinned.weights, str(tmp_path / "copy"))
    refused = rejection(lambda: sources.resolve(f"{repo}-missing", credential="reader"))
    told = caplog.text + str(damaged.value) + refused.model_dump_json() + pinned.to_json()
    assert "hf_test" not in told
    assert "Signature" not in told
