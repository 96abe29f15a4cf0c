"""A process of many raw subscriptions that notes when each message is there, as a list of lists in JSON.

    python -m tests.benchmarks.receiver SOCKET SUBSCRIBERS MESSAGES CHANNEL…

It does as little as it can, so that the server is what is measured: one recv for what has come, the clock, and the
lengths out of each push.
"""

from __future__ import annotations

import json
import resource
import select
import socket
import sys
import time

_BUFFER_BYTES = 1 << 16
_SILENCE_S = 10.0


def main(path: str, subscribers: int, messages: int, channels: list[str]) -> None:
    """Subscribe, say so, receive, report the clock (ns) of every arrival, by message."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    connections = [_subscribe(path, channels) for _ in range(subscribers)]
    print("ready", flush=True)
    poll = select.epoll()
    for connection in connections:
        poll.register(connection, select.EPOLLIN)
    by_descriptor = {connection.fileno(): connection for connection in connections}
    rests = dict.fromkeys(by_descriptor, b"")
    counts = dict.fromkeys(by_descriptor, 0)
    arrivals: list[list[int]] = [[] for _ in range(messages)]
    missing = subscribers * messages
    while missing and (ready := poll.poll(_SILENCE_S)):
        for descriptor, _ in ready:
            received = rests[descriptor] + by_descriptor[descriptor].recv(_BUFFER_BYTES)
            now = time.monotonic_ns()
            pushes, rests[descriptor] = _count(received)
            for _ in range(pushes):
                arrivals[counts[descriptor]].append(now)
                counts[descriptor] += 1
            missing -= pushes
    print(json.dumps(arrivals), flush=True)


def _subscribe(path: str, channels: list[str]) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    connection.sendall(f"SUBSCRIBE {' '.join(channels)}\r\n".encode())
    confirmed = b""
    while not confirmed.endswith(f":{len(channels)}\r\n".encode()):
        confirmed += connection.recv(_BUFFER_BYTES)
    return connection


def _count(received: bytes) -> tuple[int, bytes]:
    """Number of whole pushes (arrays of three bulk strings), and what is left over."""
    pushes, at = 0, 0
    while at < len(received):
        end = received.find(b"\r\n", at) + 2  # *3
        for _ in range(3):
            line = received.find(b"\r\n", end)
            if line < 0:
                return pushes, received[at:]
            end = line + 2 + int(received[end + 1 : line]) + 2
        if end > len(received):
            return pushes, received[at:]
        pushes, at = pushes + 1, end
    return pushes, b""


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
