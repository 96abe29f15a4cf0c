"""Sending adapters through the pipeline, questions to servers, and what PEFT says the answer must be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from lora_registry.nodes import Ack, NodeRegistry, NodeState
from lora_registry.registrations import Registration
from tests.helpers.waiting import wait_until
from tests.vllm.conftest import Stand
from tests.vllm.models import BASE_NAME, PROMPT, Reference
from tests.vllm.server import VllmServer

TOKENS = 12
CLOSE = 0.01
"""Natural logarithms, over a whole answer."""
HEADER = "x-lora-served-name"


def register(stand: Stand, name: str, adapter: Path, **fields: Any) -> Registration:
    """Send an adapter through the pipeline."""
    registration_id = stand.stack.submit(name, source=adapter, base_model=BASE_NAME, **fields)
    return stand.stack.wait_for([registration_id])[registration_id]


def publish(stand: Stand, name: str, adapter: Path, **fields: Any) -> str:
    """Send a good adapter through the pipeline; returns the served name."""
    registration = register(stand, name, adapter, **fields)
    assert registration.outcome == "published", registration.findings
    assert registration.served_name
    return registration.served_name


def check_answer(server: VllmServer, model: str, reference: Reference, *, prompt: str = PROMPT) -> httpx.Response:
    """The server's greedy answer is the one that PEFT gives, with its log-probabilities."""
    response = server.complete(model, prompt, tokens=TOKENS, return_token_ids=True)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    _, tokens, log_probability = reference.answer(prompt, tokens=TOKENS)
    assert choice["token_ids"] == tokens, choice["text"]
    assert abs(sum(choice["logprobs"]["token_logprobs"]) - log_probability) < CLOSE
    return response


def stream(server: VllmServer, model: str, prompt: str) -> tuple[int, str, str]:
    """A streamed answer: status, the version that answered, and the text."""
    body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
        said = [json.loads(event)["choices"][0]["text"] for event in events if event != "[DONE]"]
        return response.status_code, response.headers.get(HEADER, ""), "".join(said)


def acks_of_the_agent(stand: Stand, served_name: str) -> Mapping[str, Ack]:
    """What the agent said of a version, by its node's id."""
    nodes = NodeRegistry(stand.stack.registry.client, stand.stack.settings)
    return {ack.node_id: ack for ack in nodes.acks(served_name)}


def wait_for_ack(stand: Stand, served_name: str, state: NodeState, *, timeout_s: float = 60) -> Ack:
    """Wait until the agent says so of a version."""

    def said() -> Ack | None:
        ack = acks_of_the_agent(stand, served_name).get(stand.agent.node_id)
        return ack if ack and ack.state is state else None

    try:
        ack = wait_until(said, what=f"{served_name} {state}", timeout_s=timeout_s)
    except AssertionError as error:
        raise AssertionError(f"{error}; it said {acks_of_the_agent(stand, served_name)}") from None
    assert ack
    return ack


def wait_for_version(server: VllmServer, alias: str, served_name: str, *, timeout_s: float = 30) -> None:
    """Wait until requests for an alias are answered by a version."""

    def answered() -> bool:
        response = server.complete(alias, PROMPT, tokens=1)
        return response.status_code == 200 and response.headers[HEADER] == served_name

    wait_until(answered, what=f"{alias} answered by {served_name}", timeout_s=timeout_s)
