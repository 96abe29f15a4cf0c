"""The middleware around (a stand-in for) vLLM: aliases in, served names inside, and nothing lost when they move."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.unit.test_alias_table import make_view

from lora_registry.announcements import CatalogView
from lora_workers.node.middleware import AliasMiddleware
from lora_workers.node.options import NodeOptions


class EngineApp:
    """An ASGI application with vLLM's endpoints; like vLLM's resolver it loads what it is asked for and may have.

    Attributes:
        available: served names that it can load.
        loaded: served names that it has.
        bodies: bodies that came, as they came.
        hold: completions of bot.v1 wait for it.
        died: what would have killed vLLM.
    """

    def __init__(self) -> None:
        self.available = {"bot.v1", "bot.v2"}
        self.loaded: set[str] = set()
        self.bodies: list[bytes] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.running: dict[str, int] = {}
        self.died: list[str] = []
        self.asked: list[tuple[str, str]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.asked.append((scope["method"], scope["path"]))
        status, parts = await self._answer(scope["path"], body, dict(scope["headers"]))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(sum(map(len, parts))).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _answer(self, path: str, body: bytes, headers: dict[bytes, bytes]) -> tuple[int, list[bytes]]:
        if path == "/v1/models":
            cards = [{"id": "base", "parent": None}, *({"id": name, "parent": "base"} for name in sorted(self.loaded))]
            return 200, [json.dumps({"object": "list", "data": cards}).encode()]
        if path == "/v1/unload_lora_adapter":
            name = json.loads(body)["lora_name"]
            if self.running.get(name):
                self.died.append(f"{name} was unloaded while a request ran")
            self.loaded.discard(name)
            return 200, [b'"Success"']
        if path == "/v1/completions":
            assert int(headers[b"content-length"]) == len(body)
            self.bodies.append(body)
            return await self._complete(json.loads(body)["model"])
        return 404, [b"{}"]

    async def _complete(self, model: str) -> tuple[int, list[bytes]]:
        if model != "base" and model not in self.loaded | self.available:
            return 404, [json.dumps({"error": {"message": model}}).encode()]
        if model != "base":
            self.loaded.add(model)
        self.running[model] = self.running.get(model, 0) + 1
        if model == "bot.v1":
            await self.hold.wait()
        self.running[model] -= 1
        return 200, [b'{"model": ', json.dumps(model).encode(), b"}"]


class Catalog:
    """A subscriber whose catalog a test changes."""

    def __init__(self) -> None:
        self.view = CatalogView()
        self._changed = asyncio.Event()
        self.failures: list[Exception] = []

    def show(self, view: CatalogView) -> None:
        """The catalog is this from now on."""
        self.view = view
        self._changed.set()

    async def follow(self) -> AsyncIterator[None]:
        """Something for each change."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self.failures:
                raise self.failures.pop()
            yield None


class Stand:
    """An engine, the middleware, and a client of it."""

    def __init__(self, directory: Path) -> None:
        self.engine, self.catalog = EngineApp(), Catalog()
        options = NodeOptions(base="tiny-llama", cache=directory, drain_s=0.05)
        self.middleware = AliasMiddleware(self.engine, options, self.catalog)  # type: ignore[arg-type] # a double
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.middleware), base_url="http://node")

    async def ask(self, model: str) -> httpx.Response:
        """A completion."""
        return await self.client.post("/v1/completions", json={"model": model, "prompt": "hello"})

    async def models(self) -> dict[str, str | None]:
        """Names in the list of models → what they are a name of."""
        answer = (await self.client.get("/v1/models")).json()
        return {card["id"]: card.get("root") for card in answer["data"]}

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(10):
            while not await condition():
                await asyncio.sleep(0.01)


def run(tmp_path: Path, test: Callable[[Stand], Awaitable[None]]) -> None:
    """Run a test on a stand of its own."""

    @asynccontextmanager
    async def standing() -> AsyncIterator[Stand]:
        stand = Stand(tmp_path)
        try:
            yield stand
        finally:
            await stand.client.aclose()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    async def begin() -> None:
        async with standing() as stand:
            await test(stand)

    asyncio.run(begin())


def test_an_alias_is_rewritten_and_the_answer_tells_the_version(tmp_path: Path) -> None:
    """Nothing else of the body changes, its length is right, and a served name passes as it is."""

    async def test(stand: Stand) -> None:
        stand.catalog.show(make_view(bot=1, stable=2))
        raw = b'{ "prompt":"x", "model" : "bot@stable","t":1.10}'
        response = await stand.client.post(
            "/v1/completions", content=raw, headers={"content-type": "application/json; charset=utf-8"}
        )
        assert response.json() == {"model": "bot.v2"}
        assert response.headers["x-lora-served-name"] == "bot.v2"
        assert stand.engine.bodies == [raw.replace(b"bot@stable", b"bot.v2")]
        assert (await stand.ask("bot")).headers["x-lora-served-name"] == "bot.v1"
        assert (await stand.ask("bot.v2")).headers["x-lora-served-name"] == "bot.v2"

    run(tmp_path, test)


def test_other_models_pass_untouched(tmp_path: Path) -> None:
    """The base model, an unknown name, a body that is no JSON: byte for byte, and no header is added."""

    async def test(stand: Stand) -> None:
        stand.catalog.show(make_view(bot=1))
        assert (await stand.ask("bot")).status_code == 200
        response = await stand.ask("base")
        assert response.json() == {"model": "base"}
        assert "x-lora-served-name" not in response.headers
        assert (await stand.ask("nobody")).status_code == 404
        answer = await stand.client.post("/other", content=b"\xff", headers={"content-type": "application/json"})
        assert answer.status_code == 404

    run(tmp_path, test)


def test_aliases_are_listed_beside_what_the_engine_lists(tmp_path: Path) -> None:
    """With the served name that each stands for, and the base model as their parent."""

    async def test(stand: Stand) -> None:
        stand.catalog.show(make_view(bot=1, stable=2))
        await stand.ask("bot")
        assert await stand.models() == {"base": None, "bot.v1": None, "bot": "bot.v1", "bot@stable": "bot.v2"}

    run(tmp_path, test)


def test_an_alias_moves_when_the_new_version_answers_here(tmp_path: Path) -> None:
    """While it does not, the old one goes on; when it does, requests change over and the old one is unloaded."""

    async def test(stand: Stand) -> None:
        stand.engine.available = {"bot.v1"}
        stand.catalog.show(make_view(bot=1))
        assert (await stand.ask("bot")).json() == {"model": "bot.v1"}
        stand.catalog.show(make_view(bot=2))

        async def tried() -> bool:
            return b'"bot.v2"' in b"".join(stand.engine.bodies)

        await stand.until(tried)
        assert (await stand.ask("bot")).json() == {"model": "bot.v1"}
        stand.engine.available = {"bot.v1", "bot.v2"}

        async def moved() -> bool:
            response = await stand.ask("bot")
            assert response.status_code == 200
            return bool(response.headers["x-lora-served-name"] == "bot.v2")

        await stand.until(moved)

        async def unloaded() -> bool:
            return stand.engine.loaded == {"bot.v2"}

        await stand.until(unloaded)
        assert stand.engine.died == []

    run(tmp_path, test)


def test_an_alias_of_what_was_never_loaded_moves_at_once(tmp_path: Path) -> None:
    """Nothing is loaded just because it was published: thousands of adapters may lie there unused."""

    async def test(stand: Stand) -> None:
        stand.catalog.show(make_view(bot=1))
        await stand.ask("base")
        stand.catalog.show(make_view(bot=2))

        async def moved() -> bool:
            return (await stand.models()).get("bot") == "bot.v2"

        await stand.until(moved)
        assert stand.engine.loaded == set()

    run(tmp_path, test)


@pytest.mark.parametrize("asked_by", ["the middleware", "an agent"])
def test_nothing_is_unloaded_while_a_request_of_it_runs(tmp_path: Path, asked_by: str) -> None:
    """A long stream of the old version ends in peace, whoever asks for the unload."""

    async def test(stand: Stand) -> None:
        stand.catalog.show(make_view(bot=1))
        await stand.ask("bot")
        stand.engine.hold.clear()
        long = asyncio.create_task(stand.ask("bot"))
        await asyncio.sleep(0)

        async def runs() -> bool:
            return stand.engine.running.get("bot.v1") == 1

        await stand.until(runs)
        if asked_by == "an agent":
            unload = asyncio.create_task(stand.client.post("/v1/unload_lora_adapter", json={"lora_name": "bot.v1"}))
        else:
            stand.catalog.show(make_view(bot=2))

            async def moved() -> bool:
                return (await stand.models())["bot"] == "bot.v2"

            await stand.until(moved)
        await asyncio.sleep(0.8)  # several looks after the drain time
        assert "bot.v1" in stand.engine.loaded
        stand.engine.hold.set()
        assert (await long).status_code == 200
        if asked_by == "an agent":
            assert (await unload).status_code == 200

        async def unloaded() -> bool:
            return "bot.v1" not in stand.engine.loaded

        await stand.until(unloaded)
        assert stand.engine.died == []

    run(tmp_path, test)


def test_a_retired_version_is_unloaded(tmp_path: Path) -> None:
    """No alias was ever moved off it: it is gone from the catalog, and from the engine soon after."""

    async def test(stand: Stand) -> None:
        stand.catalog.show(make_view(bot=1))
        await stand.ask("bot")
        stand.catalog.show(CatalogView())

        async def unloaded() -> bool:
            return not stand.engine.loaded

        await stand.until(unloaded)
        assert (await stand.ask("bot")).status_code == 404

    run(tmp_path, test)


def test_a_registry_that_fails_leaves_the_aliases_as_they_are(tmp_path: Path) -> None:
    """Requests go on; nothing of the failure reaches a client."""

    async def test(stand: Stand) -> None:
        stand.catalog.show(make_view(bot=1))
        await stand.ask("bot")
        stand.catalog.failures.append(RuntimeError("a bug"))
        stand.catalog.show(make_view(bot=2))
        await asyncio.sleep(0.05)
        assert (await stand.ask("bot")).json() == {"model": "bot.v1"}

    run(tmp_path, test)


def test_the_first_request_for_an_alias_waits_for_the_first_catalog(tmp_path: Path) -> None:
    """Right after a start no alias is known yet; a client should not notice."""

    async def test(stand: Stand) -> None:
        asked = asyncio.create_task(stand.ask("bot"))
        await asyncio.sleep(0.05)
        assert not asked.done()
        assert (await stand.ask("base")).status_code == 200  # what is no alias does not wait
        stand.catalog.show(make_view(bot=1))
        assert (await asked).json() == {"model": "bot.v1"}

    run(tmp_path, test)
