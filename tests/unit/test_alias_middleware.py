"""The middleware around (a stand-in for) vLLM: aliases in, served names inside, and nothing lost when they move."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email import message_from_bytes
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from tests.unit.test_alias_table import make_view

from lora_registry.announcements import CatalogView
from lora_workers.node import alias_moves, middleware, request_model
from lora_workers.node.middleware import AliasMiddleware
from lora_workers.node.note_files import NoteFiles
from lora_workers.node.options import NodeOptions


class EngineApp:
    """An ASGI application with vLLM's endpoints; like vLLM's resolver it loads what it is asked for and may have.

    Attributes:
        bases: what it calls its base model.
        available: served names that it can load.
        loaded: served names that it has.
        roots: where they lie, of those that were said.
        bodies: bodies that came, as they came.
        hold: completions of bot.v1 wait for it.
        let_load: so does every load.
        let_unload: so does every unload.
        lists: what it answers to whoever wants its list of models, if it is not that list.
        died: what would have killed vLLM.
    """

    def __init__(self) -> None:
        self.bases = ["base"]
        self.available = {"bot.v1", "bot.v2"}
        self.loaded: set[str] = set()
        self.roots: dict[str, str] = {}
        self.bodies: list[bytes] = []
        self.hold, self.let_load, self.let_unload = (asyncio.Event() for _ in range(3))
        for event in (self.hold, self.let_load, self.let_unload):
            event.set()
        self.lists: tuple[int, bytes] | None = None
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
            return (self.lists[0], [self.lists[1]]) if self.lists else (200, [self._list()])
        if path == "/v1/load_lora_adapter":
            return await self._load(json.loads(body)["lora_name"])
        if path == "/v1/unload_lora_adapter":
            await self.let_unload.wait()
            name = json.loads(body)["lora_name"]
            if self.running.get(name):
                self.died.append(f"{name} was unloaded while a request ran")
            self.loaded.discard(name)
            return 200, [b'"Success"']
        if path in ("/v1/completions", "/v1/audio/transcriptions"):
            assert b"transfer-encoding" not in headers
            assert int(headers[b"content-length"]) == len(body)
            self.bodies.append(body)
            is_form = path.startswith("/v1/audio")
            return await self._complete(_in_form(headers, body) if is_form else json.loads(body)["model"])
        return 404, [b"{}"]

    def _list(self) -> bytes:
        cards: list[dict[str, str | None]] = [{"id": name, "parent": None} for name in self.bases]
        for name in sorted(self.loaded):
            cards.append({"id": name, "root": self.roots.get(name), "parent": self.bases[0]})
        return json.dumps({"object": "list", "data": cards}).encode()

    async def _load(self, model: str) -> tuple[int, list[bytes]]:
        await self.let_load.wait()
        if model not in self.available:
            return 404, [json.dumps({"error": {"message": model}}).encode()]
        self.loaded.add(model)
        return 200, [b'"Success"']

    async def _complete(self, model: str) -> tuple[int, list[bytes]]:
        if model not in self.bases and model not in self.loaded:
            status, parts = await self._load(model)
            if status != 200:
                return status, parts
        self.running[model] = self.running.get(model, 0) + 1
        if model == "bot.v1":
            await self.hold.wait()
        self.running[model] -= 1
        return 200, [b'{"model": ', json.dumps(model).encode(), b"}"]


def _in_form(headers: dict[bytes, bytes], body: bytes) -> str:
    """The field `model` of a form, as another parser reads it."""
    form = message_from_bytes(b"content-type: " + headers[b"content-type"] + b"\r\n\r\n" + body)
    parts = [part for part in form.walk() if part.get_param("name", header="content-disposition") == "model"]
    return str(parts[-1].get_payload()) if parts else ""


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

    async def unload(self, name: str) -> httpx.Response:
        """What an agent asks for."""
        return await self.client.post("/v1/unload_lora_adapter", json={"lora_name": name})

    async def looked(self, times: int = 3) -> None:
        """Wait until the middleware looked at what is loaded so many times more."""
        before = self.engine.asked.count(("GET", "/v1/models"))

        async def has_looked() -> bool:
            return self.engine.asked.count(("GET", "/v1/models")) >= before + times

        await self.until(has_looked)

    async def saw(self, method: str, path: str) -> None:
        """Wait until the engine was asked so."""

        async def has_seen() -> bool:
            return (method, path) in self.engine.asked

        await self.until(has_seen)

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

        async def in_pieces() -> AsyncIterator[bytes]:
            yield raw[:20]
            yield raw[20:]

        headers = {"content-type": "application/json"}
        response = await stand.client.post("/v1/completions", content=in_pieces(), headers=headers)
        assert response.json() == {"model": "bot.v2"}
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
            unload = asyncio.create_task(stand.unload("bot.v1"))
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


@pytest.mark.parametrize("first", ["the middleware", "an agent"])
def test_unloads_of_one_name_come_one_after_the_other(tmp_path: Path, first: str) -> None:
    """An unload of the agent's while the middleware unloads the same, or another agent's: all end, and so does what
    waited for them."""

    async def test(stand: Stand) -> None:
        stand.catalog.show(make_view(bot=1))
        await stand.ask("bot")
        stand.engine.let_unload.clear()
        if first == "the middleware":
            stand.catalog.show(make_view(bot=2))
            unloads = []
        else:
            unloads = [asyncio.create_task(stand.unload("bot.v1"))]
        await stand.saw("POST", "/v1/unload_lora_adapter")
        unloads.append(asyncio.create_task(stand.unload("bot.v1")))
        waiting = asyncio.create_task(stand.ask("bot.v1"))
        await asyncio.sleep(0)
        stand.engine.let_unload.set()
        answers = await asyncio.wait_for(asyncio.gather(*unloads, waiting), 10)
        assert [answer.status_code for answer in answers] == [200] * len(answers)
        assert (await asyncio.wait_for(stand.ask("bot.v1"), 10)).status_code == 200
        assert stand.engine.died == []

    run(tmp_path, test)


def test_only_one_wait_for_the_first_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the registry is away no request waits that comes some seconds after the start."""
    monkeypatch.setattr(middleware, "_FIRST_CATALOG_S", 0.1)

    async def test(stand: Stand) -> None:
        assert (await stand.ask("nobody")).status_code == 404
        monkeypatch.setattr(middleware, "_FIRST_CATALOG_S", 3600)
        assert (await asyncio.wait_for(stand.ask("nobody"), 10)).status_code == 404

    run(tmp_path, test)


@pytest.mark.parametrize("model", ["llama3", "hand-made"])
def test_what_vllm_lists_waits_for_no_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """A base model may be called like an adapter, and so may what somebody loaded by hand."""
    monkeypatch.setattr(middleware, "_FIRST_CATALOG_S", 3600)

    async def test(stand: Stand) -> None:
        stand.engine.bases = ["base", "llama3"]
        stand.engine.loaded = {"hand-made"}
        assert (await asyncio.wait_for(stand.ask(model), 10)).json() == {"model": model}

    run(tmp_path, test)


@pytest.mark.parametrize(
    "answer", [(401, b'{"error": "Unauthorized"}'), (500, b""), (200, b"[]"), (200, b'{"data": []}'), (200, b"<html>")]
)
def test_no_alias_moves_while_it_is_not_known_what_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: tuple[int, bytes]
) -> None:
    """vLLM wants a key that the middleware does not have, or answers nonsense: said once, and mended by itself."""

    async def test(stand: Stand) -> None:
        stand.engine.available = {"bot.v1"}
        stand.catalog.show(make_view(bot=1))
        await stand.ask("bot")
        stand.engine.lists = answer
        stand.catalog.show(make_view(bot=2))
        await stand.looked()
        assert (await stand.ask("bot")).json() == {"model": "bot.v1"}
        assert caplog.text.count("vLLM does not tell what is loaded") == 1
        stand.engine.available = {"bot.v2"}
        stand.engine.lists = None

        async def moved() -> bool:
            return (await stand.ask("bot")).json() == {"model": "bot.v2"}

        await stand.until(moved)

    run(tmp_path, test)


def test_it_looks_again_until_it_is_known_what_is_loaded(tmp_path: Path) -> None:
    """What was retired earlier is unloaded although nothing happens in the catalog meanwhile."""

    async def test(stand: Stand) -> None:
        stand.engine.loaded = {"earlier.v3"}
        stand.engine.roots = {"earlier.v3": f"{tmp_path}/sha256/{'0' * 64}"}
        stand.engine.lists = (500, b"")
        await stand.ask("base")
        stand.catalog.show(make_view(bot=1))
        await stand.looked(1)
        stand.engine.lists = None

        async def unloaded() -> bool:
            return not stand.engine.loaded

        await stand.until(unloaded)

    run(tmp_path, test)


def test_the_inner_requests_carry_the_key(tmp_path: Path) -> None:
    """vLLM's own check of it lies inside: the middleware's questions have to pass it."""

    async def test(stand: Stand) -> None:
        seen = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append(dict(scope["headers"]).get(b"authorization"))
            await stand.engine(scope, receive, send)

        options = NodeOptions(base="tiny-llama", cache=tmp_path, engine_api_key=SecretStr("secret"))
        around = AliasMiddleware(app, options, stand.catalog)  # type: ignore[arg-type] # a double
        client = httpx.AsyncClient(transport=httpx.ASGITransport(around), base_url="http://node")
        await client.post("/v1/completions", json={"model": "bot.v1"}, headers={"authorization": "Bearer client"})
        assert seen == [b"Bearer secret", b"Bearer client"]
        await client.aclose()

    run(tmp_path, test)


def test_what_did_not_come_from_the_registry_is_left_alone(tmp_path: Path) -> None:
    """Only what lies in the node's cache, or was published while this server ran, is unloaded when it is retired."""

    async def test(stand: Stand) -> None:
        stand.engine.loaded = {"mine.v1", "hand-made", "earlier.v3"}
        digest = "0" * 64
        stand.engine.roots = {"mine.v1": "/home/me/mine", "earlier.v3": f"{tmp_path}/sha256/{digest}"}
        stand.catalog.show(make_view(bot=1))
        await stand.ask("bot")

        async def unloaded() -> bool:
            return "earlier.v3" not in stand.engine.loaded

        await stand.until(unloaded)
        assert stand.engine.loaded == {"mine.v1", "hand-made", "bot.v1"}
        stand.catalog.show(CatalogView())

        async def retired() -> bool:
            return "bot.v1" not in stand.engine.loaded

        await stand.until(retired)
        assert stand.engine.loaded == {"mine.v1", "hand-made"}

    run(tmp_path, test)


def test_what_vllm_calls_its_base_model_stays_that(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An alias of the same name takes none of its requests and no place in the list; that is said once."""

    async def test(stand: Stand) -> None:
        stand.engine.bases = ["base", "bot", "bot.v9"]
        await stand.ask("base")
        for number in (1, 2, 1):
            stand.catalog.show(make_view(bot=number, stable=1))
            await stand.looked(1)
        response = await stand.ask("bot")
        assert response.json() == {"model": "bot"}
        assert "x-lora-served-name" not in response.headers
        assert "x-lora-served-name" not in (await stand.ask("bot.v9")).headers
        assert (await stand.ask("bot@stable")).json() == {"model": "bot.v1"}
        models = await stand.models()
        assert models == {"base": None, "bot": None, "bot.v9": None, "bot.v1": None, "bot@stable": "bot.v1"}
        assert caplog.text.count("answers requests for this alias") == 1

    run(tmp_path, test)


def test_an_alias_in_a_form_is_rewritten(tmp_path: Path) -> None:
    """Sound comes with its model in a form; the file passes byte for byte."""

    async def test(stand: Stand) -> None:
        stand.catalog.show(make_view(bot=1))
        sound = b'\r\n--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nbot\r\n--x--' + bytes(range(256))
        for model in ("bot", "bot.v1"):
            response = await stand.client.post(
                "/v1/audio/transcriptions", data={"model": model, "language": "en"}, files={"file": sound}
            )
            assert response.json() == {"model": "bot.v1"}
            assert response.headers["x-lora-served-name"] == "bot.v1"
            assert sound in stand.engine.bodies[-1]

    run(tmp_path, test)


def test_a_form_that_is_too_large_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes as it is, and so does one that does not say its size."""
    monkeypatch.setattr(request_model, "LARGEST_FORM_BYTES", 100)

    async def test(stand: Stand) -> None:
        stand.catalog.show(make_view(bot=1))
        response = await stand.client.post("/v1/audio/transcriptions", data={"model": "bot"}, files={"f": bytes(100)})
        assert response.status_code == 404
        assert b"\r\n\r\nbot\r\n" in stand.engine.bodies[-1]

    run(tmp_path, test)


@pytest.mark.parametrize("loaded_by", ["a request", "an agent"])
def test_an_alias_keeps_to_a_version_that_is_being_loaded(tmp_path: Path, loaded_by: str) -> None:
    """The list does not have it yet; what the alias is to move to cannot be loaded here, and nobody gets a 404."""

    async def test(stand: Stand) -> None:
        stand.engine.available = {"bot.v1"}
        stand.engine.let_load.clear()
        await stand.ask("base")
        stand.catalog.show(make_view(bot=1))
        await stand.looked(1)
        if loaded_by == "a request":
            loading = asyncio.create_task(stand.ask("bot"))
            await stand.saw("POST", "/v1/completions")
        else:
            body = {"lora_name": "bot.v1", "lora_path": "/cache/x"}
            loading = asyncio.create_task(stand.client.post("/v1/load_lora_adapter", json=body))
            await stand.saw("POST", "/v1/load_lora_adapter")
        stand.catalog.show(make_view(bot=2))
        await stand.looked(1)
        stand.engine.let_load.set()
        assert (await loading).status_code == 200
        await stand.looked()
        assert (await stand.ask("bot")).json() == {"model": "bot.v1"}

    run(tmp_path, test)


def test_a_load_that_passes_by_moves_aliases_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that loaded the new version may unload the old one soon."""
    monkeypatch.setattr(alias_moves, "_LOOK_S", 3600)

    async def test(stand: Stand) -> None:
        stand.engine.available = {"bot.v1"}
        stand.catalog.show(make_view(bot=1))
        await stand.ask("bot")
        stand.catalog.show(make_view(bot=2))
        await stand.looked(1)
        stand.engine.available = {"bot.v1", "bot.v2"}
        body = {"lora_name": "bot.v2", "lora_path": "/cache/x"}
        assert (await stand.client.post("/v1/load_lora_adapter", json=body)).status_code == 200

        async def moved() -> bool:
            return (await stand.ask("bot")).json() == {"model": "bot.v2"}

        await stand.until(moved)

    run(tmp_path, test)


def test_an_alias_goes_on_with_what_answered_before_vllm_was_started_again(tmp_path: Path) -> None:
    """The agent noted it, since vLLM forgets; the new version is taken when it answers."""
    NoteFiles(tmp_path).remember_routes({"default.bot@bot": "bot.v1", "default.gone@gone": "gone.v1"})

    async def test(stand: Stand) -> None:
        stand.engine.available = {"bot.v1"}
        stand.catalog.show(make_view(bot=2))
        await stand.models()  # with its first request it begins
        await stand.looked(2)
        assert (await stand.ask("bot")).headers["x-lora-served-name"] == "bot.v1"
        stand.engine.available.add("bot.v2")

        async def is_new() -> bool:
            return (await stand.ask("bot")).headers["x-lora-served-name"] == "bot.v2"

        await stand.until(is_new)

    run(tmp_path, test)


def test_what_was_retired_meanwhile_does_not_come_back(tmp_path: Path) -> None:
    """The alias stands for its target at once."""
    NoteFiles(tmp_path).remember_routes({"default.bot@bot": "bot.v1"})

    async def test(stand: Stand) -> None:
        view = make_view(bot=2)
        del view.versions["default.bot.v1"]
        stand.catalog.show(view)

        async def is_new() -> bool:
            return (await stand.ask("bot")).headers.get("x-lora-served-name") == "bot.v2"

        await stand.until(is_new)

    run(tmp_path, test)
