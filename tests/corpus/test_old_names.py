"""Adapters that were trained when transformers gave modules the names that the files still have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

from lora_registry.base_profile import BaseProfile
from tests.corpus.bases import logits, make_model
from tests.corpus.conftest import Corpus
from tests.corpus.judging import judge
from tests.corpus.spoiling import CONFIG, PREFIX, WEIGHTS, Tensors, write_tensors
from tests.helpers.adapters import errors_of

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]


def write_adapter(directory: Path, profile: BaseProfile, targets: list[str]) -> None:
    """An adapter on all modules that the files name so and that end with one of the targets."""
    directory.mkdir()
    tensors: Tensors = {}
    one = b"\x00\x00\x80\x3f"
    for name, shape in profile.disk_modules.items():
        if name.rpartition(".")[2] in targets:
            tensors[f"{PREFIX}{name}.lora_A.weight"] = ("F32", [2, shape.in_features], one * (2 * shape.in_features))
            tensors[f"{PREFIX}{name}.lora_B.weight"] = ("F32", [shape.out_features, 2], one * (2 * shape.out_features))
    assert tensors
    write_tensors(directory / WEIGHTS, tensors)
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": targets, "task_type": "CAUSAL_LM"}
    (directory / CONFIG).write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("base", "targets"), [("mixtral", ["w1", "w2", "w3"]), ("qwen3-moe", ["gate_proj", "up_proj", "down_proj"])]
)
def test_single_experts_fit_and_load(corpus: Corpus, tmp_path: Path, base: str, targets: list[str]) -> None:
    """LoRA on single experts is accepted by both kinds of profile, and real PEFT applies every tensor of it."""
    directory = tmp_path / "adapter"
    write_adapter(directory, corpus.profiles[base], targets)
    for profiles in (corpus.profiles, corpus.of_headers):
        assert errors_of(judge(directory, profiles[base], root=tmp_path)) == []
    model = make_model(base)
    before = logits(model)
    adapted = PeftModel.from_pretrained(model, str(directory)).eval()
    result = set_peft_model_state_dict(adapted, load_peft_weights(str(directory)))
    assert result.unexpected_keys == []
    assert (logits(adapted) - before).abs().max() > 1e-4


def test_a_composite_model_knows_the_names_of_its_files(corpus: Corpus, tmp_path: Path) -> None:
    """An adapter with the names of a LLaVA's files is accepted, and real PEFT applies every tensor of it."""
    directory = tmp_path / "adapter"
    profile = corpus.profiles["llava"]
    language = {name: shape for name, shape in profile.disk_modules.items() if name.startswith("language_model.model")}
    write_adapter(directory, profile.model_copy(update={"disk_modules": language}), ["q_proj", "v_proj"])
    for profiles in (corpus.profiles, corpus.of_headers):
        assert errors_of(judge(directory, profiles["llava"], root=tmp_path)) == []
    model = make_model("llava")
    before = logits(model)
    adapted = PeftModel.from_pretrained(model, str(directory)).eval()
    result = set_peft_model_state_dict(adapted, load_peft_weights(str(directory)))
    assert result.unexpected_keys == []
    assert (logits(adapted) - before).abs().max() > 1e-4
