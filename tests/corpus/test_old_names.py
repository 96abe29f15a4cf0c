"""Adapters that were trained when transformers gave modules the names that the files still have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from peft.utils import transformers_weight_conversion as conversion

from lora_registry.base_profile import ModuleShape
from lora_registry.stacked_experts import CONVERTED_TARGETS
from tests.corpus.bases import logits, make_model
from tests.corpus.conftest import Corpus
from tests.corpus.judging import judge
from tests.corpus.spoiling import CONFIG, PREFIX, WEIGHTS, Tensors, write_tensors
from tests.helpers.adapters import errors_of

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]


DENSE = ["gate_proj", "up_proj", "down_proj"]


def write_adapter(
    directory: Path, modules: Mapping[str, ModuleShape], targets: list[str], *, without: str = "?"
) -> None:
    """An adapter on all of the modules that end with one of the targets, but for those with `without` in the name."""
    directory.mkdir()
    tensors: Tensors = {}
    one = b"\x00\x00\x80\x3f"
    for name, shape in modules.items():
        if name.rpartition(".")[2] in targets and without not in name:
            tensors[f"{PREFIX}{name}.lora_A.weight"] = ("F32", [2, shape.in_features], one * (2 * shape.in_features))
            tensors[f"{PREFIX}{name}.lora_B.weight"] = ("F32", [shape.out_features, 2], one * (2 * shape.out_features))
    assert tensors
    write_tensors(directory / WEIGHTS, tensors)
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": targets, "task_type": "CAUSAL_LM"}
    (directory / CONFIG).write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("base", "targets"), [("mixtral", ["w1", "w2", "w3"]), ("qwen3-moe", DENSE), ("glm4-moe", DENSE)]
)
def test_single_experts_fit_and_load(corpus: Corpus, tmp_path: Path, base: str, targets: list[str]) -> None:
    """LoRA on single experts is accepted by both kinds of profile, and real PEFT applies every tensor of it."""
    directory = tmp_path / "adapter"
    write_adapter(directory, corpus.profiles[base].disk_modules, targets)
    for profiles in (corpus.profiles, corpus.of_headers):
        codes = [finding.code for finding in judge(directory, profiles[base], root=tmp_path)]
        assert codes == ["BASE_NAME_ABSENT"]
    model = make_model(base)
    before = logits(model)
    adapted = PeftModel.from_pretrained(model, str(directory)).eval()
    result = set_peft_model_state_dict(adapted, load_peft_weights(str(directory)))
    assert result.unexpected_keys == []
    assert (logits(adapted) - before).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("base", "targets", "without", "code"),
    [
        ("qwen2-moe", DENSE, "shared", "EXPERTS_NOT_CONVERTED"),
        ("qwen2-moe", DENSE, "?", "EXPERTS_NOT_CONVERTED"),
        ("glm4-moe", DENSE, "?", "MODULE_NOT_TARGETED"),
        ("qwen3-moe", DENSE, "experts.1.gate_proj", "TENSOR_MISSING"),
        ("qwen3-moe", DENSE, "experts.2.", "TENSOR_MISSING"),
        ("mixtral", ["w1", "w2", "w3"], "experts.0.w2", "TENSOR_MISSING"),
    ],
)
def test_single_experts_that_peft_leaves_out_or_refuses(
    corpus: Corpus, tmp_path: Path, base: str, targets: list[str], without: str, code: str
) -> None:
    """Families that PEFT does not convert, dense layers beside experts, and stacks with gaps are refused."""
    directory = tmp_path / "adapter"
    profile = corpus.profiles[base]
    write_adapter(directory, {**profile.modules, **profile.disk_modules}, targets, without=without)
    for profiles in (corpus.profiles, corpus.of_headers):
        assert set(errors_of(judge(directory, profiles[base], root=tmp_path))) == {code}
    try:
        adapted = PeftModel.from_pretrained(make_model(base), str(directory)).eval()
        result = set_peft_model_state_dict(adapted, load_peft_weights(str(directory)))
    except (RuntimeError, ValueError):
        return
    assert result.unexpected_keys


def test_the_converted_families_are_those_of_peft() -> None:
    """The table of converted target modules is the one that PEFT has; names of classes in it are no model_type."""
    families = conversion._MODEL_TO_CONVERSION_PATTERN.items()
    stacks = conversion._MOE_TARGET_MODULE_MAPPING
    theirs = {family: stacks[like] for family, like in families if like in stacks and family.islower()}
    assert {family: dict(ours) for family, ours in CONVERTED_TARGETS.items()} == theirs


def test_a_composite_model_knows_the_names_of_its_files(corpus: Corpus, tmp_path: Path) -> None:
    """An adapter with the names of a LLaVA's files is accepted, and real PEFT applies every tensor of it."""
    directory = tmp_path / "adapter"
    profile = corpus.profiles["llava"]
    language = {name: shape for name, shape in profile.disk_modules.items() if name.startswith("language_model.model")}
    write_adapter(directory, language, ["q_proj", "v_proj"])
    for profiles in (corpus.profiles, corpus.of_headers):
        assert errors_of(judge(directory, profiles["llava"], root=tmp_path)) == []
    model = make_model("llava")
    before = logits(model)
    adapted = PeftModel.from_pretrained(model, str(directory)).eval()
    result = set_peft_model_state_dict(adapted, load_peft_weights(str(directory)))
    assert result.unexpected_keys == []
    assert (logits(adapted) - before).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("targets", "codes"),
    [
        (r"model\.language_model\.layers.*\.(q|v)_proj", []),
        (r"language_model\.model.*\.(q|v)_proj", ["MODULE_NOT_TARGETED"]),
        (["language_model.model.layers.0.self_attn.q_proj", "v_proj"], ["MODULE_NOT_TARGETED"]),
    ],
)
def test_targets_are_asked_for_by_the_running_model_s_names(
    corpus: Corpus, tmp_path: Path, targets: list[str] | str, codes: list[str]
) -> None:
    """PEFT looks for targets among the running model's modules, whatever names the tensors have."""
    directory = tmp_path / "adapter"
    modules = corpus.profiles["llava"].disk_modules
    language = {name: shape for name, shape in modules.items() if name.startswith("language_model.model")}
    write_adapter(directory, language, ["q_proj", "v_proj"])
    fields = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps(fields | {"target_modules": targets}))
    for profiles in (corpus.profiles, corpus.of_headers):
        assert sorted(set(errors_of(judge(directory, profiles["llava"], root=tmp_path)))) == codes
    try:
        adapted = PeftModel.from_pretrained(make_model("llava"), str(directory)).eval()
        result = set_peft_model_state_dict(adapted, load_peft_weights(str(directory)))
    except ValueError:
        assert codes
    else:
        assert bool(result.unexpected_keys) == bool(codes)
