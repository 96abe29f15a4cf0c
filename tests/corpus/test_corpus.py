from __future__ import annotations

import json
import warnings

import pytest
import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors import safe_open

from lora_registry.base_profile import BaseProfile, equal_shape
from tests.corpus.bases import logits, make_model
from tests.corpus.broken import BROKEN, Broken
from tests.corpus.conftest import Corpus
from tests.corpus.judging import judge
from tests.corpus.make import ANSWERS
from tests.corpus.valid import VALID, Valid
from tests.helpers.adapters import errors_of

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]
HARMLESS = (".modules_to_save.bias",)
"""What PEFT writes and does not read back."""


def test_the_corpus_is_large_enough() -> None:
    """There are at least 80 valid and 100 broken adapters, and no name comes twice."""
    assert len({case.name for case in VALID}) == len(VALID) >= 80
    assert len({case.name for case in BROKEN}) == len(BROKEN) >= 100
    assert {case.valid for case in BROKEN} <= {case.name for case in VALID}


@pytest.mark.parametrize("case", VALID, ids=lambda case: case.name)
def test_no_false_refusal(corpus: Corpus, case: Valid) -> None:
    """What PEFT saved for a base fits it, whether its profile was made with the model or from headers alone."""
    directory = corpus.root / "valid" / case.name
    for profiles in (corpus.profiles, corpus.of_headers):
        findings = judge(directory, profiles[case.base], root=corpus.root)
        assert [finding for finding in findings if finding.severity == "error"] == []


@pytest.mark.parametrize("case", VALID, ids=lambda case: case.name)
def test_valid_adapters_load_and_change_the_answer(corpus: Corpus, case: Valid) -> None:
    """Real PEFT loads every tensor of a valid adapter; the model answers as the saved one did, not as without it."""
    directory = str(corpus.root / "valid" / case.name)
    model = make_model(case.base)
    before = logits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(model, directory).eval()
        result = set_peft_model_state_dict(adapted, load_peft_weights(directory))
    assert [name for name in result.unexpected_keys if not name.endswith(HARMLESS)] == []
    after = logits(adapted)
    assert ((after - before).abs().max() > 1e-4) == case.is_seen
    with safe_open(corpus.root / ANSWERS, "pt") as answers:
        assert torch.allclose(after, answers.get_tensor(case.name), atol=1e-5)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_no_false_acceptance(corpus: Corpus, case: Broken) -> None:
    """A broken or hostile adapter is refused with the codes that say why."""
    base = case.base or next(valid.base for valid in VALID if valid.name == case.valid)
    errors = errors_of(judge(corpus.root / "broken" / case.name, corpus.profiles[base], root=corpus.root))
    assert set(case.codes) <= set(errors)


def test_profiles_survive_json_and_agree(corpus: Corpus) -> None:
    """A profile from headers alone never contradicts the one made with the model, and both read back the same."""
    for name, profile in corpus.profiles.items():
        assert BaseProfile.model_validate_json(profile.model_dump_json()) == profile
        assert equal_shape(profile, corpus.of_headers[name]), name
    others = [name for name in corpus.profiles if name.startswith("llama")]
    equal = [(one, two) for one in others for two in others if equal_shape(corpus.profiles[one], corpus.profiles[two])]
    assert all(one == two for one, two in equal)


def test_the_corpus_is_the_same_every_time(corpus: Corpus) -> None:
    """Configurations are written in one order, so that a second run makes the same files."""
    for case in VALID[:20]:
        fields = json.loads((corpus.root / "valid" / case.name / "adapter_config.json").read_text())
        if isinstance(fields["target_modules"], list):
            assert fields["target_modules"] == sorted(fields["target_modules"])
