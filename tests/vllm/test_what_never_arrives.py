"""What vLLM takes without a word and serves wrongly, or dies of: sent through the pipeline, none reaches an engine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lora_registry.nodes import NodeState
from tests.vllm.asking import check_answer, publish, register, wait_for_ack
from tests.vllm.conftest import Stand
from tests.vllm.models import (
    PROMPT,
    Dimensions,
    Reference,
    change_tensors,
    make_base,
    rewrite_config,
    train_adapter,
)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="session")
def good(stand: Stand) -> Path:
    """An adapter that is right, and that is loaded on both nodes while the wrong ones come."""
    adapter = train_adapter(stand.base, stand.stack.sources / "good", "golf")
    wait_for_ack(stand, publish(stand, "good-bot", adapter), NodeState.ROUTABLE)
    return adapter


def of_another_base(**dimensions: int) -> Callable[[Stand, Path, Path], None]:
    """An adapter that was trained on a base of other dimensions."""

    def make(stand: Stand, good: Path, to: Path) -> None:
        other = make_base(to.with_name(f"base of {to.name}"), Dimensions(**dimensions), steps=1)
        train_adapter(other, to, "hotel", steps=2)

    return make


def with_config(**changes: object) -> Callable[[Stand, Path, Path], None]:
    """The good adapter with other words in its configuration."""

    def make(stand: Stand, good: Path, to: Path) -> None:
        rewrite_config(Path(shutil.copytree(good, to)), **changes)

    return make


def with_names(old: str, new: str) -> Callable[[Stand, Path, Path], None]:
    """The good adapter with other names of tensors."""

    def make(stand: Stand, good: Path, to: Path) -> None:
        change_tensors(Path(shutil.copytree(good, to)), lambda name, tensor: {name.replace(old, new): tensor})

    return make


def with_nan(stand: Stand, good: Path, to: Path) -> None:
    """The good adapter with one number that is none."""

    def change(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        changed = tensor.clone()
        if name.endswith("layers.1.mlp.up_proj.lora_B.weight"):
            changed.view(-1)[3] = float("nan")
        return {name: changed}

    change_tensors(Path(shutil.copytree(good, to)), change)


def truncated(stand: Stand, good: Path, to: Path) -> None:
    """A broken upload."""
    weights = Path(shutil.copytree(good, to)) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def with_one_half(stand: Stand, good: Path, to: Path) -> None:
    """Only lora_A of everything."""
    change_tensors(Path(shutil.copytree(good, to)), lambda name, tensor: {} if "lora_B" in name else {name: tensor})


NEVER_PUBLISHED = {
    "half the hidden size": of_another_base(hidden=64, intermediate=256),
    "half the intermediate size": of_another_base(intermediate=128),
    "fewer kv heads": of_another_base(key_value_heads=1),
    "more layers": of_another_base(layers=3),
    "twice the hidden size": of_another_base(hidden=256),
    "config rank 4, tensors of rank 8": with_config(r=4),
    "config rank 16, tensors of rank 8": with_config(r=16),
    "names of another architecture": with_names("model.layers", "transformer.h"),
    "names without PEFT's prefix": with_names("base_model.model.", ""),
    "another kind of adapter": with_config(peft_type="IA3"),
    "not a number": with_nan,
    "truncated": truncated,
    "one half only": with_one_half,
}


@pytest.mark.parametrize("kind", NEVER_PUBLISHED)
def test_it_is_rejected_before_any_engine_sees_it(stand: Stand, good: Path, kind: str) -> None:
    """The registration ends as rejected, with findings; engines neither list it nor know its name."""
    source = stand.stack.sources / kind.replace(" ", "-")
    NEVER_PUBLISHED[kind](stand, good, source)
    name = f"wrong-{list(NEVER_PUBLISHED).index(kind)}"
    registration = register(stand, name, source)
    assert registration.outcome == "rejected", registration
    assert any(finding.severity == "error" for finding in registration.findings)
    for server in (stand.bare, stand.resolving):
        assert server.complete(f"{name}.v1", PROMPT).status_code == 404


SKIPPED = {
    "rank 32 on a node for 16": {"r": 32, "lora_alpha": 64},
    "DoRA": {"use_dora": True},
    "bias": {"bias": "lora_only"},
}


@pytest.mark.parametrize("kind", SKIPPED)
def test_what_is_valid_and_not_for_vllm_is_skipped(stand: Stand, good: Path, kind: str) -> None:
    """Published, for other engines may take it; both nodes leave it out, and the agent says why."""
    name = f"skipped-{list(SKIPPED).index(kind)}"
    source = train_adapter(stand.base, stand.stack.sources / name, "india", steps=2, **SKIPPED[kind])
    served_name = publish(stand, name, source)
    ack = wait_for_ack(stand, served_name, NodeState.SKIPPED)
    assert ack.code.startswith("ENGINE_")
    assert ack.reason
    for server in (stand.bare, stand.resolving):
        assert server.complete(served_name, PROMPT).status_code == 404
        assert served_name not in server.listed()


def test_the_files_of_a_source_may_go_and_change(stand: Stand, good: Path, tmp_path: Path) -> None:
    """Engines read the node's own copy: a publisher that overwrites or removes what it registered changes nothing."""
    source = Path(shutil.copytree(good, stand.stack.sources / "moving"))
    rewrite_config(source, lora_alpha=32)
    kept = Path(shutil.copytree(source, tmp_path / "kept"))
    served_name = publish(stand, "moving-bot", source)
    wait_for_ack(stand, served_name, NodeState.ROUTABLE)
    (source / "adapter_model.safetensors").write_bytes(b"overwritten")
    reference = Reference(stand.base, kept)
    check_answer(stand.bare, served_name, reference)
    shutil.rmtree(source)
    check_answer(stand.resolving, served_name, reference)


@pytest.mark.parametrize("model", ["../sources/good", "/etc", "good-bot.v1/../good-bot.v1", "default.good-bot.v1", ""])
def test_a_name_is_a_key_and_no_path(stand: Stand, good: Path, model: str) -> None:
    """What is no served name is looked up nowhere."""
    response = stand.resolving.complete(model or "no name.v1", PROMPT)
    assert response.status_code == 404


def test_the_servers_lived_through_all_of_it(stand: Stand, good: Path) -> None:
    """Both are healthy, list nothing wrong, and answer with the good adapter and the base as they should."""
    for server in (stand.bare, stand.resolving):
        assert server.is_healthy()
        assert not [name for name in server.listed() if name.startswith(("wrong", "skipped")) and "." in name]
        check_answer(server, stand.stack.registry.version("good-bot").served_name, Reference(stand.base, good))
