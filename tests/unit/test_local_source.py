"""Local directories: nothing outside the roots, nothing but regular files, and only the bytes that were pinned."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.adapters import codes_of

from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE, FileDigest
from lora_registry.errors import Deferred, Rejected, Transient
from lora_registry.readiness import Readiness
from lora_registry.registrations import dump_findings
from lora_registry.settings import Settings
from lora_registry.sources import PinnedFile, PinnedSource
from lora_workers.sources import open_sources
from lora_workers.sources.local import LocalSource

CONFIG = b'{"r":8}'
WEIGHTS = b"weights" * 1000
LONG_AGO_NS = 1_600_000_000_000_000_000
"""When the files were written: a later change shows, however coarse the file system's clock."""


def write_files(directory: Path, **files: bytes) -> Path:
    """A directory with an adapter's two files, written long ago."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in {CONFIG_FILE: CONFIG, WEIGHTS_FILE: WEIGHTS, **files}.items():
        path = directory / name
        path.write_bytes(content)
        os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
    return directory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The one allowed root."""
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def source(root: Path) -> LocalSource:
    """A source that allows the root."""
    return LocalSource([root])


def rejection(action: Callable[[], Any]) -> str:
    """The code of the one finding that the action is rejected with."""
    with pytest.raises(Rejected) as rejected:
        action()
    dump_findings(rejected.value.findings).encode()  # the ledger can keep it
    return codes_of(rejected.value.findings)[0]


def test_adapter_under_a_root_is_pinned_read_and_copied(source: LocalSource, root: Path, tmp_path: Path) -> None:
    """Both files are found, and their bytes come as they are, with size and digest."""
    directory = write_files(root / "a" / "b")
    pinned = source.resolve(str(directory))
    assert pinned.scheme == "file"
    assert (pinned.config.size_bytes, pinned.weights.size_bytes) == (len(CONFIG), len(WEIGHTS))
    assert source.read(pinned.config, limit_bytes=100) == CONFIG
    copied = source.copy(pinned.weights, str(tmp_path / "copy"))
    assert copied == FileDigest(hashlib.sha256(WEIGHTS).hexdigest(), len(WEIGHTS))
    assert (tmp_path / "copy").read_bytes() == WEIGHTS


def test_pin_survives_the_ledger(source: LocalSource, root: Path, tmp_path: Path) -> None:
    """What another worker reads back from the ledger leads to the same bytes."""
    pinned = PinnedSource.from_json(source.resolve(str(write_files(root / "a"))).to_json())
    assert source.copy(pinned.weights, str(tmp_path / "copy")).size_bytes == len(WEIGHTS)


@pytest.mark.parametrize("form", ["{}", "file://{}", "{}/", "{}/.", "{}/../a", "/.{}"])
def test_one_directory_has_many_names(source: LocalSource, root: Path, form: str) -> None:
    """Each way to write it leads to the same files, as long as that is inside."""
    directory = write_files(root / "a")
    assert source.resolve(form.format(directory)) == source.resolve(str(directory))


def test_root_itself_may_be_a_link(tmp_path: Path, root: Path) -> None:
    """Operators mount and link; the root is where it really is."""
    (tmp_path / "link").symlink_to(root)
    write_files(root / "a")
    assert LocalSource([tmp_path / "link"]).resolve(str(tmp_path / "link" / "a"))
    assert LocalSource([tmp_path / "link"]).resolve(str(root / "a"))


def test_link_inside_the_roots_is_followed(source: LocalSource, root: Path, tmp_path: Path) -> None:
    """The hub's cache links from its snapshots to its blobs: directory and files may be links to what is inside."""
    blobs = write_files(root / "blobs")
    snapshot = root / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (snapshot / name).symlink_to(Path("..") / ".." / "blobs" / name)
    (root / "latest").symlink_to(snapshot)
    pinned = source.resolve(str(root / "latest"))
    assert pinned == source.resolve(str(blobs))
    assert source.copy(pinned.weights, str(tmp_path / "copy")).size_bytes == len(WEIGHTS)


@pytest.mark.parametrize(
    "form", ["{outside}", "{root}/../outside", "{root}x", "{root}/../root/../outside", "/", "/etc"]
)
def test_directory_outside_the_roots_is_rejected(source: LocalSource, root: Path, tmp_path: Path, form: str) -> None:
    """Neither another directory, nor `..`, nor one whose name only begins like the root's."""
    outside = write_files(tmp_path / "outside")
    write_files(Path(f"{root}x"))
    assert rejection(lambda: source.resolve(form.format(root=root, outside=outside))) == "SOURCE_OUTSIDE_ROOTS"


def test_without_roots_nothing_is_allowed(root: Path) -> None:
    """No setting, no local source."""
    write_files(root / "a")
    assert rejection(lambda: LocalSource([]).resolve(str(root / "a"))) == "SOURCE_OUTSIDE_ROOTS"


def test_link_out_of_the_roots_is_rejected(source: LocalSource, root: Path, tmp_path: Path) -> None:
    """A link to a directory outside, however many links lead to it."""
    write_files(tmp_path / "outside")
    (root / "one").symlink_to(tmp_path / "outside")
    (root / "two").symlink_to("one")
    assert rejection(lambda: source.resolve(str(root / "one"))) == "SOURCE_OUTSIDE_ROOTS"
    assert rejection(lambda: source.resolve(str(root / "two"))) == "SOURCE_OUTSIDE_ROOTS"


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_file_that_links_out_of_the_roots_is_rejected(
    source: LocalSource, root: Path, tmp_path: Path, name: str
) -> None:
    """A file of the worker's own is not read through an adapter: its name is all that is said."""
    secret = write_files(tmp_path / "outside") / name
    directory = write_files(root / "a")
    (directory / name).unlink()
    (directory / name).symlink_to(secret)
    assert rejection(lambda: source.resolve(str(directory))) == "SOURCE_OUTSIDE_ROOTS"


def test_link_that_leads_to_itself_is_rejected(source: LocalSource, root: Path) -> None:
    """A loop ends at once, as a directory and as a file."""
    (root / "loop").symlink_to("loop")
    assert rejection(lambda: source.resolve(str(root / "loop"))) == "FILE_NOT_REGULAR"
    directory = write_files(root / "a")
    (directory / WEIGHTS_FILE).unlink()
    (directory / WEIGHTS_FILE).symlink_to(WEIGHTS_FILE)
    assert rejection(lambda: source.resolve(str(directory))) == "FILE_NOT_REGULAR"


def make_fifo(path: Path) -> None:
    """A pipe that nobody writes to."""
    os.mkfifo(path)


def make_device(path: Path) -> None:
    """A device without an end, by a link (the test's source allows /dev)."""
    path.symlink_to("/dev/zero")


def make_directory(path: Path) -> None:
    """A directory in a file's place."""
    path.mkdir()


@pytest.mark.parametrize("make", [make_fifo, make_device, make_directory])
@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_what_is_no_regular_file_is_rejected(root: Path, make: Callable[[Path], None], name: str) -> None:
    """No pipe is waited for, no device read, no directory opened."""
    directory = write_files(root / "a")
    (directory / name).unlink()
    make(directory / name)
    source = LocalSource([root, Path("/dev")])
    assert rejection(lambda: source.resolve(str(directory))) == "FILE_NOT_REGULAR"


@pytest.mark.parametrize("make", [make_fifo, make_device, make_directory])
def test_what_takes_the_place_of_a_pinned_file_is_rejected(
    root: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """After it was pinned, too: opening does not wait, and does not follow a link."""
    directory = write_files(root / "a")
    source = LocalSource([root, Path("/dev")])
    pinned = source.resolve(str(directory))
    (directory / WEIGHTS_FILE).unlink()
    make(directory / WEIGHTS_FILE)
    assert rejection(lambda: source.copy(pinned.weights, str(tmp_path / "copy"))) == "FILE_NOT_REGULAR"


def test_missing_directory_is_rejected(source: LocalSource, root: Path) -> None:
    """A path that is not there, a dangling link and a name too long are all not found."""
    (root / "dangling").symlink_to("nothing")
    for name in ("nothing", "dangling", "x" * 300):
        assert rejection(lambda name=name: source.resolve(str(root / name))) == "SOURCE_NOT_FOUND"  # type: ignore[misc]


def test_file_instead_of_the_directory_is_rejected(source: LocalSource, root: Path) -> None:
    """Who names the weights instead of their directory is told so."""
    weights = write_files(root / "a") / WEIGHTS_FILE
    assert rejection(lambda: source.resolve(str(weights))) == "SOURCE_NOT_A_DIRECTORY"
    assert rejection(lambda: source.resolve(str(weights / "deeper"))) == "SOURCE_NOT_A_DIRECTORY"


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_missing_file_is_rejected_by_name(source: LocalSource, root: Path, name: str) -> None:
    """The finding says which of the two is not there."""
    directory = write_files(root / "a")
    (directory / name).unlink()
    with pytest.raises(Rejected) as rejected:
        source.resolve(str(directory))
    assert [(finding.code, finding.subject) for finding in rejected.value.findings] == [("FILE_MISSING", name)]


def test_dangling_file_is_rejected(source: LocalSource, root: Path) -> None:
    """A listed name that leads to nothing, as after an interrupted download."""
    directory = write_files(root / "a")
    (directory / WEIGHTS_FILE).unlink()
    (directory / WEIGHTS_FILE).symlink_to("../blobs/gone")
    assert rejection(lambda: source.resolve(str(directory))) == "SOURCE_NOT_FOUND"


def test_unreadable_file_is_rejected_with_its_mode(
    source: LocalSource, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors writes 0600: the publisher is told the mode, and what to do."""
    directory = write_files(root / "a")
    (directory / WEIGHTS_FILE).chmod(0o600)
    # Root may read everything, and tests may run as root: the kernel's answer for another user stands in.
    monkeypatch.setattr(os, "access", lambda path, _: not str(path).endswith(WEIGHTS_FILE))
    with pytest.raises(Rejected) as rejected:
        source.resolve(str(directory))
    (finding,) = rejected.value.findings
    assert (finding.code, finding.subject, finding.actual) == ("SOURCE_PERMISSION", WEIGHTS_FILE, "mode 0600")


def test_directory_that_may_not_be_listed_is_rejected(
    source: LocalSource, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the system refuses is the publisher's to mend."""
    directory = write_files(root / "a")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")  # as for another user than root

    monkeypatch.setattr(os, "scandir", refuse)
    assert rejection(lambda: source.resolve(str(directory))) == "SOURCE_PERMISSION"


def test_file_system_that_fails_is_a_failure_of_the_world(
    source: LocalSource, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An input error, or a network file system that went away, is retried."""
    pinned = source.resolve(str(write_files(root / "a")))

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")  # which no test can make a disk give

    monkeypatch.setattr(os, "readv", fail)
    with pytest.raises(Transient, match="Input/output error"):
        source.copy(pinned.weights, str(tmp_path / "copy"))


def change_content(path: Path) -> None:
    """Write other bytes of the same length in place."""
    path.write_bytes(bytes(path.stat().st_size))


def replace_file(path: Path) -> None:
    """Put another file with the same bytes and the same time in its place."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(LONG_AGO_NS, LONG_AGO_NS))
    other.replace(path)


def truncate(path: Path) -> None:
    """Cut the last byte off, and hide it behind the old time."""
    os.truncate(path, path.stat().st_size - 1)
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))


def append(path: Path) -> None:
    """Add a byte, and hide it behind the old time."""
    with path.open("ab") as file:
        file.write(b"x")
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))


@pytest.mark.parametrize("change", [change_content, replace_file, truncate, append])
def test_file_that_changed_since_it_was_pinned_is_rejected(
    source: LocalSource, root: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """Between resolve and copy nothing may happen to either file."""
    directory = write_files(root / "a")
    pinned = source.resolve(str(directory))
    change(directory / WEIGHTS_FILE)
    change(directory / CONFIG_FILE)
    assert rejection(lambda: source.copy(pinned.weights, str(tmp_path / "copy"))) == "SOURCE_CHANGED"
    assert rejection(lambda: source.read(pinned.config, limit_bytes=100)) == "SOURCE_CHANGED"


def test_file_that_was_removed_is_rejected(source: LocalSource, root: Path, tmp_path: Path) -> None:
    """It was there when it was pinned."""
    directory = write_files(root / "a")
    pinned = source.resolve(str(directory))
    (directory / WEIGHTS_FILE).unlink()
    assert rejection(lambda: source.copy(pinned.weights, str(tmp_path / "copy"))) == "SOURCE_NOT_FOUND"


def test_file_that_changes_while_it_is_copied_is_rejected(source: LocalSource, root: Path, tmp_path: Path) -> None:
    """A training job that writes on is noticed at the end of the copy."""
    directory = write_files(root / "a", **{WEIGHTS_FILE: bytes(4 << 20)})
    pinned = source.resolve(str(directory))
    target = tmp_path / "target"
    os.mkfifo(target)  # the copy waits here until the test reads on

    def read_and_change() -> None:
        with target.open("rb") as reader:
            reader.read(1)
            append(directory / WEIGHTS_FILE)
            while reader.read(1 << 20):
                pass

    reading = threading.Thread(target=read_and_change)
    reading.start()
    assert rejection(lambda: source.copy(pinned.weights, str(target))) == "SOURCE_CHANGED"
    reading.join(10)


def test_copy_of_a_file_that_grows_all_the_while_ends(source: LocalSource, root: Path, tmp_path: Path) -> None:
    """Else who writes on would fill the disk that all adapters are copied to."""
    weights = write_files(root / "a") / WEIGHTS_FILE
    pinned = source.resolve(str(root / "a"))
    seen = []

    def write_on(chunk: memoryview) -> None:
        seen.append(len(chunk))
        assert len(seen) < 10
        with weights.open("ab") as file:
            file.write(bytes(100))

    assert rejection(lambda: source.copy(pinned.weights, str(tmp_path / "copy"), tap=write_on)) == "SOURCE_CHANGED"


def test_reading_stops_one_byte_after_the_limit(source: LocalSource, root: Path) -> None:
    """A config of gigabytes is not read; its reader sees that it is too large."""
    directory = write_files(root / "a", **{CONFIG_FILE: b"x" * 1000})
    pinned = source.resolve(str(directory))
    assert source.read(pinned.config, limit_bytes=10) == b"x" * 11
    assert source.read(pinned.config, limit_bytes=1000) == b"x" * 1000


def test_adapter_one_folder_deeper_is_named(source: LocalSource, root: Path) -> None:
    """PEFT saves an adapter that has a name of its own in a folder of that name; the finding says which."""
    write_files(root / "a" / "legal")
    (root / "a" / "notes").mkdir()
    with pytest.raises(Rejected) as rejected:
        source.resolve(str(root / "a"))
    assert [(each.code, each.subject) for each in rejected.value.findings] == [("FILES_IN_SUBFOLDER", "legal")]


def test_a_checkpoint_below_does_not_end_the_wait_for_an_upload(root: Path) -> None:
    """Where an upload may still come, what lies below its directory is no answer."""
    write_files(root / "a" / "checkpoint-5")
    with pytest.raises(Deferred):
        LocalSource([root], readiness=Readiness(deadline_s=60)).resolve(str(root / "a"))


HOSTILE_NAMES = [b"\xff\xfe.bin", b"a\nb.bin", b"\x1b[2J.bin", b"'; rm -rf ~;'.bin", b"x" * 251 + b".bin"]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=repr)
def test_hostile_names_in_a_listing_hurt_nothing(source: LocalSource, root: Path, name: bytes) -> None:
    """Names of no encoding, with control characters or quotes, beside an adapter and instead of one."""
    directory = write_files(root / "a")
    (directory / os.fsdecode(name)).write_bytes(b"")
    assert source.resolve(str(directory)).weights.size_bytes == len(WEIGHTS)
    for each in (CONFIG_FILE, WEIGHTS_FILE):
        (directory / each).unlink()
    assert rejection(lambda: source.resolve(str(directory))) == "FORMAT_PICKLE"


def test_listing_without_end_is_cut_off(source: LocalSource, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of millions of files is not read to its end to say that it holds no adapter."""
    listed = 0

    class Entry:
        @property
        def name(self) -> str:
            nonlocal listed
            listed += 1
            return f"file-{listed}"

    class Listing:
        def __enter__(self) -> Listing:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __iter__(self) -> Listing:
            return self

        def __next__(self) -> Entry:
            return Entry()

    (root / "a").mkdir()
    monkeypatch.setattr(os, "scandir", lambda _: Listing())  # so many files would take the test a minute to make
    assert rejection(lambda: source.resolve(str(root / "a"))) == "FILE_MISSING"
    assert listed <= 10_000


@pytest.mark.parametrize("url", ["relative/path", "", "a/b", "file://relative", "/a\0b", "~/adapter"])
def test_path_that_is_not_absolute_is_rejected(source: LocalSource, url: str) -> None:
    """Nothing depends on the worker's own directory."""
    assert rejection(lambda: source.resolve(url)) == "SOURCE_UNSUPPORTED"


@pytest.mark.parametrize("url", ["hf://org/repo", "s3://bucket/prefix", "http://host/", "FILE:///a", "://"])
def test_scheme_that_is_not_configured_is_rejected(root: Path, url: str) -> None:
    """The router says which schemes there are."""
    router = open_sources(Settings(source_roots=(root,), allowed_schemes="file"))
    with pytest.raises(Rejected) as rejected:
        router.resolve(url)
    (finding,) = rejected.value.findings
    assert (finding.code, finding.expected) == ("SOURCE_UNSUPPORTED", "file")


def test_router_hands_local_paths_to_the_local_source(root: Path, tmp_path: Path) -> None:
    """With and without the scheme, and for all three operations."""
    router = open_sources(Settings(source_roots=(root,)))
    directory = write_files(root / "a")
    pinned = router.resolve(f"file://{directory}")
    assert router.resolve(str(directory)) == pinned
    assert router.read(pinned.config, limit_bytes=100) == CONFIG
    assert router.copy(pinned.weights, str(tmp_path / "copy")).size_bytes == len(WEIGHTS)


def test_forged_pin_opens_nothing_else(source: LocalSource, tmp_path: Path) -> None:
    """A pin names a version, and a file of another version is not read."""
    secret = write_files(tmp_path / "outside") / CONFIG_FILE
    forged = PinnedFile(str(secret), "0:0:0:0", 1)
    assert rejection(lambda: source.read(forged, limit_bytes=100)) == "SOURCE_CHANGED"
