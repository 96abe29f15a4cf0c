from __future__ import annotations

import pytest
from tests.helpers.adapters import codes_of

from lora_registry.adapter_files import check_files


def test_both_files_are_enough() -> None:
    """A directory with both files is an adapter, whatever else lies there."""
    names = [
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter_model.bin",
        "README.md",
        "optimizer.pt",
    ]
    assert check_files(names) == []


@pytest.mark.parametrize(
    ("names", "codes"),
    [
        ([], ["FILE_MISSING", "FILE_MISSING"]),
        (["adapter_config.json"], ["FILE_MISSING"]),
        (["adapter_model.safetensors"], ["FILE_MISSING"]),
        (["adapter_config.json", "adapter_model.bin"], ["FORMAT_PICKLE"]),
        (["adapter_model.bin"], ["FORMAT_PICKLE", "FILE_MISSING"]),
        (["adapter_config.json", "adapter_model.safetensors.index.json"], ["FORMAT_SHARDED"]),
        (["adapter_config.json", "adapter_model-00001-of-00002.safetensors"], ["FORMAT_SHARDED"]),
        (["adapter_config.json", "adapters.safetensors"], ["FORMAT_MLX"]),
        (["pytorch_lora_weights.safetensors"], ["FORMAT_DIFFUSERS", "FILE_MISSING"]),
        (["my_style.safetensors"], ["FORMAT_KOHYA", "FILE_MISSING"]),
        (["config.json", "model.safetensors"], ["FORMAT_FULL_MODEL", "FILE_MISSING"]),
        (["config.json", "model-00001-of-00002.safetensors"], ["FORMAT_FULL_MODEL", "FILE_MISSING"]),
        (["lora.gguf"], ["FORMAT_GGUF", "FILE_MISSING"]),
        (
            ["global_step1/mp_rank_00_model_states.pt", "zero_to_fp32.py"],
            ["FORMAT_TRAINING_STATE", "FILE_MISSING"],
        ),
        (["lora.pt"], ["FORMAT_PICKLE", "FILE_MISSING"]),
        (["adapter_config.json", "training_args.bin"], ["FILE_MISSING"]),
        (["x/adapter_config.json", "x/adapter_model.safetensors"], ["FILES_IN_SUBFOLDER"]),
    ],
)
def test_what_lies_there_instead_is_named(names: list[str], codes: list[str]) -> None:
    """A directory that is no PEFT adapter is told what it looks like, and which file is missing."""
    assert codes_of(check_files(names)) == codes
