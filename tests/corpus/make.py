"""Makes the corpus: `python -m tests.corpus.make DIRECTORY`. The same every time."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from lora_registry.base_profile import BaseProfile
from lora_workers.base_models import read_base_profile
from tests.corpus.bases import BASES, logits, make_model, save_base
from tests.corpus.broken import BROKEN
from tests.corpus.valid import VALID, Valid

ANSWERS = "answers.safetensors"
"""The answer of every model that an adapter was saved from, by the valid variant's name."""


def make_bases(directory: Path) -> None:
    """Write every base below `directory`."""
    for name in BASES:
        save_base(name, directory / name)


def read_profiles(directory: Path, *, with_model: bool = True) -> dict[str, BaseProfile]:
    """The profile of every base."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: read_base_profile(f"tiny/{name}", directory / name, with_model=with_model) for name in BASES}


def make_valid(case: Valid, directory: Path) -> torch.Tensor:
    """Have PEFT make and save one adapter; every trained tensor gets random values, so that it does something.

    Returns:
        The answer of the model that was saved: `[1, tokens, vocabulary]`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(make_model(case.base), LoraConfig(**case.lora))
        torch.manual_seed(11)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.randn_like(parameter)
        model.peft_config["default"].base_model_name_or_path = f"tiny/{case.base}"
        answer = logits(model.eval())
        model.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)
    _sort_sets(directory / "adapter_config.json")
    return answer


def _sort_sets(path: Path) -> None:
    """PEFT writes sets in random order; a corpus is the same every time."""
    fields: dict[str, Any] = json.loads(path.read_text())
    for name in ("target_modules", "exclude_modules", "target_parameters"):
        if isinstance(fields.get(name), list):
            fields[name] = sorted(fields[name])
    path.write_text(json.dumps(fields, indent=1))


def make_corpus(directory: Path) -> None:
    """Write bases/, valid/, broken/ and the valid ones' answers below `directory`."""
    make_bases(directory / "bases")
    answers = {valid.name: make_valid(valid, directory / "valid" / valid.name) for valid in VALID}
    save_file(answers, directory / ANSWERS)
    for broken in BROKEN:
        target = directory / "broken" / broken.name
        shutil.copytree(directory / "valid" / broken.valid, target)
        broken.spoil(target)


if __name__ == "__main__":
    make_corpus(Path(sys.argv[1]))
