"""vLLM: its state decides, not its words. A permanent refusal and a broken server are both a 500 there.

Source: vLLM 0.32.0 and 0.33.0, vllm/entrypoints/openai/models/serving.py.
"""

from __future__ import annotations

import re

import httpx

from lora_registry import node_codes as codes
from lora_registry.stages.canary import Answer
from lora_workers.node.drivers import EngineDescription
from lora_workers.node.drivers._http import EngineHttp, as_logprob, reading, unexpected, words_of
from lora_workers.node.failures import NodeFailure

_RUNNING = re.compile(
    r'^vllm:lora_requests_info\{.*?running_lora_adapters="([^"]*)".*?waiting_lora_adapters="([^"]*)".*?\} (\S+)$', re.M
)
"""One line for each set of adapters that ever ran together; its value is when that was. Source: vLLM 0.32.0,
vllm/v1/metrics/loggers.py:1220-1236 (set_to_current_time)."""
_NO_NUMBERS = "Out of range float values"
"""Source: vLLM 0.32.0, seen: the message of Python's json.dumps(allow_nan=False)."""
_ONE_TOKEN = {"prompt": [0], "max_tokens": 1, "temperature": 0}
"""A token and no text: it passes by the tokenizer."""


class VllmDriver:
    """Drives one vLLM server.

    Args:
        http: requests to it.
    """

    is_at_once = False

    def __init__(self, http: EngineHttp) -> None:
        self._http = http

    def describe(self) -> EngineDescription:
        """See `Driver`. vLLM tells its version and its base model, and no more.

        The `max_lora` of its metrics are no slots: so many adapters run in one step. It lists any number, keeps the
        weights of `--max-cpu-loras` (at least as many) in memory, and tells that nowhere. The line is missing until
        a step has run, too.
        """
        version = self._http.ask("/version").get("version")
        if not isinstance(version, str):
            raise unexpected("/version", f"no version but {str(version)[:80]}")
        models = self._http.models()
        return EngineDescription("vllm", version=version, base=models.bases[models.base] or "")

    def listed(self) -> dict[str, str | None]:
        """See `Driver`."""
        return self._http.models().adapters

    def busy(self) -> frozenset[str]:
        """See `Driver`: what the newest line of its metrics names. A server without metrics tells nothing."""
        response = self._http.get("/metrics")
        if response.status_code == httpx.codes.NOT_FOUND:
            return frozenset()
        if response.status_code != httpx.codes.OK:
            raise unexpected("/metrics", words_of(response))
        lines = _RUNNING.findall(response.text)
        try:
            running, waiting, _ = max(lines, key=lambda line: float(line[2]), default=("", "", ""))
        except ValueError as error:
            raise unexpected("/metrics", f"oddly: {error}") from error
        return frozenset(name for name in f"{running},{waiting}".split(",") if name)

    def load(self, served_name: str, path: str) -> None:
        """See `Driver`."""
        response = self._http.post("/v1/load_lora_adapter", {"lora_name": served_name, "lora_path": path})
        if response.status_code == httpx.codes.OK or self.listed().get(served_name) == path:
            return
        if _is_missing_route(response):
            raise NodeFailure(codes.NODE_ENGINE_CLOSED, may_pass=False)
        if response.status_code == httpx.codes.NOT_FOUND:
            raise NodeFailure(codes.NODE_ENGINE_BLIND, f"vLLM: {words_of(response)}", may_pass=True)
        if not self._answers_without_adapter():
            raise NodeFailure(codes.NODE_ENGINE_UNREACHABLE, words_of(response), may_pass=True)
        raise NodeFailure(codes.NODE_ENGINE_REFUSED, f"vLLM: {words_of(response)}", may_pass=False)

    def unload(self, served_name: str) -> None:
        """See `Driver`."""
        response = self._http.post("/v1/unload_lora_adapter", {"lora_name": served_name})
        if response.status_code == httpx.codes.OK or served_name not in self.listed():
            return
        raise NodeFailure(codes.NODE_ENGINE_UNREACHABLE, words_of(response), may_pass=True)

    def probe(self, served_name: str) -> None:
        """See `Driver`."""
        response = self._http.answers({"model": served_name} | _ONE_TOKEN)
        if response.status_code != httpx.codes.OK:
            raise NodeFailure(codes.NODE_PROBE_FAILED, f"vLLM: {words_of(response)}", may_pass=True)

    def answer(self, served_name: str | None, prompt: str, *, max_tokens: int) -> Answer:
        """See `AnsweringDriver`. What is no number cannot be written as JSON, so vLLM answers 400."""
        model = served_name or self._http.models().base
        asked = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "logprobs": 0}
        response = self._http.answers(asked)
        if response.status_code == httpx.codes.BAD_REQUEST and _NO_NUMBERS in response.text:
            return Answer((), ())
        if response.status_code != httpx.codes.OK:
            raise NodeFailure(codes.NODE_PROBE_FAILED, f"vLLM: {words_of(response)}", may_pass=True)
        with reading("vLLM", response):
            told = response.json()["choices"][0]["logprobs"]
            return Answer(tuple(told["tokens"]), tuple(as_logprob(each) for each in told["token_logprobs"]))

    def close(self) -> None:
        """See `Driver`."""
        self._http.close()

    def _answers_without_adapter(self) -> bool:
        """Whether a failed load left the engine well: then the adapter is what is wrong."""
        if not self._http.is_healthy():
            return False
        try:
            response = self._http.answers({"model": self._http.models().base} | _ONE_TOKEN)
        except NodeFailure:
            return False
        return response.status_code == httpx.codes.OK


def open_driver(url: str, *, api_key: str = "") -> VllmDriver:
    """A driver of the vLLM at `url`.

    Raises:
        Configuration: that is no URL of HTTP.
    """
    return VllmDriver(EngineHttp(url, api_key=api_key))


def _is_missing_route(response: httpx.Response) -> bool:
    """Whether run-time loading is off: the route itself is missing, unlike an adapter's files."""
    if response.status_code != httpx.codes.NOT_FOUND:
        return False
    try:
        answer = response.json()
    except ValueError:
        return False
    return isinstance(answer, dict) and answer == {"detail": "Not Found"}
