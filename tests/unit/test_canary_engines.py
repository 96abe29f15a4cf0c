"""Canary engines: what is sent, how answers are read, where candidates lie, and what is wrong with the settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE, FileDigest
from lora_registry.errors import CanaryEngineUnfit, Configuration
from lora_registry.settings import Settings, load_settings
from lora_registry.stages.canary import DEFAULT_PROMPTS
from lora_workers.canary_engines import CopyShelf, DrivenEngine, StoreShelf, open_canary_engines, read_prompts
from lora_workers.local_artifacts import LocalArtifactStore
from lora_workers.node.drivers._http import EngineHttp
from lora_workers.node.drivers.sglang import SglangDriver
from lora_workers.node.drivers.vllm import VllmDriver
from lora_workers.worker import run_worker

WEIGHTS = FileDigest(hashlib.sha256(b"weights").hexdigest(), 7)
BASE_CARD = {"id": "base", "root": "/models/base", "parent": None}
MODELS: dict[str, Any] = {"data": [BASE_CARD]}
Answers = dict[str, tuple[int, Any]]


def http(answers: Answers, asked: list[tuple[str, Any]]) -> EngineHttp:
    """An engine that answers so, path by path."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, json.loads(request.content) if request.content else None))
        status, body = answers.get(request.url.path, (404, {"detail": "Not Found"}))
        return httpx.Response(status, json=body)

    return EngineHttp("http://engine", transport=httpx.MockTransport(answer))


def vllm(answers: Answers, asked: list[tuple[str, Any]] | None = None) -> DrivenEngine:
    """A canary engine that is a vLLM."""
    driver = VllmDriver(http({"/v1/models": (200, MODELS)} | answers, [] if asked is None else asked))
    return DrivenEngine("http://engine", driver, StoreShelf(Path("/store")))


def sglang(answers: Answers, asked: list[tuple[str, Any]] | None = None) -> DrivenEngine:
    """A canary engine that is an SGLang."""
    driver = SglangDriver(http(answers, [] if asked is None else asked))
    return DrivenEngine("http://engine", driver, StoreShelf(Path("/store")))


def told(*logprobs: float | None) -> dict[str, Any]:
    """vLLM's answer."""
    tokens = [f" {number}" for number in range(len(logprobs))]
    return {"choices": [{"text": "x", "logprobs": {"tokens": tokens, "token_logprobs": logprobs}}]}


def test_vllm_is_asked_for_few_likeliest_tokens_with_log_probabilities() -> None:
    """The base model under its own name, the candidate under its."""
    asked: list[tuple[str, Any]] = []
    engine = vllm({"/v1/completions": (200, told(-0.5, -1.25))}, asked)
    assert engine.ask(None, "hello").logprobs == (-0.5, -1.25)
    assert engine.ask("canary~x~1", "hello").tokens == (" 0", " 1")
    bodies = [body for path, body in asked if path == "/v1/completions"]
    assert [body.pop("model") for body in bodies] == ["base", "canary~x~1"]
    assert bodies == [{"prompt": "hello", "max_tokens": 8, "temperature": 0, "logprobs": 0}] * 2


def test_sglang_is_asked_the_same_in_its_own_words() -> None:
    """The candidate as `lora_path`, the base model without."""
    asked: list[tuple[str, Any]] = []
    answer = {"text": "x", "meta_info": {"output_token_logprobs": [[-0.5, 17, None], [-1.0, 4, None]]}}
    engine = sglang({"/generate": (200, answer)}, asked)
    assert engine.ask(None, "hello").logprobs == (-0.5, -1.0)
    assert engine.ask("canary~x~1", "hello").tokens == ("17", "4")
    expected = {"text": "hello", "sampling_params": {"max_new_tokens": 8, "temperature": 0}, "return_logprob": True}
    assert [body for _, body in asked] == [expected, expected | {"lora_path": "canary~x~1"}]


@pytest.mark.parametrize(
    "engine",
    [
        vllm({"/v1/completions": (400, {"error": {"message": "Out of range float values are not JSON compliant"}})}),
        vllm({"/v1/completions": (200, told(-0.5, None))}),
        vllm({"/v1/completions": (200, told())}),
        sglang({"/generate": (200, {"meta_info": {"output_token_logprobs": [[None, 17, None]]}})}),
    ],
    ids=["vLLM's 400", "vLLM's null", "no token", "SGLang's null"],
)
def test_what_is_no_number_is_not_finite(engine: DrivenEngine) -> None:
    """Each engine has its own way of not saying NaN."""
    assert not engine.ask("canary~x~1", "hello").is_finite


@pytest.mark.parametrize("status", [400, 404, 500, 503])
@pytest.mark.parametrize("make", [vllm, sglang])
def test_other_failures_are_the_engines(make: Callable[[Answers], DrivenEngine], status: int) -> None:
    """A prompt that is too long, a name that went away, a broken server: no verdict about the candidate."""
    refused = (status, {"error": {"message": "no"}})
    with pytest.raises(CanaryEngineUnfit, match="http://engine: NODE_PROBE_FAILED"):
        make({"/v1/completions": refused, "/generate": refused}).ask("canary~x~1", "hello")


def test_refusal_of_a_healthy_engine_is_told_and_any_other_failure_raised() -> None:
    """A 500 of a server that answers without the adapter is about the adapter; a closed or blind one is not."""
    refused = (500, {"error": {"message": "rank 64 is greater"}})
    well = {"/health": (200, {}), "/v1/completions": (200, told(-1.0))}
    engine = vllm({"/v1/load_lora_adapter": refused} | well)
    assert "rank 64 is greater" in str(engine.load("canary~x~1", f"sha256:{'0' * 64}"))
    missing = (404, {"error": {"message": "No adapter found for /x"}})
    for answers in ({}, {"/v1/load_lora_adapter": missing}, {"/v1/load_lora_adapter": refused}):
        with pytest.raises(CanaryEngineUnfit):
            vllm(answers).load("canary~x~1", f"sha256:{'0' * 64}")


def test_engine_that_does_not_list_what_it_loaded_is_unfit() -> None:
    """A 200 alone is not believed."""
    with pytest.raises(CanaryEngineUnfit, match="NODE_NOT_LISTED"):
        vllm({"/v1/load_lora_adapter": (200, "Success")}).load("canary~x~1", f"sha256:{'0' * 64}")


def test_only_candidates_count_as_left_over() -> None:
    """What else the engine lists is not touched."""
    names = ["support-bot.v1", "canary~reg_1~2", "canary-bot.v1"]
    cards = [BASE_CARD, *({"id": name, "root": "/x", "parent": "base"} for name in names)]
    assert vllm({"/v1/models": (200, {"data": cards})}).candidates() == ["canary~reg_1~2"]


def keep(store: LocalArtifactStore) -> str:
    """Put a small artifact into the store."""
    with store.stage() as staged:
        Path(staged.weights_path).write_bytes(b"weights")
        return staged.keep(b"{}", WEIGHTS)


def test_candidates_lie_in_the_store_or_as_copies_that_go_away(tmp_path: Path) -> None:
    """A store that is a directory is used as it is; a copy is whole, and removed with the candidate."""
    store = LocalArtifactStore(tmp_path / "store")
    digest = keep(store)
    shelf = StoreShelf(tmp_path / "store")
    assert shelf.path(digest) == store.path(digest)
    shelf.clear()
    assert store.path(digest).is_dir()

    copies = CopyShelf(tmp_path / "copies", lambda: store)
    path = copies.path(digest)
    assert (path / WEIGHTS_FILE).read_bytes() == b"weights"
    assert (path / CONFIG_FILE).read_bytes() == b"{}"
    copies.clear()
    assert not path.exists()


# Settings


def test_engines_are_written_by_base_model() -> None:
    """`BASE=ENGINE@URL`, by commas; none by default."""
    assert load_settings().canary_engines == {}
    text = "acme/llama=vllm@http://a:8000, tiny=sglang@https://b/x=1"
    assert Settings(canary_engines=text).canary_engines == {  # type: ignore[arg-type] # as the environment gives it
        "acme/llama": "vllm@http://a:8000",
        "tiny": "sglang@https://b/x=1",
    }


@pytest.mark.parametrize(
    "text", ["tiny", "tiny=http://a", "tiny=directory@/x", "=vllm@http://a", "tiny=vllm@a:8000", "t=vllm@http://u:p@a"]
)
def test_what_is_no_canary_engine_is_a_configuration_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said at the start, with the variable's name; passwords do not belong into URLs."""
    monkeypatch.setenv("LORA_REGISTRY_CANARY_ENGINES", text)
    with pytest.raises(Configuration, match=r"LORA_REGISTRY_CANARY_ENGINES: .*write BASE="):
        load_settings()


def test_prompts_come_from_a_file_with_one_on_each_line(tmp_path: Path) -> None:
    """Empty lines are none; without a file there are built-in ones."""
    file = tmp_path / "prompts"
    file.write_text("one\n\n  two: ü \n")
    assert read_prompts(Settings(canary_prompts=file)) == ["one", "  two: ü "]
    assert read_prompts(Settings()) == DEFAULT_PROMPTS


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff", b"x\n" * 65, b"x" * 70_000])
def test_unusable_prompts_stop_a_canary_worker_at_its_start(tmp_path: Path, content: bytes | None) -> None:
    """Missing, empty, no text, too many, too long."""
    file = tmp_path / "prompts"
    if content is not None:
        file.write_bytes(content)
    settings = Settings(canary_prompts=file, canary_engines={"tiny": "vllm@http://a"})
    with pytest.raises(Configuration, match="CANARY_PROMPTS"):
        run_worker(settings, ["canary"])  # type: ignore[list-item] # its value is enough


def test_store_that_is_no_directory_needs_one_for_the_engines(tmp_path: Path) -> None:
    """An engine cannot load from an object store."""
    settings = Settings(artifact_store="s3://bucket/x", canary_engines={"tiny": "vllm@http://a"})
    with pytest.raises(Configuration, match="CANARY_DIRECTORY"):
        open_canary_engines(settings)
    engines = open_canary_engines(settings.model_copy(update={"canary_directory": tmp_path}))
    assert list(engines) == ["tiny"]


def test_workers_agree_on_the_name_of_an_engine() -> None:
    """It depends on the URL alone: base models on one engine share it, and a slash at the end changes nothing."""
    engines = open_canary_engines(
        Settings(canary_engines={"a": "vllm@http://a:1", "b": "vllm@http://a:1/", "c": "vllm@http://a:2"})
    )
    assert engines["a"].id == engines["b"].id != engines["c"].id


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Authorization headers that were sent; the connection then fails."""
    headers: list[str] = []

    def refuse(client: httpx.Client, method: str, url: str, **_: Any) -> httpx.Response:
        headers.append(client.headers.get("authorization", ""))
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(httpx.Client, "request", refuse)
    return headers


def test_api_key_is_sent_and_told_to_nobody(tmp_path: Path, seen: list[str]) -> None:
    """It is in a file, in the header, and in no error or setting."""
    file = tmp_path / "key"
    file.write_text("s3cret\n")
    settings = Settings(canary_api_key_file=file, canary_engines={"tiny": "vllm@http://a"})
    engine = open_canary_engines(settings)["tiny"]
    with pytest.raises(CanaryEngineUnfit) as failed:
        engine.candidates()
    assert seen == ["Bearer s3cret"]
    for text in (str(failed.value), repr(failed.value), repr(settings), repr(engine), settings.model_dump_json()):
        assert "s3cret" not in text
