"""Web servers and fsspec's other schemes as sources: only where they are allowed, and never into the own network."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path

import fsspec
import pytest

from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE
from lora_registry.errors import Configuration, RateLimited, Transient
from lora_registry.settings import Settings, load_settings
from lora_workers.sources import SourceRouter, open_sources
from lora_workers.sources.guarded_http import GuardedHttp, is_public
from tests.helpers.certificates import Authority
from tests.helpers.sources import CONFIG, WEIGHTS, deferral, make_sources, rejection, unique
from tests.helpers.web_server import WebServer

LOOPBACK = ip_network("127.0.0.1/32")
MakeTlsWeb = Callable[[ssl.SSLContext], WebServer]


@pytest.fixture
def web() -> Iterator[WebServer]:
    """A server with an adapter in the folder /adapter."""
    server = WebServer()
    server.files = {f"/adapter/{CONFIG_FILE}": CONFIG, f"/adapter/{WEIGHTS_FILE}": WEIGHTS}
    yield server
    server.close()


@pytest.fixture
def sources(tmp_path: Path) -> SourceRouter:
    """Sources whose operator allows http to this machine."""
    return make_sources(tmp_path, allowed_schemes="http", allowed_networks="127.0.0.1")


def url(web: WebServer, path: str = "/adapter", *, host: str = "127.0.0.1") -> str:
    """A URL of the server."""
    return f"http://{host}:{web.port}{path}"


@pytest.mark.parametrize("send_etags", [True, False])
def test_adapter_on_a_web_server_is_read_in_ranges_and_copied(
    web: WebServer, sources: SourceRouter, tmp_path: Path, send_etags: bool
) -> None:
    """By name, since there is nothing to list."""
    web.send_etags = send_etags
    pinned = sources.resolve(url(web))
    assert sources.read(pinned.config, limit_bytes=100_000) == CONFIG
    with sources.ranged(pinned.weights) as read:
        assert read(8, 100) == WEIGHTS[8:108]
        assert read(len(WEIGHTS) - 5, 100) == WEIGHTS[-5:]
    copied = sources.copy(pinned.weights, str(tmp_path / "copy"))
    assert copied.sha256 == hashlib.sha256(WEIGHTS).hexdigest()


def test_file_that_changed_or_went_is_refused(web: WebServer, sources: SourceRouter, tmp_path: Path) -> None:
    """By its ETag, before and after it is copied."""
    pinned = sources.resolve(url(web))

    def change(_: memoryview) -> None:
        web.files[f"/adapter/{WEIGHTS_FILE}"] = WEIGHTS[:-1] + b"x"

    copy = lambda: sources.copy(pinned.weights, str(tmp_path / "copy"), tap=change)  # noqa: E731
    assert rejection(copy).code == "SOURCE_CHANGED"
    assert rejection(copy).code == "SOURCE_CHANGED"
    del web.files[f"/adapter/{CONFIG_FILE}"]
    assert rejection(lambda: sources.read(pinned.config, limit_bytes=100)).code == "SOURCE_CHANGED"


def test_each_answer_has_its_meaning(web: WebServer, sources: SourceRouter) -> None:
    """Missing may still come; forbidden will not; too many and broken are tried again."""
    path = f"/adapter/{WEIGHTS_FILE}"
    pinned = sources.resolve(url(web))
    web.ignore_ranges = True
    with sources.ranged(pinned.weights) as read:
        assert rejection(lambda: read(8, 100)).code == "RANGES_UNSUPPORTED"
    web.statuses[path] = 404
    assert deferral(lambda: sources.resolve(url(web))).findings[0].code == "FILE_MISSING"
    web.statuses[path] = 403
    assert rejection(lambda: sources.resolve(url(web))).code == "STORE_ACCESS_DENIED"
    web.statuses[path] = 400
    assert rejection(lambda: sources.resolve(url(web))).code == "SOURCE_NOT_FOUND"
    web.statuses[path] = 429
    with pytest.raises(RateLimited):
        sources.resolve(url(web))
    web.statuses[path] = 503
    with pytest.raises(Transient, match="503"):
        sources.resolve(url(web))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]", "0"])
def test_own_network_is_not_called_unless_it_is_allowed(web: WebServer, tmp_path: Path, host: str) -> None:
    """However the address is written; not one byte is sent to it."""
    guarded = make_sources(tmp_path, allowed_schemes="http")
    assert rejection(lambda: guarded.resolve(url(web, host=host))).code == "ADDRESS_FORBIDDEN"
    assert web.asked == []


def test_redirect_into_the_own_network_is_not_followed(web: WebServer) -> None:
    """Each hop is checked: a public server may send anywhere."""
    private = WebServer()
    private.files = dict(web.files)
    web.redirects = {path: f"http://private.example:{private.port}{path}" for path in web.files}
    addresses = {"public.example": ["127.0.0.1"], "private.example": ["127.0.0.2"]}
    http = GuardedHttp(["http"], allowed=[LOOPBACK], resolve=lambda host, _: addresses[host])
    path = f"/adapter/{CONFIG_FILE}"

    def ask() -> None:
        with http.request(url(web, path, host="public.example"), headers={}):
            raise AssertionError("answered")

    assert rejection(ask).code == "ADDRESS_FORBIDDEN"
    assert len(web.asked) == 1
    assert private.asked == []
    private.close()


def test_redirects_end_and_keep_their_scheme(web: WebServer) -> None:
    """A circle is given up; https does not become http, nor anything a file."""
    path = f"/adapter/{CONFIG_FILE}"
    http = GuardedHttp(["http"], allowed=[LOOPBACK])

    def ask() -> None:
        with http.request(url(web, path), headers={}):
            raise AssertionError("answered")

    for target in (path, "file:///etc/passwd", "ftp://127.0.0.1/", f"https://127.0.0.1:{web.port}/"):
        web.redirects = {path: target}
        assert rejection(ask).code == "REDIRECTS_ENDLESS"
    web.redirects = {path: "/elsewhere"}
    web.files["/elsewhere"] = b"here"
    with http.request(url(web, path), headers={}) as response:
        assert response.read() == b"here"


def test_name_that_means_another_address_a_moment_later_changes_nothing(web: WebServer) -> None:
    """The connection goes to the address that was checked, and the name is asked for once for each request."""
    answers = [["127.0.0.1"], ["127.0.0.2"]]
    asked: list[str] = []

    def rebinding(host: str, _: int) -> Sequence[str]:
        asked.append(host)
        return answers[min(len(asked), 2) - 1]

    http = GuardedHttp(["http"], allowed=[LOOPBACK], resolve=rebinding)
    with http.request(url(web, f"/adapter/{CONFIG_FILE}", host="rebind.example"), headers={}) as response:
        assert response.read() == CONFIG
    assert asked == ["rebind.example"]
    assert web.asked[0][2] == f"rebind.example:{web.port}"

    def ask() -> None:
        with http.request(url(web, f"/adapter/{CONFIG_FILE}", host="rebind.example"), headers={}):
            raise AssertionError("answered")

    assert rejection(ask).code == "ADDRESS_FORBIDDEN"


def test_one_forbidden_address_among_several_forbids_the_name(web: WebServer) -> None:
    """Which of them would be taken is chance."""
    http = GuardedHttp(["http"], allowed=[LOOPBACK], resolve=lambda *_: ["127.0.0.1", "10.0.0.1"])

    def ask() -> None:
        with http.request(url(web, host="both.example"), headers={}):
            raise AssertionError("answered")

    assert rejection(ask).code == "ADDRESS_FORBIDDEN"


@pytest.mark.parametrize(
    "address",
    [
        "10.1.2.3", "172.16.0.1", "192.168.0.1", "127.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "198.18.0.1", "192.0.2.1", "240.0.0.1", "::", "::1", "fe80::1", "fc00::1", "ff02::1",
        "fec0::1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a00:1", "2002:a00:1::", "2001:db8::1",
    ],
)  # fmt: skip
def test_address_that_is_not_of_the_open_internet_is_not_public(address: str) -> None:
    """Private, loopback, link-local (where clouds answer with keys), shared, multicast, reserved, and all wrappings."""
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_address_of_the_open_internet_is_public(address: str) -> None:
    """And may be called."""
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "suffix", ["user:pw@127.0.0.1/a", "127.0.0.1/a/../b", "127.0.0.1/a?b=c", "127.0.0.1/a#b", "/a", "127.0.0.1:x/a"]
)
def test_url_that_is_not_one_is_refused(sources: SourceRouter, suffix: str) -> None:
    """Nothing of it becomes part of a request; a password in it is not told."""
    finding = rejection(lambda: sources.resolve(f"http://{suffix}"))
    assert finding.code == "SOURCE_URL_INVALID"
    assert "pw" not in finding.model_dump_json()


def test_host_that_cannot_be_reached_is_tried_again(sources: SourceRouter) -> None:
    """A connection that is refused says nothing about the adapter."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Transient, match="out of reach"):
        sources.resolve(f"http://127.0.0.1:{port}/a")


# Over TLS


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority of the test's own."""
    return Authority(tmp_path)


@pytest.fixture
def make_tls_web() -> Iterator[MakeTlsWeb]:
    """Makes servers with an adapter in the folder /adapter."""
    made: list[WebServer] = []

    def make(tls: ssl.SSLContext) -> WebServer:
        made.append(WebServer(tls=tls))
        made[-1].files = {f"/adapter/{CONFIG_FILE}": CONFIG, f"/adapter/{WEIGHTS_FILE}": WEIGHTS}
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_adapter_over_tls(
    authority: Authority, make_tls_web: MakeTlsWeb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authority that SSL_CERT_FILE names is trusted, and the adapter is read and copied."""
    web = make_tls_web(authority.server("127.0.0.1"))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    sources = make_sources(tmp_path, allowed_schemes="https", allowed_networks="127.0.0.1")
    pinned = sources.resolve(f"https://127.0.0.1:{web.port}/adapter")
    assert sources.read(pinned.config, limit_bytes=100_000) == CONFIG
    with sources.ranged(pinned.weights) as read:
        assert read(8, 100) == WEIGHTS[8:108]
    copied = sources.copy(pinned.weights, str(tmp_path / "copy"))
    assert copied.sha256 == hashlib.sha256(WEIGHTS).hexdigest()


def test_certificate_of_an_unknown_authority_is_refused(
    authority: Authority, make_tls_web: MakeTlsWeb, tmp_path: Path
) -> None:
    """The publisher is told so, at once and with what to do; not one request is sent."""
    web = make_tls_web(authority.server("127.0.0.1"))
    sources = make_sources(tmp_path, allowed_schemes="https", allowed_networks="127.0.0.1")
    finding = rejection(lambda: sources.resolve(f"https://127.0.0.1:{web.port}/adapter"))
    assert (finding.code, finding.actual) == ("CERTIFICATE_REFUSED", "unable to get local issuer certificate")
    assert "SSL_CERT_FILE" in finding.remedy
    assert web.asked == []


@pytest.mark.parametrize(
    ("hosts", "ended_days_ago", "reason"),
    [
        (["adapters.example"], -1, ""),
        (["other.example"], -1, "Hostname mismatch"),
        (["127.0.0.1"], -1, "Hostname mismatch"),
        (["adapters.example"], 1, "certificate has expired"),
    ],
)
def test_certificate_is_for_the_name_although_the_address_is_pinned(
    authority: Authority,
    make_tls_web: MakeTlsWeb,
    monkeypatch: pytest.MonkeyPatch,
    hosts: Sequence[str],
    ended_days_ago: int,
    reason: str,
) -> None:
    """One for another name, for the address that was connected to, or for a time that is over opens nothing."""
    web = make_tls_web(authority.server(*hosts, ended_days_ago=ended_days_ago))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    http = GuardedHttp(["https"], allowed=[LOOPBACK], resolve=lambda *_: ["127.0.0.1"])

    def ask() -> bytes:
        place = f"https://adapters.example:{web.port}/adapter/{CONFIG_FILE}"
        with http.request(place, headers={}) as response:
            return response.read()

    if not reason:
        assert ask() == CONFIG
        return
    finding = rejection(ask)
    assert finding.code == "CERTIFICATE_REFUSED"
    assert str(finding.actual).startswith(reason)
    assert web.asked == []


def test_server_that_speaks_no_tls_is_tried_again(web: WebServer, tmp_path: Path) -> None:
    """It may be starting, or behind a proxy that is: nothing is wrong with a certificate."""
    sources = make_sources(tmp_path, allowed_schemes="https", allowed_networks="127.0.0.1")
    with pytest.raises(Transient, match="SSLError"):
        sources.resolve(f"https://127.0.0.1:{web.port}/adapter")
    assert web.asked == []


# Other schemes


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder in fsspec's memory with an adapter."""
    files, folder = fsspec.filesystem("memory"), f"/{unique()}"
    files.pipe_file(f"{folder}/{CONFIG_FILE}", CONFIG)
    files.pipe_file(f"{folder}/{WEIGHTS_FILE}", WEIGHTS)
    yield f"memory:/{folder}"
    files.rm(folder, recursive=True)


def test_allowed_scheme_of_fsspec_is_a_source(memory: str, tmp_path: Path) -> None:
    """Listed, pinned, read in ranges and copied; what changed is refused."""
    sources = make_sources(tmp_path, allowed_schemes="memory")
    pinned = sources.resolve(memory)
    assert sources.read(pinned.config, limit_bytes=100_000) == CONFIG
    with sources.ranged(pinned.weights) as read:
        assert read(8, 100) == WEIGHTS[8:108]
    copied = sources.copy(pinned.weights, str(tmp_path / "copy"))
    assert copied.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    fsspec.filesystem("memory").pipe_file(f"{memory.removeprefix('memory:/')}/{WEIGHTS_FILE}", WEIGHTS)
    assert rejection(lambda: sources.copy(pinned.weights, str(tmp_path / "copy"))).code == "SOURCE_CHANGED"
    assert deferral(lambda: sources.resolve(f"{memory}-nowhere")).findings[0].code == "FILE_MISSING"


def test_refusal_of_a_store_is_told_apart_from_its_absence(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries raise errors of their own with the status: adlfs 403 for a wrong key, which no later try mends."""
    sources = make_sources(tmp_path, allowed_schemes="memory")

    class HttpResponseError(Exception):
        status_code = 403

    def refuse(*_: object, **__: object) -> None:
        raise HttpResponseError("Server failed to authenticate the request")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "ls", refuse)
    assert rejection(lambda: sources.resolve(memory)).code == "STORE_ACCESS_DENIED"
    HttpResponseError.status_code = 503
    with pytest.raises(Transient, match="out of reach"):
        sources.resolve(memory)


@pytest.mark.parametrize(
    "scheme",
    ["memory", "local", "github", "git", "zip", "tar", "simplecache", "filecache", "ftp", "sftp", "smb", "data",
     "http", "https", "gs", "az", "reference", "libarchive", "jupyter", "dir", "File", "S3", "hf::memory", ""],
)  # fmt: skip
def test_scheme_that_is_not_allowed_opens_nothing(scheme: str, memory: str) -> None:
    """fsspec would open all of them."""
    sources = open_sources(Settings())
    assert rejection(lambda: sources.resolve(memory.replace("memory", scheme, 1))).code == "SOURCE_UNSUPPORTED"


@pytest.mark.parametrize(
    "form", ["memory://a::file:///etc", "memory://simplecache::file:///etc/passwd", "memory://a/../b"]
)
def test_chain_behind_an_allowed_scheme_is_refused(form: str, tmp_path: Path) -> None:
    """An allowed scheme is no door to the others."""
    sources = make_sources(tmp_path, allowed_schemes="memory")
    assert rejection(lambda: sources.resolve(form)).code == "SOURCE_URL_INVALID"


@pytest.mark.parametrize("schemes", ["local", "file,Local", "a b", "::", "file::s3"])
def test_scheme_that_cannot_be_allowed_fails_at_start(schemes: str) -> None:
    """Local files are a matter of SOURCE_ROOTS."""
    with pytest.raises(Configuration, match="ALLOWED_SCHEMES"):
        load_settings(allowed_schemes=schemes)


def test_scheme_without_a_library_fails_at_start(tmp_path: Path) -> None:
    """What the operator allowed and nobody can open is said before anything is registered."""
    with pytest.raises(Configuration, match="no-such"):
        make_sources(tmp_path, allowed_schemes="no-such")
