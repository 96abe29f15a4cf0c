"""A load generator: `python -m tests.benchmarks.http_load PORT REQUESTS SECONDS CONNECTIONS`.

REQUESTS is a file of JSON lines (path, headers, body), sent in turn over kept-alive connections, each of which waits
for an answer before it sends the next. Prints the answers with a 2xx in a second, and how many there were. It speaks
HTTP by itself, since a client library would cost more than what is measured.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Connection(asyncio.Protocol):
    """One connection that asks as long as it may."""

    def __init__(self, requests: Iterator[bytes], until: float, done: asyncio.Future[None]) -> None:
        self._requests = requests
        self._until = until
        self._done = done
        self._received = b""
        self.accepted = 0
        self.refused: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        """Count an answer once it is whole, and send the next request."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or len(body) < _length_of(head):
            return
        if head[9:10] == b"2":
            self.accepted += 1
        else:
            self.refused.append(self._received)
        self._received = b""
        if time.perf_counter() < self._until:
            self._transport.write(next(self._requests))
        else:
            self._transport.close()

    def connection_lost(self, _error: Exception | None) -> None:
        """It is over."""
        if not self._done.done():
            self._done.set_result(None)


def _length_of(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"content-length: ")
    return int(rest.partition(b"\r\n")[0]) if found else 0


def raw(request: dict[str, Any]) -> bytes:
    """One request as it goes over the wire."""
    body = request["body"].encode()
    headers = {"host": "127.0.0.1", "content-length": str(len(body)), **request["headers"]}
    lines = [f"POST {request['path']} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def load(port: int, requests: list[bytes], *, for_s: float, connections: int) -> tuple[float, int]:
    """Accepted requests in a second, and in all."""
    loop, endless = asyncio.get_running_loop(), itertools.cycle(requests)
    begun = time.perf_counter()
    made = []
    for _ in range(connections):
        done = loop.create_future()
        _, protocol = await loop.create_connection(
            lambda done=done: Connection(endless, begun + for_s, done),  # type: ignore[misc]
            "127.0.0.1",
            port,
        )
        made.append((protocol, done))
    await asyncio.gather(*(done for _, done in made))
    took_s = time.perf_counter() - begun
    refused = [each for protocol, _ in made for each in protocol.refused]
    if refused:
        raise SystemExit(f"{len(refused)} requests were refused, such as: {refused[0]!r}")
    accepted = sum(protocol.accepted for protocol, _ in made)
    return accepted / took_s, accepted


def main() -> None:
    """Put load on a server and print the rate."""
    port, path, for_s, connections = sys.argv[1:]
    requests = [raw(json.loads(line)) for line in Path(path).read_text().splitlines()]
    print(*asyncio.run(load(int(port), requests, for_s=float(for_s), connections=int(connections))))


if __name__ == "__main__":
    main()
