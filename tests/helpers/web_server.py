"""A web server on loopback, over TLS if wanted: it serves bytes by path, in ranges, and redirects as it is told."""

from __future__ import annotations

import hashlib
import re
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class WebServer:
    """A server in a thread.

    Args:
        tls: how it shows who it is; None: it speaks plain HTTP.

    Attributes:
        files: path → content.
        redirects: path → where it leads, with 302.
        statuses: path → status to answer with instead.
        asked: (method, path, Host header) of every request.
        ignore_ranges: answer every request with the whole file.
        send_etags: say what the bytes hash to; else only when they were written.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.statuses: dict[str, int] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.ignore_ranges = False
        self.send_etags = True
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"web": self}))
        if tls is not None:  # each connection's thread shakes hands
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="web", daemon=True).start()

    @property
    def port(self) -> int:
        """Its port on 127.0.0.1."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing on standard error when a client hangs up, as one does that is shown a wrong certificate."""


class _Handler(BaseHTTPRequestHandler):
    web: WebServer

    def do_GET(self) -> None:
        """Answer."""
        self.web.asked.append((self.command, self.path, self.headers.get("Host", "")))
        if self.path in self.web.redirects:
            return self._send(302, b"", {"Location": self.web.redirects[self.path]})
        content = self.web.files.get(self.path)
        status = self.web.statuses.get(self.path, 404 if content is None else 200)
        if content is None or status != 200:
            return self._send(status, b"", {})
        etag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
        headers = {"ETag": etag} if self.web.send_etags else {"Last-Modified": "Sun, 01 Nov 2026 12:00:00 GMT"}
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        if asked is None or self.web.ignore_ranges:
            return self._send(200, content, headers)
        first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self._send(206, content[first : last + 1], headers)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on standard error."""

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
