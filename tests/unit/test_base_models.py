from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.helpers.adapters import llama_shapes, make_base_config, safetensors_bytes

from lora_workers.base_models import read_base_profile


@pytest.mark.parametrize("other", ["consolidated.safetensors", "model.fp16.safetensors", "adapter_model.safetensors"])
def test_what_lies_beside_the_whole_weights_is_not_part_of_the_base(tmp_path: Path, other: str) -> None:
    """Without an index, model.safetensors is the model: the same weights in another form beside it change nothing."""
    (tmp_path / "config.json").write_text(json.dumps(make_base_config()))
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(llama_shapes(), dtype="BF16"))
    alone = read_base_profile("base", tmp_path, with_model=False)
    shapes = {name.removeprefix("model."): shape for name, shape in llama_shapes().items()}
    (tmp_path / other).write_bytes(safetensors_bytes(llama_shapes() if "fp16" in other else shapes))
    assert read_base_profile("base", tmp_path, with_model=False) == alone


def test_shards_without_an_index_are_read_together(tmp_path: Path) -> None:
    """Where there is neither an index nor model.safetensors, all weights' files make the model."""
    (tmp_path / "config.json").write_text(json.dumps(make_base_config()))
    names = sorted(llama_shapes())
    for number, part in enumerate((names[::2], names[1::2])):
        shapes = {name: llama_shapes()[name] for name in part}
        (tmp_path / f"part-{number}.safetensors").write_bytes(safetensors_bytes(shapes))
    assert "lm_head" in read_base_profile("base", tmp_path, with_model=False).modules
