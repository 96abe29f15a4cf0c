"""What adapter_config.json may hold, asked of PEFT itself. FUZZ_LOADS says how many combinations are tried."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    MODEL_TYPE_TO_PEFT_MODEL_MAPPING,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)

from lora_registry.adapter_config import ConfigError, parse_adapter_config
from lora_registry.base_profile import BaseProfile
from lora_registry.compatibility import check_compatibility
from lora_registry.config_fields import FIELDS
from lora_workers.base_models import read_base_profile
from lora_workers.linear_patterns import linear_time_patterns
from tests.corpus.bases import make_model, save_base
from tests.corpus.config_values import ANY_TYPE, WELL_TYPED, any_value, well_typed_value
from tests.corpus.spoiling import CONFIG
from tests.helpers.adapters import errors_of, header_of, safetensors_bytes

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(3600)]
COMBINATIONS = 2 * int(os.environ.get("FUZZ_LOADS", "150"))
SEED = int(os.environ.get("FUZZ_SEED", "20261"))
_PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "base_model_name_or_path": "tiny/llama",
}
_NEEDS: dict[str, dict[str, Any]] = {
    "layers_pattern": {"layers_to_transform": [0]},
}
"""What must be said beside a field that means nothing alone."""
_OF_THE_CONFIG = ("CONFIG_", "PATTERN_", "VARIANT_", "PEFT_TYPE_", "TARGET_", "LAYER_REPLICATION_")
"""Beginnings of the codes that say what is wrong with a configuration, whatever tensors come with it."""


class Peft:
    """Real PEFT, asked about configurations."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._model = make_model("llama")

    def shapes(self, fields: dict[str, Any]) -> dict[str, tuple[int, ...]] | str:
        """The tensors of an adapter with this configuration once it has been put on a model, loaded and asked; or why
        that failed.
        """
        (self._directory / CONFIG).write_text(json.dumps(fields))
        try:
            config = PeftConfig.from_pretrained(str(self._directory))
            config.inference_mode = True
            kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
            model = kind(copy.deepcopy(self._model), config, "default").eval()
            tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
            set_peft_model_state_dict(model, tensors)
            with torch.no_grad():
                model(input_ids=torch.arange(3, 11).reshape(1, 8))
        except Exception as error:  # noqa: BLE001 - whatever PEFT raises is a refusal
            return f"{type(error).__name__}: {error}"
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def peft(tmp_path_factory: pytest.TempPathFactory) -> Peft:
    """Real PEFT and a model for it."""
    return Peft(tmp_path_factory.mktemp("peft"))


def _errors(fields: dict[str, Any], shapes: dict[str, tuple[int, ...]], base: BaseProfile) -> list[str]:
    """The codes with which an adapter with this configuration and these tensors is refused."""
    try:
        config = parse_adapter_config(json.dumps(fields).encode(), compile_pattern=linear_time_patterns())
    except ConfigError as error:
        return errors_of(error.findings)
    header = header_of(safetensors_bytes(shapes))
    return errors_of(check_compatibility(config, header, base))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseProfile:
    """The profile of that model."""
    directory = tmp_path_factory.mktemp("base")
    save_base("llama", directory)
    return read_base_profile("tiny/llama", directory)


def test_every_field_of_peft_has_a_reader() -> None:
    """The table has the fields of PEFT's LoraConfig, all of them and no other, and so have the values tried here."""
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert fields == FIELDS.keys() == WELL_TYPED.keys()


@pytest.mark.parametrize("name", sorted(WELL_TYPED))
def test_no_value_that_peft_refuses_is_accepted(name: str, peft: Peft, base: BaseProfile) -> None:
    """Whatever the type of a field's value: where real PEFT fails, the configuration is refused."""
    plain = peft.shapes(_PLAIN)
    assert isinstance(plain, dict)
    for value in ANY_TYPE + WELL_TYPED[name]:
        fields = _PLAIN | {name: value}
        why = peft.shapes(fields)
        if isinstance(why, str):
            errors = [code for code in _errors(fields, plain, base) if code.startswith(_OF_THE_CONFIG)]
            assert errors or _is_about_the_base(why), f"{name}: {value!r} is accepted, but PEFT says {why}"


@pytest.mark.parametrize("name", sorted(WELL_TYPED))
def test_well_typed_values_are_accepted(name: str, peft: Peft, base: BaseProfile) -> None:
    """A value of the type that PEFT declares for its field is accepted, as it is by PEFT, with PEFT's own tensors."""
    for value in WELL_TYPED[name]:
        fields = _PLAIN | {name: value, **_NEEDS.get(name, {})}
        shapes = peft.shapes(fields)
        assert isinstance(shapes, dict), f"{name}: {value!r}: {shapes}"
        assert _errors(fields, shapes, base) == [], f"{name}: {value!r}"


def test_combinations_are_judged_as_by_peft(peft: Peft, base: BaseProfile) -> None:
    """Several fields changed at once, one of them to a value of any type in some cases: a configuration that real PEFT
    refuses is refused, and a well-typed one that it takes is accepted.
    """
    plain = peft.shapes(_PLAIN)
    assert isinstance(plain, dict)
    rng = random.Random(SEED)
    taken, disagreements = 0, []
    for _ in range(COMBINATIONS):
        typed = rng.random() < 0.7
        changes = well_typed_value(rng) | well_typed_value(rng) | (well_typed_value if typed else any_value)(rng)
        fields = _PLAIN | changes
        answer = peft.shapes(fields)
        if isinstance(answer, dict):
            taken += 1
            if typed and (errors := _errors(fields, answer, base)):
                disagreements.append(f"{changes}: PEFT takes it, but {errors}")
        elif not _is_about_the_base(answer):
            errors = [code for code in _errors(fields, plain, base) if code.startswith(_OF_THE_CONFIG)]
            if not errors:
                disagreements.append(f"{changes}: accepted, but PEFT says {answer[:200]}")
    assert taken
    assert not disagreements, "\n".join(disagreements)


def _is_about_the_base(why: str) -> bool:
    """Whether PEFT found nothing to change: then there are no tensors, which is judged with the tensors."""
    return why.startswith("NoMatchingPeftModuleError")
