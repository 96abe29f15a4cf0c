"""The marker file: written whole, read strictly, and what it says decides whether an upload is done."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.sources import rejection

from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE, FileDigest
from lora_registry.errors import Deferred
from lora_registry.readiness import Readiness
from lora_registry.ready_marker import MARKER_FILE, MarkerError, mark_ready, marker_text, parse_marker
from lora_registry.sources import Listing, PinnedFile
from lora_workers.sources.local import LocalSource

FILES = {CONFIG_FILE: b"{}", WEIGHTS_FILE: b"weights" * 1000}
DIGESTS = {name: FileDigest(hashlib.sha256(content).hexdigest(), len(content)) for name, content in FILES.items()}


def write(directory: Path) -> Path:
    """A directory with the two files."""
    directory.mkdir()
    for name, content in FILES.items():
        (directory / name).write_bytes(content)
    return directory


def listing(**changed: bytes | None) -> Listing:
    """A place with the two files and those that are given; None leaves one out."""
    files = {name: content for name, content in {**FILES, **changed}.items() if content is not None}
    pinned = {name: PinnedFile(f"mem://{name}", "1", len(content), name) for name, content in files.items()}
    return Listing("mem://", pinned)


def check(readiness: Readiness, **changed: bytes | None) -> Any:
    """Check a place."""
    return readiness.check("mem://", listing(**changed), lambda file: changed[file.name] or b"")


def test_what_a_publisher_writes_is_what_a_source_reads(tmp_path: Path) -> None:
    """Sizes, digests and metadata come back; readers of other users may read it, and nothing else is left."""
    marker = mark_ready(write(tmp_path / "a"), metadata={"run": "17"})
    parsed = parse_marker(marker.read_bytes())
    assert parsed.files == DIGESTS
    assert parsed.metadata == {"run": "17"}
    assert marker.stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in marker.parent.iterdir()) == sorted([*FILES, MARKER_FILE])


def test_nothing_is_marked_that_is_not_there(tmp_path: Path) -> None:
    """A directory without weights gets no marker."""
    with pytest.raises(FileNotFoundError):
        mark_ready(tmp_path)
    assert list(tmp_path.iterdir()) == []


GOOD = json.loads(marker_text(DIGESTS))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"x" * 100_000,
        json.dumps(GOOD | {"version": 2}).encode(),
        json.dumps(GOOD | {"files": []}).encode(),
        json.dumps(GOOD | {"files": {CONFIG_FILE: GOOD["files"][CONFIG_FILE]}}).encode(),
        json.dumps(GOOD).replace('"size": 2,', '"size": true,').encode(),
        json.dumps(GOOD).replace('"size": 2,', '"size": -2,').encode(),
        json.dumps(GOOD).replace('"sha256": "', '"sha256": "X', 1).encode(),
        b'{"version": 1, "version": 1}',
    ],
)
def test_marker_that_is_not_legal_is_refused(raw: bytes) -> None:
    """With a code; a damaged marker is not taken for none."""
    with pytest.raises(MarkerError):
        parse_marker(raw)
    assert rejection(lambda: check(Readiness(60), **{MARKER_FILE: raw})).code == "MARKER_INVALID"


def test_unknown_fields_are_ignored() -> None:
    """A later version of the publisher may say more."""
    assert parse_marker(json.dumps(GOOD | {"more": 1}).encode()).files == DIGESTS


def test_sizes_are_compared_and_digests_are_kept_for_the_copy() -> None:
    """What fits is pinned with the marker's digests; what does not waits, or is rejected where nothing can come."""
    marker = marker_text(DIGESTS)
    assert check(Readiness(60), **{MARKER_FILE: marker})[WEIGHTS_FILE].sha256 == DIGESTS[WEIGHTS_FILE].sha256
    shorter = {MARKER_FILE: marker, WEIGHTS_FILE: b"short"}
    with pytest.raises(Deferred) as deferred:
        check(Readiness(60), **shorter)
    assert [each.code for each in deferred.value.findings] == ["MARKER_MISMATCH", "SOURCE_INCOMPLETE"]
    assert rejection(lambda: check(Readiness(0), **shorter)).code == "MARKER_MISMATCH"


def test_required_marker_is_waited_for() -> None:
    """Two whole files are not ready before it is there."""
    with pytest.raises(Deferred):
        check(Readiness(60, needs_marker=True))
    assert rejection(lambda: check(Readiness(0, needs_marker=True))).code == "MARKER_MISSING"
    assert check(Readiness(0, needs_marker=True), **{MARKER_FILE: marker_text(DIGESTS)})


def test_only_what_may_still_come_is_waited_for() -> None:
    """Weights that are missing may come; a pickle in their place will not turn into weights."""
    with pytest.raises(Deferred):
        check(Readiness(60), **{WEIGHTS_FILE: None})
    assert rejection(lambda: check(Readiness(60), **{WEIGHTS_FILE: None, "adapter_model.bin": b"x"})).code == (
        "FORMAT_PICKLE"
    )


def test_local_directory_is_rejected_at_once_unless_it_is_given_time(tmp_path: Path) -> None:
    """A training job that says "here it is" has finished writing; where that is not so, there is a setting."""
    directory = write(tmp_path / "a")
    (directory / WEIGHTS_FILE).unlink()
    assert rejection(lambda: LocalSource([tmp_path]).resolve(str(directory))).code == "FILE_MISSING"
    with pytest.raises(Deferred):
        LocalSource([tmp_path], readiness=Readiness(60)).resolve(str(directory))


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_local_bytes_that_are_not_those_of_the_marker_are_refused(tmp_path: Path, name: str) -> None:
    """Same size, other bytes: the digests are compared when the files are read."""
    directory = write(tmp_path / "a")
    mark_ready(directory)
    (directory / name).write_bytes(b"x" * len(FILES[name]))
    source = LocalSource([tmp_path])
    pinned = source.resolve(str(directory))
    read = lambda: source.read(pinned.config, limit_bytes=100)  # noqa: E731
    copy = lambda: source.copy(pinned.weights, str(tmp_path / "copy"))  # noqa: E731
    assert rejection(read if name == CONFIG_FILE else copy).code == "MARKER_MISMATCH"
