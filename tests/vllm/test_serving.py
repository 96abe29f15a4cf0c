"""From a training job to two vLLM servers that answer with the adapter: trained, registered, announced, loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_registry.nodes import NodeState
from tests.helpers.waiting import wait_until
from tests.vllm.asking import check_answer, wait_for_ack
from tests.vllm.conftest import Stand
from tests.vllm.models import BASE_NAME, train_adapter


def publish(stand: Stand, name: str, adapter: Path) -> str:
    """Send an adapter through the pipeline; returns the served name."""
    registration_id = stand.stack.submit(name, source=adapter, base_model=BASE_NAME)
    registration = stand.stack.wait_for([registration_id])[registration_id]
    assert registration.outcome == "published", registration.findings
    assert registration.served_name
    return registration.served_name


@pytest.mark.timeout(600)
def test_what_is_trained_answers_on_both_nodes(stand: Stand, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Log-probabilities are PEFT's within 0.01, through the agent's node and through the plug-in's."""
    adapter = train_adapter(stand.base, stand.stack.sources / "first", "bravo")
    served_name = publish(stand, "first-bot", adapter)
    wait_for_ack(stand, served_name, NodeState.ROUTABLE)
    check_answer(stand.bare, served_name, stand.base, adapter)
    check_answer(stand.resolving, served_name, stand.base, adapter)
    wait_until(lambda: "first-bot" in stand.resolving.listed(), what="the alias in the list of models")
    response = check_answer(stand.resolving, "first-bot", stand.base, adapter)
    assert response.headers["x-lora-served-name"] == served_name
    assert response.json()["model"] == served_name
