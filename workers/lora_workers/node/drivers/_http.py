"""What drivers of engines with an HTTP interface share: requests, and failures of the connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from lora_registry import node_codes as codes
from lora_registry.errors import Configuration
from lora_workers.node.failures import NodeFailure
from lora_workers.node.model_list import ModelList, parse_model_list

_TIMEOUT_S = 10.0
LOAD_TIMEOUT_S = 120.0
"""A load reads the weights and may wait for a step of the engine."""
_LONGEST_WORDS = 300


class EngineHttp:
    """Requests to one engine.

    Args:
        url: where it answers.
        api_key: bearer token; empty: none.
        transport: how requests travel; None: over the network, past any proxy.

    Raises:
        Configuration: the URL is not one of HTTP.
    """

    def __init__(self, url: str, *, api_key: str = "", transport: httpx.BaseTransport | None = None) -> None:
        _check_url(url)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(
            base_url=url.rstrip("/"),
            headers=headers,
            timeout=_TIMEOUT_S,
            transport=transport or httpx.HTTPTransport(),  # no proxy of the environment: engines are near
        )

    def get(self, path: str) -> httpx.Response:
        """Ask for something.

        Raises:
            NodeFailure: the engine is out of reach.
        """
        return self._send("GET", path)

    def post(self, path: str, body: dict[str, Any], *, timeout_s: float = LOAD_TIMEOUT_S) -> httpx.Response:
        """Send JSON.

        Raises:
            NodeFailure: the engine is out of reach.
        """
        return self._send("POST", path, json=body, timeout=timeout_s)

    def ask(self, path: str) -> dict[str, Any]:
        """The JSON object at `path`.

        Raises:
            NodeFailure: the engine is out of reach, or answers otherwise.
        """
        response = self.get(path)
        try:
            answer = response.raise_for_status().json()
        except (httpx.HTTPStatusError, ValueError) as error:
            raise unexpected(path, words_of(response)) from error
        if not isinstance(answer, dict):
            raise unexpected(path, words_of(response))
        return answer

    def is_healthy(self) -> bool:
        """Whether `/health` answers 200."""
        try:
            return self.get("/health").status_code == httpx.codes.OK
        except NodeFailure:
            return False

    def models(self) -> ModelList:
        """What `/v1/models` lists.

        Raises:
            NodeFailure: the engine is out of reach, or answers with no list of models.
        """
        answer = self.ask("/v1/models")
        try:
            return parse_model_list(answer)
        except ValueError as error:
            raise unexpected("/v1/models", f"oddly: {error}") from error

    def answers(self, body: dict[str, Any], *, path: str = "/v1/completions") -> httpx.Response:
        """The answer to a request for a completion."""
        return self.post(path, body)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise NodeFailure(
                codes.NODE_ENGINE_UNREACHABLE, f"{path}: {type(error).__name__} {error}", may_pass=True
            ) from error


def unexpected(path: str, words: str) -> NodeFailure:
    """The engine answers what no engine that is well answers."""
    return NodeFailure(codes.NODE_ENGINE_UNREACHABLE, f"{path} answers {words}", may_pass=True)


def _check_url(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise Configuration(f"engine URL {url[:200]!r} does not begin with http:// or https://")
    try:
        host, port = urlsplit(url).hostname, urlsplit(url).port
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL) as error:
        raise Configuration(f"engine URL {url[:200]!r}: {error}") from error
    if not host or port == 0:
        raise Configuration(f"engine URL {url[:200]!r} names no host, or port 0")


@contextmanager
def reading(engine: str, response: httpx.Response) -> Iterator[None]:
    """Reads an answer to a prompt.

    Raises:
        NodeFailure: it has another shape.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError) as error:
        words = f"{engine} answers {words_of(response)}: {type(error).__name__} {error}"
        raise NodeFailure(codes.NODE_PROBE_FAILED, words, may_pass=True) from error


def as_logprob(told: object) -> float:
    """A log-probability as an engine tells it; NaN if it is no number."""
    return float(told) if isinstance(told, (int, float)) else float("nan")


def words_of(response: httpx.Response) -> str:
    """The engine's own words: its status, and the message inside whatever envelope it uses."""
    try:
        answer: Any = response.json()
    except ValueError:
        answer = response.text
    for key in ("error", "error_message", "message", "detail"):
        if isinstance(answer, dict) and answer.get(key):
            answer = answer[key]
    return f"{response.status_code} {' '.join(str(answer).split())[:_LONGEST_WORDS]}"
