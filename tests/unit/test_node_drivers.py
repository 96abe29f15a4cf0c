"""Drivers: an engine's state decides what a failure means, and not its words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from lora_registry.errors import Configuration
from lora_workers.node.drivers import driver_names, open_driver
from lora_workers.node.drivers._http import EngineHttp
from lora_workers.node.drivers.sglang import SglangDriver
from lora_workers.node.drivers.vllm import VllmDriver
from lora_workers.node.failures import NodeFailure

REFUSED = {"error": {"message": "Call to add_lora method failed: rank 64", "type": "InternalServerError"}}

BASE = {"id": "base", "root": "/models/base", "parent": None}
ODD_LISTS: list[Any] = [
    {},
    [],
    "<html>",
    {"data": []},
    {"data": ["a"]},
    {"data": [None]},
    {"data": [BASE, {"root": "x", "parent": "base"}]},
    {"data": [BASE, {"id": "x", "root": 5, "parent": "base"}]},
    {"data": [{"id": "x", "root": "/x", "parent": "base"}]},
]
RUNNING_LINE = 'vllm:lora_requests_info{{max_lora="2",running_lora_adapters="a.v1",waiting_lora_adapters=""}} {}'


class Vllm:
    """What a vLLM answers, path by path; source: vLLM 0.32.0, seen on a running server."""

    def __init__(self, **answers: tuple[int, Any]) -> None:
        self.answers = {"v1/models": (200, self.models()), "health": (200, {})} | answers
        self.asked: list[tuple[str, Any]] = []

    @staticmethod
    def models(**adapters: str) -> dict[str, Any]:
        """`/v1/models` with these adapters."""
        cards = [BASE]
        cards += [{"id": name, "root": path, "parent": "base"} for name, path in adapters.items()]
        return {"object": "list", "data": cards}

    def driver(self) -> VllmDriver:
        """A driver of it."""
        return VllmDriver(self.http())

    def http(self) -> EngineHttp:
        """Requests to it."""
        return EngineHttp("http://engine", api_key="secret", transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer secret"
        path = request.url.path.lstrip("/")
        self.asked.append((path, json.loads(request.content) if request.content else None))
        status, answer = self.answers.get(path, (404, {"detail": "Not Found"}))
        if status == 0:
            raise httpx.ConnectError("refused")
        return httpx.Response(status, text=answer) if isinstance(answer, str) else httpx.Response(status, json=answer)


def load(vllm: Vllm) -> NodeFailure:
    """The failure of a load."""
    with pytest.raises(NodeFailure) as failed:
        vllm.driver().load("bot.v1", "/cache/x")
    return failed.value


def test_a_load_says_name_and_path_and_nothing_else() -> None:
    """No number, and never in place."""
    vllm = Vllm(**{"v1/load_lora_adapter": (200, "Success")})
    vllm.driver().load("bot.v1", "/cache/x")
    assert vllm.asked == [("v1/load_lora_adapter", {"lora_name": "bot.v1", "lora_path": "/cache/x"})]


@pytest.mark.parametrize("status", [400, 500])
def test_what_is_listed_under_its_path_is_loaded_whatever_was_answered(status: int) -> None:
    """ "Already been loaded" is a 400 there, and a lost answer may have been a success."""
    listed = Vllm.models(**{"bot.v1": "/cache/x"})
    vllm = Vllm(**{"v1/load_lora_adapter": (status, REFUSED), "v1/models": (200, listed)})
    vllm.driver().load("bot.v1", "/cache/x")


def test_a_500_of_a_healthy_server_is_the_adapters_fault() -> None:
    """Health and one token of the base tell: it does not pass by itself, and the reason is vLLM's own."""
    vllm = Vllm(**{"v1/load_lora_adapter": (500, REFUSED), "v1/completions": (200, {})})
    failure = load(vllm)
    assert (failure.code, failure.may_pass) == ("NODE_ENGINE_REFUSED", False)
    assert "500 Call to add_lora method failed: rank 64" in failure.message
    assert vllm.asked[-1][1]["model"] == "base"


@pytest.mark.parametrize(
    "broken", [{"health": (503, {})}, {"health": (0, {})}, {"v1/completions": (500, {})}, {"v1/completions": (0, {})}]
)
def test_a_500_of_a_broken_server_passes(broken: dict[str, tuple[int, Any]]) -> None:
    """The adapter is not blamed for an engine that answers nothing."""
    vllm = Vllm(**({"v1/load_lora_adapter": (500, REFUSED), "v1/completions": (200, {})} | broken))
    failure = load(vllm)
    assert (failure.code, failure.may_pass) == ("NODE_ENGINE_UNREACHABLE", True)


def test_a_missing_route_is_told_from_missing_files() -> None:
    """Both are 404: one is how the server was started, the other is what it sees of the disk."""
    assert load(Vllm()).code == "NODE_ENGINE_CLOSED"
    missing = {"error": {"message": "Loading lora bot.v1 failed: No adapter found", "code": 404}}
    vllm = Vllm(**{"v1/load_lora_adapter": (404, missing), "v1/completions": (200, {})})
    assert load(vllm).code == "NODE_ENGINE_BLIND"


def test_an_unload_of_what_is_not_there_is_done() -> None:
    """A 404 is what was wanted; anything else is tried again."""
    vllm = Vllm(**{"v1/unload_lora_adapter": (404, {"error": {"message": "cannot be found"}})})
    vllm.driver().unload("bot.v1")
    vllm.answers["v1/models"] = (200, Vllm.models(**{"bot.v1": "/cache/x"}))
    with pytest.raises(NodeFailure) as failed:
        vllm.driver().unload("bot.v1")
    assert failed.value.may_pass


def test_vllm_tells_its_version_and_what_it_was_started_with() -> None:
    """The root of the base model's card is the argument of `vllm serve`, whatever clients call the model."""
    told = Vllm(version=(200, {"version": "0.32.0"})).driver().describe()
    assert (told.version, told.base) == ("0.32.0", "/models/base")


def test_the_base_model_is_not_listed_as_an_adapter() -> None:
    """Names come with their paths."""
    vllm = Vllm(**{"v1/models": (200, Vllm.models(**{"bot.v1": "/cache/x"}))})
    assert vllm.driver().listed() == {"bot.v1": "/cache/x"}


def test_a_probe_asks_for_one_token_with_the_adapter() -> None:
    """A 200 is an answer, anything else is said."""
    vllm = Vllm(**{"v1/completions": (200, {})})
    vllm.driver().probe("bot.v1")
    assert (vllm.asked[-1][1]["model"], vllm.asked[-1][1]["max_tokens"]) == ("bot.v1", 1)
    vllm.answers["v1/completions"] = (400, {"error": {"message": "Out of range float values"}})
    with pytest.raises(NodeFailure, match="Out of range"):
        vllm.driver().probe("bot.v1")


def test_running_adapters_are_those_of_the_newest_line() -> None:
    """Each set of adapters that ever ran together has a line; its value is when that was."""
    lines = [
        'vllm:lora_requests_info{max_lora="2",running_lora_adapters="a.v1,b.v1",waiting_lora_adapters=""} 1.7e+09',
        'vllm:lora_requests_info{max_lora="2",running_lora_adapters="b.v1",waiting_lora_adapters="c.v1"} 1.7000001e+09',
        'vllm:lora_requests_info{max_lora="2",running_lora_adapters="",waiting_lora_adapters=""} 1.6e+09',
    ]
    vllm = Vllm(metrics=(200, "\n".join(["# HELP", *lines])))
    assert vllm.driver().busy() == {"b.v1", "c.v1"}
    assert Vllm().driver().busy() == frozenset()


def test_adapters_that_run_in_one_step_are_no_slots() -> None:
    """vLLM lists any number and keeps in memory what --max-cpu-loras says, which it does not tell."""
    vllm = Vllm(version=(200, {"version": "0.32.0"}), metrics=(200, RUNNING_LINE.format("1.7e+09")))
    assert vllm.driver().describe().slots is None


@pytest.mark.parametrize(
    ("call", "path", "answer"),
    [
        *((VllmDriver.listed, "v1/models", (200, answer)) for answer in ODD_LISTS),
        *((VllmDriver.describe, "v1/models", (200, answer)) for answer in ODD_LISTS),
        (VllmDriver.listed, "v1/models", (401, {"error": "Unauthorized"})),
        (VllmDriver.describe, "version", (200, [1])),
        (VllmDriver.describe, "version", (200, {})),
        (VllmDriver.describe, "version", (200, {"version": 32})),
        (VllmDriver.describe, "version", (404, "x")),
        (VllmDriver.busy, "metrics", (500, "x")),
        (VllmDriver.busy, "metrics", (200, RUNNING_LINE.format("soon"))),
    ],
)
def test_an_odd_answer_is_an_engine_that_is_not_well(
    call: Callable[[VllmDriver], object], path: str, answer: tuple[int, Any]
) -> None:
    """It may pass, and it is never taken for an engine that holds nothing or is at rest."""
    vllm = Vllm(**{"version": (200, {"version": "0.32.0"}), path: answer})
    with pytest.raises(NodeFailure) as failed:
        call(vllm.driver())
    assert (failed.value.code, failed.value.may_pass) == ("NODE_ENGINE_UNREACHABLE", True)
    assert f"/{path} answers " in failed.value.message


@pytest.mark.parametrize("answer", [[], {}, {"choices": []}, {"choices": [{"logprobs": None}]}, "<html>"])
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_odd_answer_to_a_prompt_is_a_failed_probe(engine: str, answer: Any) -> None:
    """The canary check asks again."""
    vllm = Vllm(**dict.fromkeys(["v1/completions", "generate"], (200, answer)))
    driver = vllm.driver() if engine == "vllm" else SglangDriver(vllm.http())
    with pytest.raises(NodeFailure) as failed:
        driver.answer("bot.v1", "hello", max_tokens=8)
    assert (failed.value.code, failed.value.may_pass) == ("NODE_PROBE_FAILED", True)


@pytest.mark.parametrize("modules", [5, "all", {"a": 1}, [1, None], None])
def test_sglang_that_tells_its_modules_oddly_tells_none(modules: Any) -> None:
    """Not known is no limit."""
    told = {"version": "0.5.23", "lora_target_modules": modules, "tp_size": "x", "max_lora_rank": [16]}
    description = SglangDriver(Vllm(server_info=(200, told)).http()).describe()
    assert (description.target_modules, description.max_lora_rank) == (None, None)


@pytest.mark.parametrize(("told", "slots"), [(None, None), (8, 7), (1, 1), ("8", None)])
def test_sglang_has_room_for_a_new_version_beside_the_old_one(told: Any, slots: int | None) -> None:
    """Beyond its limit it would drop another adapter, and the agent give that back, and so on."""
    assert SglangDriver(Vllm(server_info=(200, {"max_loaded_loras": told})).http()).describe().slots == slots


def test_an_answer_that_is_no_object_tells_nothing_of_sglang() -> None:
    """It is not taken for an engine without limits."""
    with pytest.raises(NodeFailure) as failed:
        SglangDriver(Vllm(server_info=(200, [1])).http()).describe()
    assert (failed.value.code, failed.value.may_pass) == ("NODE_ENGINE_UNREACHABLE", True)


@pytest.mark.parametrize("call", [VllmDriver.listed, VllmDriver.describe, VllmDriver.busy])
def test_an_engine_out_of_reach_may_come_back(call: Callable[[VllmDriver], object]) -> None:
    """No foreign exception gets out."""
    vllm = Vllm(**dict.fromkeys(["v1/models", "version", "metrics"], (0, {})))
    with pytest.raises(NodeFailure) as failed:
        call(vllm.driver())
    assert (failed.value.code, failed.value.may_pass) == ("NODE_ENGINE_UNREACHABLE", True)


def test_a_directory_holds_links_that_appear_whole(tmp_path: Path) -> None:
    """A link for each adapter; loading again, and unloading what is not there, is nothing."""
    driver = open_driver("directory", str(tmp_path / "engine"))
    (tmp_path / "x").mkdir()
    for _ in range(2):
        driver.load("bot.v1", str(tmp_path / "x"))
    assert driver.listed() == {"bot.v1": str(tmp_path / "x")}
    assert [path.name for path in (tmp_path / "engine").iterdir()] == ["bot.v1"]
    with pytest.raises(NodeFailure) as failed:
        driver.probe("bot.v1")
    assert failed.value.code == "NODE_PROBE_FAILED"
    for _ in range(2):
        driver.unload("bot.v1")
    assert driver.listed() == {}


def test_what_has_an_adapters_name_in_a_directory_is_left_alone(tmp_path: Path) -> None:
    """Somebody's file is not replaced, nor is a link given another target: the node says why it cannot load."""
    driver = open_driver("directory", str(tmp_path))
    (tmp_path / "file.v1").write_text("mine")
    (tmp_path / "link.v1").symlink_to(tmp_path / "elsewhere")
    for name in ("file.v1", "link.v1"):
        with pytest.raises(NodeFailure, match="File exists"):
            driver.load(name, str(tmp_path / "x"))
    assert (tmp_path / "file.v1").read_text() == "mine"
    assert driver.listed() == {"link.v1": str(tmp_path / "elsewhere")}


def test_every_file_is_a_driver_and_there_is_no_list_of_them() -> None:
    """Adding an engine is adding a file."""
    assert driver_names() == ["directory", "sglang", "vllm"]
    with pytest.raises(Configuration, match="there are drivers for directory, sglang, vllm"):
        open_driver("tgi", "http://x")


@pytest.mark.parametrize(
    ("engine", "url"),
    [
        ("vllm", "localhost:8000"),
        ("sglang", ""),
        ("directory", "http://x"),
        ("vllm", "http://[bad"),
        ("vllm", "http://engine:99999"),
        ("vllm", "http://engine:-1"),
        ("vllm", "http://engine:port"),
        ("vllm", "http://engine:0"),
        ("sglang", "https://"),
        ("sglang", "http:///v1"),
        ("vllm", "http://engine:8000\n"),
    ],
)
def test_a_url_that_a_driver_cannot_use_is_a_configuration_error(engine: str, url: str) -> None:
    """Said at the start, not at the first load."""
    with pytest.raises(Configuration):
        open_driver(engine, url)


@pytest.mark.parametrize(
    "url", ["http://engine", "https://engine:8443/vllm/", "http://[::1]:8000", "http://10.0.0.1:1"]
)
def test_a_url_of_http_is_taken(url: str) -> None:
    """With a port or a path of its own, too."""
    open_driver("vllm", url).close()
