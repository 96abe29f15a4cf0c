"""A proxy on loopback that counts: requests, and bytes that come back, headers included."""

from __future__ import annotations

import socket
import threading

_METHODS = (b"GET ", b"HEAD ", b"PUT ", b"POST ", b"DELETE ")


class CountingProxy:
    """Passes connections on to one server.

    Args:
        port: where the server listens on 127.0.0.1.

    Attributes:
        requests: HTTP requests that were passed on. A request begins where a client begins to send.
        received_bytes: bytes that the server answered with.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self.requests = 0
        self.received_bytes = 0
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def reset(self) -> None:
        """Count from nothing."""
        self.requests = self.received_bytes = 0

    def close(self) -> None:
        """Take no more connections."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._to))
            for source, target, is_client in ((client, server, True), (server, client, False)):
                arguments = (source, target, is_client)
                threading.Thread(target=self._pass_on, args=arguments, name="proxy", daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_client: bool) -> None:
        try:
            while chunk := source.recv(1 << 16):
                if is_client:
                    self.requests += chunk.startswith(_METHODS)
                else:
                    self.received_bytes += len(chunk)
                target.sendall(chunk)
        except OSError:
            pass
        for each in (source, target):
            each.close()
