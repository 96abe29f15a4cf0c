"""The canary stage with a real vLLM: it publishes what answers, and nothing that vLLM takes and answers wrongly."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lora_registry.findings import Severity
from lora_registry.registrations import Outcome, Registration
from lora_registry.stages import ORDER
from lora_workers.base_models import read_base_profile
from tests.helpers.servers import remove_keys
from tests.helpers.stack import Stack, make_settings
from tests.vllm.models import BASE_NAME, make_base, train_adapter
from tests.vllm.server import VLLM, VllmServer

pytestmark = pytest.mark.timeout(600)


@dataclass
class Stand:
    """A pipeline with a canary engine.

    Attributes:
        stack: the processes.
        engine: the vLLM that is set apart.
        base: directory of the base model.
    """

    stack: Stack
    engine: VllmServer
    base: Path

    def adapter(self, name: str, **how: float | int | dict[str, float]) -> Path:
        """Train an adapter."""
        return train_adapter(self.base, self.stack.sources / name, "bravo", **how)  # type: ignore[arg-type]

    def register(self, name: str, adapter: Path) -> Registration:
        """Send it through the pipeline; afterwards the engine has no adapter."""
        registration_id = self.stack.submit(name, source=adapter, base_model=BASE_NAME)
        ended = self.stack.wait_for([registration_id], timeout_s=300)[registration_id]
        assert list(self.engine.listed()) == ["base"]
        return ended


@pytest.fixture(scope="module")
def stand(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """One server and one pipeline for all tests here."""
    if not VLLM.exists():
        pytest.fail("there is no vLLM: run `make test-vllm`, which installs it")
    directory = tmp_path_factory.mktemp("canary")
    base = make_base(directory / "base")
    engine = VllmServer(base, directory / "engine")
    prefix = f"{{test-{secrets.token_hex(6)}}}"
    changes = {"lease_s": 10.0, "stall_timeout_s": 60.0, "max_lora_rank": 64, "max_attempts": 100}
    engines = {BASE_NAME: f"vllm@{engine.url}"}
    settings = make_settings(server_url, directory, key_prefix=prefix, canary_engines=engines, **changes)
    stack = Stack(settings, directory)
    try:
        engine.start()
        stack.dispatchers()
        stack.worker(*ORDER)
        stack.registry.catalog.bases.add(read_base_profile(BASE_NAME, base, with_model=False))
        stack.wait_for_slots()
        engine.wait()
        yield Stand(stack, engine, base)
    finally:
        engine.stop()
        stack.close()
        print(engine.log.read_text(errors="replace")[-3000:])
    remove_keys(stack.registry.client, prefix)


def error_of(registration: Registration) -> tuple[Outcome | None, str, str]:
    """Outcome, and the code and what was found of its one error."""
    (finding,) = (each for each in registration.findings if each.severity is Severity.ERROR)
    return registration.outcome, finding.code, finding.actual


def test_trained_adapter_is_published(stand: Stand) -> None:
    """It answers otherwise than the base model, even after a few steps of training only."""
    assert stand.register("trained", stand.adapter("trained")).outcome is Outcome.PUBLISHED
    assert stand.register("faint", stand.adapter("faint", steps=1)).outcome is Outcome.PUBLISHED


def test_adapter_that_was_never_trained_is_rejected(stand: Stand) -> None:
    """lora_B is zero: vLLM loads it, says 200, and answers as the base model does, to the last digit."""
    silent = stand.adapter("silent", steps=1, weights={"lora_B.weight": 0.0})
    assert error_of(stand.register("silent", silent))[:2] == (Outcome.REJECTED, "CANARY_NO_EFFECT")


def test_nan_is_rejected_and_spoils_no_later_verdict(stand: Stand) -> None:
    """vLLM loads it and cannot write its answer; the good one and the silent one after it are judged rightly."""
    broken = stand.adapter("broken", steps=1, weights={"lora_B.weight": float("nan")})
    good = stand.adapter("good")
    silent = stand.adapter("again-silent", steps=2, weights={"lora_B.weight": 0.0})
    assert error_of(stand.register("broken", broken))[:2] == (Outcome.REJECTED, "CANARY_NOT_FINITE")
    assert stand.register("good", good).outcome is Outcome.PUBLISHED
    assert error_of(stand.register("again-broken", broken))[:2] == (Outcome.REJECTED, "CANARY_NOT_FINITE")
    assert error_of(stand.register("again-silent", silent))[:2] == (Outcome.REJECTED, "CANARY_NO_EFFECT")


def test_rank_that_the_engine_does_not_take_is_rejected_in_its_words(stand: Stand) -> None:
    """vLLM says 500 to that, and is well."""
    outcome, code, words = error_of(stand.register("large", stand.adapter("large", steps=1, r=64)))
    assert (outcome, code) == (Outcome.REJECTED, "CANARY_NOT_LOADED")
    assert "LoRA rank 64 is greater than max_lora_rank 16" in words


def test_engine_that_was_killed_is_waited_for(stand: Stand) -> None:
    """What is registered meanwhile is published once it is back."""
    adapter = stand.adapter("patient", steps=5)
    stand.engine.kill()
    registration_id = stand.stack.submit("patient", source=adapter, base_model=BASE_NAME)
    stand.stack.wait_until(lambda: stand.stack.client.status(registration_id).attempts >= 1, what="a failed try")
    stand.engine.start()
    stand.engine.wait()
    ended = stand.stack.wait_for([registration_id])[registration_id]
    assert ended.outcome is Outcome.PUBLISHED
    assert list(stand.engine.listed()) == ["base"]
