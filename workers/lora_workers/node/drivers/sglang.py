"""SGLang: 400 for whatever does not please it, and an unload that is not final.

A request for a name that was unloaded loads it again from its old path, silently; so nothing here asks for a name
that is not to be loaded, and what comes back is listed, and unloaded, again.
Source: SGLang 0.5.23, sglang/srt/entrypoints/http_server.py:1652-1684, managers/tokenizer_manager.py:3744-3788.
"""

from __future__ import annotations

from typing import Any

import httpx

from lora_registry import node_codes as codes
from lora_registry.stages.canary import Answer
from lora_workers.node.drivers import EngineDescription
from lora_workers.node.drivers._http import EngineHttp, as_logprob, reading, words_of
from lora_workers.node.failures import NodeFailure

_ONE_TOKEN = {"input_ids": [0], "sampling_params": {"max_new_tokens": 1, "temperature": 0}}


class SglangDriver:
    """Drives one SGLang server.

    Args:
        http: requests to it.
    """

    is_at_once = False

    def __init__(self, http: EngineHttp) -> None:
        self._http = http

    def describe(self) -> EngineDescription:
        """See `Driver`. SGLang tells the arguments that it was started with."""
        told = self._http.ask("/server_info" if self._has("/server_info") else "/get_server_info")
        modules = _words(told.get("lora_target_modules"))
        return EngineDescription(
            "sglang",
            version=str(told.get("version", "")),
            max_lora_rank=_number(told.get("max_lora_rank")),
            target_modules=tuple(sorted(modules)) if modules and "all" not in modules else None,
            tensor_parallel_size=_number(told.get("tp_size")),
            slots=_slots(told.get("max_loaded_loras")),
            base=str(told.get("model_path") or ""),
        )

    def listed(self) -> dict[str, str | None]:
        """See `Driver`."""
        return self._http.models().adapters

    def busy(self) -> frozenset[str]:
        """See `Driver`: SGLang waits for running requests by itself when it unloads."""
        return frozenset()

    def load(self, served_name: str, path: str) -> None:
        """See `Driver`."""
        response = self._http.post("/load_lora_adapter", {"lora_name": served_name, "lora_path": path})
        if response.status_code == httpx.codes.OK or self.listed().get(served_name) == path:
            return
        if response.status_code == httpx.codes.NOT_FOUND or "not enabled" in response.text:
            raise NodeFailure(codes.NODE_ENGINE_CLOSED, may_pass=False)
        if not self._http.is_healthy():
            raise NodeFailure(codes.NODE_ENGINE_UNREACHABLE, words_of(response), may_pass=True)
        if "incomplete unload" in response.text:  # an earlier load that failed halfway is in the way
            self._post_unload(served_name)
            raise NodeFailure(codes.NODE_ENGINE_REFUSED, f"SGLang: {words_of(response)}", may_pass=True)
        raise NodeFailure(codes.NODE_ENGINE_REFUSED, f"SGLang: {words_of(response)}", may_pass=False)

    def unload(self, served_name: str) -> None:
        """See `Driver`."""
        response = self._post_unload(served_name)
        if response.status_code == httpx.codes.OK or served_name not in self.listed():
            return
        raise NodeFailure(codes.NODE_ENGINE_UNREACHABLE, words_of(response), may_pass=True)

    def probe(self, served_name: str) -> None:
        """See `Driver`. SGLang compares shapes at the first request only, and dies of a difference."""
        response = self._http.answers({"lora_path": served_name} | _ONE_TOKEN, path="/generate")
        if response.status_code != httpx.codes.OK:
            raise NodeFailure(codes.NODE_PROBE_FAILED, f"SGLang: {words_of(response)}", may_pass=True)

    def answer(self, served_name: str | None, prompt: str, *, max_tokens: int) -> Answer:
        """See `AnsweringDriver`. What is no number is written as null.

        Source: SGLang 0.5.23, sglang/srt/managers/tokenizer_manager.py (output_token_logprobs: [logprob, id, text]).
        """
        sampling = {"max_new_tokens": max_tokens, "temperature": 0}
        asked: dict[str, Any] = {"text": prompt, "sampling_params": sampling, "return_logprob": True}
        response = self._http.answers(asked | ({"lora_path": served_name} if served_name else {}), path="/generate")
        if response.status_code != httpx.codes.OK:
            raise NodeFailure(codes.NODE_PROBE_FAILED, f"SGLang: {words_of(response)}", may_pass=True)
        with reading("SGLang", response):
            told = response.json()["meta_info"]["output_token_logprobs"]
            return Answer(tuple(str(each[1]) for each in told), tuple(as_logprob(each[0]) for each in told))

    def close(self) -> None:
        """See `Driver`."""
        self._http.close()

    def _post_unload(self, served_name: str) -> httpx.Response:
        return self._http.post("/unload_lora_adapter", {"lora_name": served_name})

    def _has(self, path: str) -> bool:
        return self._http.get(path).status_code == httpx.codes.OK


def open_driver(url: str, *, api_key: str = "") -> SglangDriver:
    """A driver of the SGLang at `url`.

    Raises:
        Configuration: that is no URL of HTTP.
    """
    return SglangDriver(EngineHttp(url, api_key=api_key))


def _slots(told: Any) -> int | None:
    """All but one: a new version is loaded before the old one is unloaded, and beyond its limit SGLang drops another.

    Source: SGLang, `max_loaded_loras` with `lora_eviction_policy`.
    """
    most = _number(told)
    return most and max(1, most - 1)


def _number(told: Any) -> int | None:
    return told if isinstance(told, int) and told > 0 else None


def _words(told: object) -> list[str]:
    return [each for each in told if isinstance(each, str)] if isinstance(told, list | tuple) else []
