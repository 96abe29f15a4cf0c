"""Requests of a name run together, and an unload has the name to itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from lora_workers.node.running_requests import RunningRequests, StillRunning


def run(test: Callable[[RunningRequests], Awaitable[None]]) -> None:
    """Run a test; whatever hangs in it fails."""

    async def begin() -> None:
        async with asyncio.timeout(10):
            await test(RunningRequests())

    asyncio.run(begin())


def test_requests_run_side_by_side_and_are_forgotten() -> None:
    """Names come from clients: nothing is kept of one that no request runs on."""

    async def test(running: RunningRequests) -> None:
        async with running.one("a"), running.one("a"), running.one("b"):
            assert running.names == {"a", "b"}
        assert running.names == set()

    run(test)


def test_an_unload_waits_for_requests_and_they_wait_for_it() -> None:
    """Of its own name only."""

    async def test(running: RunningRequests) -> None:
        seen: list[str] = []
        finish, unload = asyncio.Event(), asyncio.Event()

        async def request(word: str) -> None:
            async with running.one("a"):
                seen.append(word)
                await finish.wait()

        async def keep_out() -> None:
            async with running.none("a", wait_s=60):
                seen.append("unload")
                await unload.wait()

        tasks = [asyncio.create_task(request("before"))]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(keep_out()))
        await asyncio.sleep(0)
        assert seen == ["before"]
        finish.set()
        await tasks[0]
        while "unload" not in seen:
            await asyncio.sleep(0)
        tasks.append(asyncio.create_task(request("after")))
        async with running.one("b"), running.none("c", wait_s=0):
            await asyncio.sleep(0)
            assert seen == ["before", "unload"]
        unload.set()
        await asyncio.gather(*tasks)
        assert seen == ["before", "unload", "after"]

    run(test)


def test_two_unloads_come_one_after_the_other_and_leave_the_name_open() -> None:
    """The first one's end is not the second one's."""

    async def test(running: RunningRequests) -> None:
        inside = 0

        async def keep_out() -> None:
            nonlocal inside
            async with running.none("a", wait_s=60):
                inside += 1
                assert inside == 1
                await asyncio.sleep(0)
                inside -= 1

        await asyncio.gather(*(keep_out() for _ in range(5)))
        async with running.one("a"):
            assert running.names == {"a"}

    run(test)


@pytest.mark.parametrize("wait_s", [0, 0.02])
def test_who_waits_too_long_is_told_and_changes_nothing(wait_s: float) -> None:
    """Requests go on, and new ones come in."""

    async def test(running: RunningRequests) -> None:
        async with running.one("a"):
            with pytest.raises(StillRunning):
                async with running.none("a", wait_s=wait_s):
                    pytest.fail("a request runs")
            async with running.one("a"):
                pass
        async with running.none("a", wait_s=0):
            with pytest.raises(StillRunning):
                async with running.none("a", wait_s=wait_s):
                    pytest.fail("somebody else has it")

    run(test)


def test_a_failure_inside_opens_the_name_again() -> None:
    """Of a request, and of an unload: the next one finds it free."""

    async def test(running: RunningRequests) -> None:
        for enter in (lambda: running.one("a"), lambda: running.none("a", wait_s=0)):
            with pytest.raises(TimeoutError):
                async with enter():
                    raise TimeoutError  # its own, not of the waiting
        async with running.none("a", wait_s=0):
            pass

    run(test)


def test_a_request_that_is_given_up_while_it_waits_leaves_nothing() -> None:
    """Its client went away during an unload."""

    async def test(running: RunningRequests) -> None:
        async def request() -> None:
            async with running.one("a"):
                pytest.fail("it was given up")

        async with running.none("a", wait_s=0):
            task = asyncio.create_task(request())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert running.names == set()

    run(test)
