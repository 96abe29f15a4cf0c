"""Requests that never stop while something happens, and what came of each."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.helpers.waiting import wait_until
from tests.vllm.asking import HEADER, TOKENS, stream
from tests.vllm.server import VllmServer


@dataclass(frozen=True)
class Answered:
    """One answer."""

    alias: str
    prompt: str
    status: int
    served_name: str
    text: str
    at: float


@dataclass
class Traffic:
    """What was answered so far."""

    answers: list[Answered] = field(default_factory=list)

    def wait_for(self, alias: str, served_name: str, *, count: int = 1, timeout_s: float = 60) -> None:
        """Wait until so many answers for an alias came from a version."""

        def enough() -> bool:
            found = [each for each in list(self.answers) if (each.alias, each.served_name) == (alias, served_name)]
            return len(found) >= count

        wait_until(enough, what=f"{count} answers for {alias} by {served_name}", timeout_s=timeout_s)

    def wait_until_after(self, at: float) -> None:
        """Wait until answers come at a time, by `time.monotonic()`."""
        wait_until(lambda: self.answers and self.answers[-1].at > at, what="answers at that time", timeout_s=180)


@contextmanager
def traffic(
    server: VllmServer, aliases: Sequence[str], prompts: Sequence[str], *, clients: int = 4
) -> Iterator[Traffic]:
    """Clients that ask one thing after another, every other time as a stream."""
    seen = Traffic()
    ends = threading.Event()

    def ask(number: int) -> None:
        count = number
        while not ends.is_set():
            alias, prompt = aliases[count % len(aliases)], prompts[(count // len(aliases)) % len(prompts)]
            count += 1
            if count % 2:
                status, served_name, text = stream(server, alias, prompt)
            else:
                response = server.complete(alias, prompt, tokens=TOKENS)
                status, served_name = response.status_code, response.headers.get(HEADER, "")
                text = response.json()["choices"][0]["text"] if status == 200 else response.text
            seen.answers.append(Answered(alias, prompt, status, served_name, text, time.monotonic()))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        ends.set()
        for thread in threads:
            thread.join(120)
