"""The numeric pass on adapters that real PEFT saved, against the changes that PEFT itself computes."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from lora_registry.adapter_config import parse_adapter_config
from lora_registry.numeric_report import NumericReport
from lora_workers.linear_patterns import linear_time_patterns
from lora_workers.numeric.numeric_pass import NumericChecks
from tests.corpus.bases import make_model
from tests.corpus.conftest import Corpus
from tests.corpus.valid import VALID, Valid

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]
_SCALED = {"ZERO_DELTA", "SCALE_OUTLIER", "NORM_OUTLIER", "MAGNITUDE_INVALID"}
"""What random values and odd scales may well bring about."""


def measure(corpus: Corpus, case: Valid) -> NumericReport:
    """The pass over one valid adapter."""
    directory = corpus.root / "valid" / case.name
    raw = (directory / "adapter_model.safetensors").read_bytes()
    config = parse_adapter_config(
        (directory / "adapter_config.json").read_bytes(), compile_pattern=linear_time_patterns()
    )
    started = NumericChecks("cpu")(config, corpus.profiles[case.base], size_bytes=len(raw))
    started.feed(memoryview(raw))
    return started.finish()


def changes(corpus: Corpus, case: Valid) -> dict[str, torch.Tensor]:
    """What PEFT adds to each module's weight, `[out, in]` or `[experts, out, in]`, by the module's name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(make_model(case.base), str(corpus.root / "valid" / case.name))
    found = {}
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            parameter = getattr(module, "parameter_name", "")
            owner = name.replace(".base_layer", "")
            found[f"{owner}.{parameter}" if parameter else name] = module.get_delta_weight("default").detach().double()
    return found


@pytest.mark.parametrize("case", VALID, ids=lambda case: case.name)
def test_sizes_are_those_of_peft(corpus: Corpus, case: Valid) -> None:
    """Every spectrum that is shown has the norm and singular value of the change that PEFT computes."""
    report = measure(corpus, case)
    assert {finding.code for finding in report.findings} <= _SCALED
    assert report.bytes_read > 0
    wanted = changes(corpus, case)
    for family in report.families:
        for spectrum in family.largest:
            change = wanted.get(spectrum.module)
            if change is None:  # an old name, which PEFT converts when it loads
                continue
            assert spectrum.frobenius == pytest.approx(change.norm().item(), rel=1e-3)
            sigma = torch.linalg.matrix_norm(change, ord=2).max().item()
            assert spectrum.sigma_1 == pytest.approx(sigma, rel=1e-3)
