"""Questions to servers, and what PEFT says the answer must be."""

from __future__ import annotations

from pathlib import Path

import httpx

from lora_registry.nodes import Ack, NodeRegistry, NodeState
from tests.helpers.waiting import wait_until
from tests.vllm.conftest import Stand
from tests.vllm.models import PROMPT, greedy, log_probabilities, tokens_of
from tests.vllm.server import VllmServer

TOKENS = 12
CLOSE = 0.01
"""Natural logarithms, over a whole answer."""


def check_answer(
    server: VllmServer, model: str, base: Path, adapter: Path | None, *, prompt: str = PROMPT
) -> httpx.Response:
    """The server's greedy answer is the one that PEFT gives, with its log-probabilities."""
    response = server.complete(model, prompt, tokens=TOKENS, return_token_ids=True)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    asked = tokens_of(base, prompt)
    expected = greedy(base, adapter, asked, tokens=TOKENS)
    assert choice["token_ids"] == expected, choice["text"]
    theirs, ours = sum(log_probabilities(base, adapter, asked, expected)), sum(choice["logprobs"]["token_logprobs"])
    assert abs(theirs - ours) < CLOSE, (theirs, ours)
    return response


def wait_for_ack(stand: Stand, served_name: str, state: NodeState, *, timeout_s: float = 60) -> Ack:
    """Wait until the agent says so of a version."""
    nodes = NodeRegistry(stand.stack.registry.client, stand.stack.settings)

    def said() -> Ack | None:
        acks = [ack for ack in nodes.acks(served_name) if ack.node_id == stand.agent.node_id]
        return acks[0] if acks and acks[0].state is state else None

    try:
        ack = wait_until(said, what=f"{served_name} {state}", timeout_s=timeout_s)
    except AssertionError as error:
        raise AssertionError(f"{error}; it said {nodes.acks(served_name)}") from None
    assert ack
    return ack
