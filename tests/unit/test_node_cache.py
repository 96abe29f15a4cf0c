"""The node's cache: whole or not at all, verified, resumed, mended in place."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.node_stand import damage, keep_artifact
from tests.unit.test_node_plan import make_record

from lora_registry.artifacts import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, FileDigest, Manifest
from lora_registry.errors import Configuration, Transient
from lora_workers.local_artifacts import LocalArtifactStore
from lora_workers.node.cache import Cache
from lora_workers.node.failures import NodeFailure
from lora_workers.node.note_files import NoteFiles


class FlakyOrigin:
    """An artifact store whose connection breaks off.

    Args:
        store: where the bytes are.
        breaks_after: bytes after which a read of the weights fails, once for each.
    """

    def __init__(self, store: LocalArtifactStore, *breaks_after: int) -> None:
        self._store = store
        self._breaks = list(breaks_after)
        self.offsets: list[int] = []

    def manifest(self, digest: str) -> Manifest:
        """What the artifact consists of."""
        return self._store.manifest(digest)

    def read(self, digest: str, name: str, *, offset: int = 0, expected: FileDigest | None = None) -> Iterator[bytes]:
        """Byte by byte, as a bad line would."""
        if name == WEIGHTS_FILE:
            self.offsets.append(offset)
        left = self._breaks.pop(0) if self._breaks and name == WEIGHTS_FILE else None
        for chunk in self._store.read(digest, name, offset=offset, expected=expected):
            for byte in chunk:
                if left == 0:
                    raise Transient("the line broke")
                left = None if left is None else left - 1
                yield bytes([byte])


@pytest.fixture
def store(tmp_path: Path) -> LocalArtifactStore:
    """An artifact store."""
    return LocalArtifactStore(tmp_path / "store")


def test_a_fetched_artifact_is_whole_read_only_and_readable_for_all(store: LocalArtifactStore, tmp_path: Path) -> None:
    """Three files with the validated bytes, at the path of their digest; staging is empty."""
    digest = keep_artifact(store, "weights")
    cache = Cache(tmp_path / "cache")
    assert cache.find(digest) is None
    path = cache.fetch(digest, store)
    assert path == cache.path(digest) == tmp_path / "cache" / "sha256" / digest.removeprefix("sha256:")
    assert {file.name for file in path.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE}
    assert (path / WEIGHTS_FILE).read_bytes() == b"weights"
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o444}
    assert stat.S_IMODE(path.stat().st_mode) == 0o555
    assert cache.find(digest) == str(cache.path(digest))
    assert not [each for each in (tmp_path / "cache" / "staging").iterdir() if each.is_dir()]


def test_a_fetch_that_broke_off_goes_on_from_there(store: LocalArtifactStore, tmp_path: Path) -> None:
    """Another try, of another process even, asks for the rest only."""
    digest = keep_artifact(store, "a longer weight")
    origin = FlakyOrigin(store, 4, 3)
    for _ in range(2):
        with pytest.raises(NodeFailure) as failed:
            Cache(tmp_path / "cache").fetch(digest, origin)
        assert (failed.value.code, failed.value.may_pass) == ("NODE_FETCH_FAILED", True)
    path = Cache(tmp_path / "cache").fetch(digest, origin)
    assert origin.offsets == [0, 4, 7]
    assert (path / WEIGHTS_FILE).read_bytes() == b"a longer weight"


def test_a_wrong_beginning_is_thrown_away(store: LocalArtifactStore, tmp_path: Path) -> None:
    """What an earlier try left is only trusted with its digest."""
    digest = keep_artifact(store, "weights")
    staging = tmp_path / "cache" / "staging" / digest.removeprefix("sha256:")
    for left in (b"WEI", b"more than there is"):
        staging.mkdir(parents=True, exist_ok=True)
        (staging / WEIGHTS_FILE).write_bytes(left)
        cache = Cache(tmp_path / "cache")
        assert (cache.fetch(digest, store) / WEIGHTS_FILE).read_bytes() == b"weights"
        damage(cache.path(digest), {WEIGHTS_FILE: b"broken"})  # so that the next round fetches again


def test_other_bytes_than_validated_are_never_kept(store: LocalArtifactStore, tmp_path: Path) -> None:
    """A store that lies is found out."""
    digest = keep_artifact(store, "weights")

    class Liar(FlakyOrigin):
        def read(self, digest: str, name: str, **_: object) -> Iterator[bytes]:
            yield b"weighty" if name == WEIGHTS_FILE else b'{"r":8}'

    cache = Cache(tmp_path / "cache")
    with pytest.raises(NodeFailure) as failed:
        cache.fetch(digest, Liar(store))
    assert failed.value.code == "NODE_BYTES_DIFFER"
    assert not cache.path(digest).exists()


def test_what_a_store_lost_on_its_disk_is_never_kept(store: LocalArtifactStore, tmp_path: Path) -> None:
    """One wrong bit among as many bytes: the cache hashes what it writes, and says so."""
    digest = keep_artifact(store, "weights")
    damage(store.path(digest), {WEIGHTS_FILE: b"weighty"})
    with pytest.raises(NodeFailure) as failed:
        Cache(tmp_path / "cache").fetch(digest, store)
    assert failed.value.code == "NODE_BYTES_DIFFER"


@pytest.mark.parametrize(
    "damaged", [{WEIGHTS_FILE: b"wEights"}, {WEIGHTS_FILE: b""}, {CONFIG_FILE: b"{}"}, {MANIFEST_FILE: b"{}"}]
)
def test_damage_is_found_and_mended_at_the_same_path(
    store: LocalArtifactStore, tmp_path: Path, damaged: dict[str, bytes]
) -> None:
    """Each file is replaced by a rename: whoever opens it finds the old or the right one, never none."""
    digest = keep_artifact(store, "weights")
    cache = Cache(tmp_path / "cache")
    path = cache.fetch(digest, store)
    inode = path.stat().st_ino
    damage(path, damaged)
    assert cache.find(digest) is None
    assert cache.fetch(digest, store).stat().st_ino == inode
    assert (path / WEIGHTS_FILE).read_bytes() == b"weights"
    assert cache.find(digest) == str(cache.path(digest))
    assert stat.S_IMODE(path.stat().st_mode) == 0o555


def test_a_missing_file_is_damage(store: LocalArtifactStore, tmp_path: Path) -> None:
    """Somebody tidied up."""
    digest = keep_artifact(store, "weights")
    cache = Cache(tmp_path / "cache")
    path = cache.fetch(digest, store)
    path.chmod(0o755)
    (path / WEIGHTS_FILE).unlink()
    assert cache.find(digest) is None
    assert (cache.fetch(digest, store) / WEIGHTS_FILE).read_bytes() == b"weights"


def test_another_process_verifies_before_it_trusts(store: LocalArtifactStore, tmp_path: Path) -> None:
    """`has` is about this process: at its start nothing is taken for granted, and nothing is fetched twice."""
    digest = keep_artifact(store, "weights")
    Cache(tmp_path / "cache").fetch(digest, store)
    origin = FlakyOrigin(store)
    second = Cache(tmp_path / "cache")
    assert second.find(digest) is None
    second.fetch(digest, origin)
    assert second.find(digest) == str(second.path(digest))
    assert origin.offsets == []


def test_room_is_made_by_what_was_not_used_for_longest(store: LocalArtifactStore, tmp_path: Path) -> None:
    """What is to be kept stays, however old; if nothing else is left, the cache is full."""
    digests = [keep_artifact(store, letter * 40) for letter in "abc"]
    cache = Cache(tmp_path / "cache", max_bytes=600)
    for number, digest in enumerate(digests[:2]):
        os.utime(cache.fetch(digest, store), (number, number))
    cache.fetch(digests[2], store, keep=lambda: {digests[0]})
    assert cache.digests() == {digests[0], digests[2]}
    with pytest.raises(NodeFailure) as failed:
        cache.fetch(digests[1], store, keep=lambda: {digests[0], digests[2]})
    assert (failed.value.code, failed.value.may_pass) == ("NODE_CACHE_FULL", True)
    assert cache.digests() == {digests[0], digests[2]}


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "NODE_CACHE_FULL"), (errno.EROFS, "NODE_CACHE_UNUSABLE"), (errno.EACCES, "NODE_CACHE_UNUSABLE")],
)
def test_a_disk_that_takes_nothing_is_a_failure_that_may_pass(
    store: LocalArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    """The code tells a full disk from one that may not be written."""
    digest = keep_artifact(store, "weights")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "/cache/x")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(NodeFailure, match=r"cache: .*: /cache/x") as failed:
        Cache(tmp_path / "cache").fetch(digest, store)
    assert (failed.value.code, failed.value.may_pass) == (code, True)


def test_a_file_where_the_cache_should_be(store: LocalArtifactStore, tmp_path: Path) -> None:
    """Said, and no traceback."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(NodeFailure) as failed:
        Cache(tmp_path / "cache").fetch(keep_artifact(store, "weights"), store)
    assert failed.value.code == "NODE_CACHE_UNUSABLE"


def test_what_is_no_digest_has_no_path(tmp_path: Path) -> None:
    """Nothing from outside becomes part of a path unchecked."""
    with pytest.raises(ValueError, match="no digest"):
        Cache(tmp_path).path("sha256:../../etc")


def test_two_fetches_at_once_share_the_room(store: LocalArtifactStore, tmp_path: Path) -> None:
    """The second one knows what the first will take up, though it is not there yet."""
    digests = [keep_artifact(store, letter * 40) for letter in "ab"]
    cache = Cache(tmp_path / "cache", max_bytes=500)

    class Overtaken(FlakyOrigin):
        def read(self, digest: str, name: str, **options: Any) -> Iterator[bytes]:
            if name == WEIGHTS_FILE:
                with pytest.raises(NodeFailure) as failed:
                    cache.fetch(digests[1], store)
                assert failed.value.code == "NODE_CACHE_FULL"
            return super().read(digest, name, **options)

    cache.fetch(digests[0], Overtaken(store), keep=lambda: set(digests))
    assert cache.digests() == {digests[0]}
    cache.fetch(digests[1], store)
    assert cache.digests() == {digests[1]}


def test_the_cache_knows_its_own_places(tmp_path: Path) -> None:
    """A path tells the digest of the artifact there only if an artifact of this cache lies there, or would."""
    cache = Cache(tmp_path / "cache")
    digest = f"sha256:{'a' * 64}"
    assert cache.digest_at(str(cache.path(digest))) == digest
    elsewhere = (None, "", str(tmp_path / "sha256" / ("a" * 64)), f"{cache.path(digest)}/inside", str(cache.root))
    assert [cache.digest_at(path) for path in elsewhere] == [None] * len(elsewhere)


def test_room_is_not_asked_for_while_there_is_some(tmp_path: Path) -> None:
    """What must stay, which an engine may have to tell, is asked for only if something has to go."""
    store = LocalArtifactStore(tmp_path / "store")

    def keep() -> set[str]:
        raise AssertionError("asked")

    assert Cache(tmp_path / "cache").fetch(keep_artifact(store, "one"), store, keep=keep).is_dir()


def test_the_engines_user_may_read_the_cache_whatever_the_umask(store: LocalArtifactStore, tmp_path: Path) -> None:
    """An agent that was started under a strict umask has an engine of another user beside it."""
    digest = keep_artifact(store, "weights")
    cache, before = Cache(tmp_path / "cache"), os.umask(0o077)
    try:
        path = cache.fetch(digest, store)
        NoteFiles(cache.root).remember(make_record())
    finally:
        os.umask(before)
    for directory in (cache.root, path.parent, path, cache.root / "served"):
        assert stat.S_IMODE(directory.stat().st_mode) & 0o555 == 0o555, directory


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_who_may_only_read_the_cache_has_what_is_in_it() -> None:
    """The plug-in runs as the engine's user, and looks for what the agent fetched."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        store = LocalArtifactStore(Path(directory) / "store")
        digests = [keep_artifact(store, content) for content in ("here", "elsewhere")]
        Cache(Path(directory) / "cache").fetch(digests[0], store)
        readers = Cache(Path(directory) / "cache")
        os.seteuid(65534)
        try:
            assert readers.fetch(digests[0], store) == readers.path(digests[0])
            assert readers.find(digests[0]) == str(readers.path(digests[0]))
            with pytest.raises(NodeFailure) as failed:
                readers.fetch(digests[1], store)
        finally:
            os.seteuid(0)
    assert failed.value.code == "NODE_CACHE_UNUSABLE"


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_a_rename_that_a_power_failure_took_back_is_done_again_without_root() -> None:
    """All three files are whole and read-only in staging, the manifest, too: an agent that is not root goes on."""
    with tempfile.TemporaryDirectory() as directory:
        os.chown(directory, 65534, 65534)
        os.seteuid(65534)
        try:
            store = LocalArtifactStore(Path(directory) / "store")
            digest = keep_artifact(store, "weights")
            path = Cache(Path(directory) / "cache").fetch(digest, store)
            path.chmod(0o755)
            path.rename(Path(directory) / "cache" / "staging" / path.name)
            assert (Cache(Path(directory) / "cache").fetch(digest, store) / WEIGHTS_FILE).read_bytes() == b"weights"
        finally:
            os.seteuid(0)


def test_the_beginnings_of_broken_fetches_count_and_make_room(store: LocalArtifactStore, tmp_path: Path) -> None:
    """They are kept to go on from, but not for ever, nor beyond what the cache may hold."""
    begun, wanted = keep_artifact(store, "a" * 200), keep_artifact(store, "b" * 200)
    cache = Cache(tmp_path / "cache", max_bytes=600)
    with pytest.raises(NodeFailure):
        cache.fetch(begun, FlakyOrigin(store, 150))
    beginning = cache.root / "staging" / begun.removeprefix("sha256:")
    assert beginning.is_dir()
    cache.fetch(wanted, store)
    assert not beginning.exists()


def test_a_stray_file_among_the_artifacts_is_none(store: LocalArtifactStore, tmp_path: Path) -> None:
    """Somebody's own file stops no fetch, and is left alone."""
    digest = keep_artifact(store, "weights")
    cache = Cache(tmp_path / "cache", max_bytes=10_000)
    (cache.root / "sha256").mkdir(parents=True)
    (cache.root / "sha256" / "notes.txt").write_text("mine")
    cache.fetch(digest, store)
    assert cache.digests() == {digest}
    assert (cache.root / "sha256" / "notes.txt").is_file()


def test_a_cache_is_one_agents(tmp_path: Path) -> None:
    """Two would remove what only the other's engine reads; when the first has ended the next may begin."""
    cache = Cache(tmp_path / "cache")
    with (
        cache.of_one_agent(),
        pytest.raises(Configuration, match="another agent"),
        Cache(tmp_path / "cache").of_one_agent(),
    ):
        pass
    with Cache(tmp_path / "cache").of_one_agent():
        pass


def test_one_of_two_threads_fetches_an_artifact(store: LocalArtifactStore, tmp_path: Path) -> None:
    """Several requests for a name that the engine does not know yet ask for it at once."""
    digest, both = keep_artifact(store, "weights"), threading.Barrier(2)
    origin = FlakyOrigin(store)

    def fetch() -> None:
        both.wait()
        Cache(tmp_path / "cache").fetch(digest, origin)

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert origin.offsets == [0]


def test_fetches_leave_nothing_behind(store: LocalArtifactStore, tmp_path: Path) -> None:
    """What keeps others out meanwhile is one file, however many artifacts come and go."""
    cache = Cache(tmp_path / "cache")
    left = []
    for content in "ab":
        cache.fetch(keep_artifact(store, content), store)
        left.append([path.name for path in (cache.root / "staging").iterdir()])
    assert left == [["lock"], ["lock"]]
