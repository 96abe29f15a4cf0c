"""HTTP requests to addresses that a publisher chose, which must not become requests into the operator's own network.

A host's name is resolved once, all its addresses are checked, and the connection is made to one of the checked ones;
so a name that means another address a moment later (DNS rebinding) changes nothing; a certificate must be for the name
all the same. Redirects are followed one by one,
each as checked as the first. Proxies of the environment are not used: they would resolve the name anew.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from lora_registry import source_codes
from lora_registry.errors import RegistryError, Transient
from lora_workers.sources.remote import printable, rejected

_MOST_REDIRECTS: Final = 5
_TIMEOUT_S = 30.0
_REDIRECTS = {301, 302, 303, 307, 308}
_NAT64 = IPv6Network("64:ff9b::/96")
_PORTS = {"http": 80, "https": 443}

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address
ResolveHost = Callable[[str, int], Sequence[str]]


def resolve_host(host: str, port: int) -> Sequence[str]:
    """All addresses of a host."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


class GuardedHttp:
    """A client for foreign URLs.

    Args:
        schemes: which of `http` and `https` may be used, in redirects as well.
        allowed: networks that may be called although they are not public.
        resolve: asks for the addresses of a host.
    """

    def __init__(
        self, schemes: Sequence[str], *, allowed: Sequence[Network] = (), resolve: ResolveHost = resolve_host
    ) -> None:
        self._schemes = frozenset(schemes)
        self._allowed = tuple(allowed)
        self._resolve = resolve
        self._tls = ssl.create_default_context()

    @contextmanager
    def request(self, url: str, *, method: str = "GET", headers: dict[str, str]) -> Iterator[HTTPResponse]:
        """Open a URL; an answer that is no redirect is handed out, whatever its status.

        Raises:
            Rejected: the URL, or one that it redirects to, is not legal or leads to a forbidden address, or to a server
                whose certificate is not trusted.
            Transient: the host is out of reach.
        """
        for _ in range(_MOST_REDIRECTS + 1):
            connection, target = self._connect(url)
            with _closing(connection, url):
                connection.request(method, target, headers={"Accept-Encoding": "identity", **headers})
                with closing(connection.getresponse()) as response:
                    if response.status not in _REDIRECTS:
                        yield response
                        return
                    url = urljoin(url, response.headers.get("Location", ""))
        raise rejected(source_codes.REDIRECTS_ENDLESS, printable(url))

    def _connect(self, url: str) -> tuple[HTTPConnection, str]:
        parts, port = self._split(url)
        host = str(parts.hostname)
        address = self._checked_address(host, port)
        connection = _Pinned(host, port, address, self._tls if parts.scheme == "https" else None)
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + (f"?{parts.query}" if parts.query else "")
        return connection, target

    def _split(self, url: str) -> tuple[SplitResult, int]:
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError as error:
            raise rejected(source_codes.SOURCE_URL_INVALID, printable(url)) from error
        if parts.scheme not in self._schemes:
            raise rejected(source_codes.REDIRECTS_ENDLESS, printable(url))
        if not parts.hostname or parts.username is not None or not url.isprintable() or " " in url:
            raise rejected(source_codes.SOURCE_URL_INVALID, printable(url))
        return parts, port

    def _checked_address(self, host: str, port: int) -> str:
        try:
            found = self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise Transient(f"{host[:200]}: the name cannot be resolved") from error
        for each in found:  # one that is forbidden among them forbids the name: which is taken would be chance
            if not self._is_allowed(ip_address(each.partition("%")[0])):
                raise rejected(source_codes.ADDRESS_FORBIDDEN, host[:200], actual=each)
        if not found:
            raise Transient(f"{host[:200]}: the name has no address")
        return found[0]

    def _is_allowed(self, address: Address) -> bool:
        inner = _inner(address)
        return is_public(inner) or any(inner in network for network in self._allowed)


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet, whatever it is wrapped in."""
    inner = _inner(address)
    if isinstance(inner, IPv6Address) and inner.is_site_local:  # once the private ones, and still global to ipaddress
        return False
    return inner.is_global and not inner.is_multicast and not inner.is_reserved and not inner.is_unspecified


def _inner(address: Address) -> Address:
    """The IPv4 address inside of an IPv6 one that is only a way to write it, or to reach it."""
    if isinstance(address, IPv4Address):
        return address
    wrapped = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
    if wrapped is None and address in _NAT64:
        wrapped = IPv4Address(int(address) & 0xFFFFFFFF)
    return wrapped or address


class _Pinned(HTTPConnection):
    """A connection to a checked address, under the host's name."""

    def __init__(self, host: str, port: int, address: str, tls: ssl.SSLContext | None) -> None:
        super().__init__(host, port, timeout=_TIMEOUT_S)
        self._address = address
        self._tls = tls
        if tls is not None:
            self.default_port = _PORTS["https"]  # the Host header leaves it out, then

    def connect(self) -> None:
        """Connect to the address, not to the name."""
        self.sock = socket.create_connection((self._address, self.port), timeout=_TIMEOUT_S)
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)


@contextmanager
def _closing(connection: HTTPConnection, url: str) -> Iterator[None]:
    try:
        yield
    except RegistryError:
        raise
    except ssl.SSLCertVerificationError as error:  # the next try would be shown the same one
        subject, reason = printable(url), error.verify_message[:200]
        raise rejected(source_codes.CERTIFICATE_REFUSED, subject, actual=reason) from error
    except (OSError, HTTPException, ValueError) as error:
        raise Transient(f"{printable(url)}: out of reach ({type(error).__name__})") from error
    finally:
        connection.close()
