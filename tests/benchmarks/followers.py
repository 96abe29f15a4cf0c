"""A process of many asyncio subscribers that note when each update is theirs, as a list of lists in JSON.

python -m tests.benchmarks.followers URL PREFIX BASE SUBSCRIBERS MESSAGES
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from lora_registry.subscriber import AsyncSubscriber


async def main(url: str, prefix: str, base: str, *, subscribers: int, messages: int) -> None:
    """Follow, say when all do, report the clock (ns) of every update, by message."""
    arrivals: list[list[int]] = [[] for _ in range(messages)]
    following = asyncio.Semaphore(0)

    async def follow() -> None:
        subscriber = AsyncSubscriber(base, url=url, key_prefix=prefix)
        await subscriber.poll()
        first = subscriber.view.cursor.sequence + 1
        following.release()
        async for update in subscriber.follow():
            arrivals[update.cursor.sequence - first].append(time.monotonic_ns())
            if update.cursor.sequence - first == messages - 1:
                break
        await subscriber.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(subscribers):
            group.create_task(follow())
        for _ in range(subscribers):
            await following.acquire()
        await asyncio.sleep(0.5)  # each has polled; now each subscribes
        print("ready", flush=True)
    print(json.dumps(arrivals), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4], subscribers=int(sys.argv[4]), messages=int(sys.argv[5])))
