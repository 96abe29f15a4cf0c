import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import safetensors

ROOT = Path(__file__).resolve().parents[2]
DEMO_DATA = Path(str(resources.files("lora_workers"))) / "demo_data"

BASES = ("tiny-llama", "wide-llama")
BASE_FILES = {"config.json", "generation_config.json", "model.safetensors"}
GOOD_ADAPTERS = ("support-bot", "support-bot-retrained", "sql-writer")
ADAPTERS = (*GOOD_ADAPTERS, "wrong-base", "truncated")
ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors"}
WHOLE_WEIGHTS = [
    *(f"bases/{name}/model.safetensors" for name in BASES),
    *(f"adapters/{name}/adapter_model.safetensors" for name in ADAPTERS if name != "truncated"),
]
CONFIGS = [
    *(f"bases/{name}/config.json" for name in BASES),
    *(f"adapters/{name}/adapter_config.json" for name in ADAPTERS),
]

# A path on somebody's machine: /home/…, ~/…, C:\…
MACHINE_PATH = re.compile(r'"(/|~|[A-Za-z]:\\|file:)')


def data_files(directory: Path) -> set[Path]:
    """The files below `bases` and `adapters`, relative to `directory`."""
    folders = (directory / "bases", directory / "adapters")
    return {path.relative_to(directory) for folder in folders for path in folder.rglob("*") if path.is_file()}


def shapes(weights: Path) -> dict[str, list[int]]:
    """Each tensor's shape, as safetensors reads it."""
    return {name: tensor["shape"] for name, tensor in safetensors.deserialize(weights.read_bytes())}


def adapter_weights(name: str) -> Path:
    """Where an adapter's weight file is."""
    return DEMO_DATA / "adapters" / name / "adapter_model.safetensors"


def config(relative: str, *, directory: Path = DEMO_DATA) -> Any:
    """A JSON file of the demo data, or of a remake in `directory`."""
    return json.loads((directory / relative).read_text())


def projections_that_differ(adapter: str, base: str) -> set[str]:
    """The modules whose `[out, in]` in the adapter is not the base's."""
    base_shapes = shapes(DEMO_DATA / "bases" / base / "model.safetensors")
    adapter_shapes = shapes(adapter_weights(adapter))
    differ = set()
    for name, lora_a in adapter_shapes.items():
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        lora_b = adapter_shapes[name.replace(".lora_A.", ".lora_B.")]
        if base_shapes[f"{module}.weight"] != [lora_b[0], lora_a[1]]:
            differ.add(module)
    return differ


def test_every_model_and_adapter_is_packaged_and_nothing_else() -> None:
    """A directory holds what transformers or PEFT saves for serving, without model cards."""
    assert {path.as_posix() for path in data_files(DEMO_DATA)} == {
        *(f"bases/{base}/{file}" for base in BASES for file in BASE_FILES),
        *(f"adapters/{adapter}/{file}" for adapter in ADAPTERS for file in ADAPTER_FILES),
    }


def test_the_package_data_is_small() -> None:
    """An installed wheel carries it, so all of it stays below 2 MB and each base below 400 kB."""
    assert sum((DEMO_DATA / path).stat().st_size for path in data_files(DEMO_DATA)) < 2_000_000
    for base in BASES:
        assert (DEMO_DATA / "bases" / base / "model.safetensors").stat().st_size < 400_000


@pytest.mark.parametrize("weights", WHOLE_WEIGHTS)
def test_weights_are_readable(weights: str) -> None:
    """safetensors reads every weight file but the one that is cut short on purpose."""
    assert shapes(DEMO_DATA / weights)


def test_the_truncated_adapter_is_a_good_one_cut_short() -> None:
    """Its header is whole and its tensors are not, as a broken upload leaves it."""
    cut = adapter_weights("truncated").read_bytes()

    assert adapter_weights("support-bot").read_bytes().startswith(cut)
    assert len(cut) > 8 + int.from_bytes(cut[:8], "little")
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(cut)


def test_no_file_names_a_path_on_a_machine() -> None:
    """Neither a configuration nor a weight header says where it was made."""
    texts = [(DEMO_DATA / path).read_text() for path in CONFIGS]
    for path in WHOLE_WEIGHTS:
        content = (DEMO_DATA / path).read_bytes()
        texts.append(content[8 : 8 + int.from_bytes(content[:8], "little")].decode())

    assert [text for text in texts if MACHINE_PATH.search(text)] == []


def test_adapters_name_their_base_neutrally() -> None:
    """The configuration names the base that the adapter was trained on, as a hub would."""
    bases = {name: config(f"adapters/{name}/adapter_config.json")["base_model_name_or_path"] for name in ADAPTERS}

    assert bases.pop("wrong-base") == "lora-registry/wide-llama"
    assert set(bases.values()) == {"lora-registry/tiny-llama"}


@pytest.mark.parametrize("adapter", GOOD_ADAPTERS)
def test_good_adapters_fit_tiny_llama(adapter: str) -> None:
    """Every projection they adapt has the shape that tiny-llama has."""
    assert projections_that_differ(adapter, "tiny-llama") == set()


def test_the_wrong_base_adapter_fits_the_base_it_was_trained_on_and_no_projection_of_the_other() -> None:
    """The demo's mismatch is a real one: right for wide-llama, wrong for tiny-llama everywhere."""
    assert projections_that_differ("wrong-base", "wide-llama") == set()
    assert len(projections_that_differ("wrong-base", "tiny-llama")) == 8


def test_bases_use_grouped_query_attention() -> None:
    """Key and value projections are narrower than queries, so `[out, in]` tells them apart."""
    for base in BASES:
        described = config(f"bases/{base}/config.json")
        assert described["num_key_value_heads"] < described["num_attention_heads"]


@pytest.mark.parametrize("adapter", [*GOOD_ADAPTERS, "wrong-base"])
def test_adapters_are_trained(adapter: str) -> None:
    """PEFT starts lora_B at zero: after real training steps none is."""
    tensors = safetensors.deserialize(adapter_weights(adapter).read_bytes())

    untrained = [name for name, tensor in tensors if ".lora_B." in name and not any(tensor["data"])]

    assert untrained == []


def test_the_retrained_adapter_differs_in_its_weights_alone() -> None:
    """It is what a later training run saves: same configuration, same tensors, other bytes."""
    assert config("adapters/support-bot/adapter_config.json") == config(
        "adapters/support-bot-retrained/adapter_config.json"
    )
    assert shapes(adapter_weights("support-bot")) == shapes(adapter_weights("support-bot-retrained"))
    assert adapter_weights("support-bot").read_bytes() != adapter_weights("support-bot-retrained").read_bytes()


def test_adapters_cover_plain_and_rank_stabilised_lora() -> None:
    """One is rsLoRA over every linear layer, which some engines scale wrongly."""
    support_bot = config("adapters/support-bot/adapter_config.json")
    sql_writer = config("adapters/sql-writer/adapter_config.json")

    assert (support_bot["r"], support_bot["use_rslora"]) == (8, False)
    assert support_bot["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert (sql_writer["r"], sql_writer["use_rslora"]) == (16, True)
    assert {name.rpartition(".")[2] for name in sql_writer["target_modules"]} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }


def test_the_script_remakes_the_same_shapes_and_configurations(tmp_path: Path) -> None:
    """transformers and PEFT write what is packaged; only the values may differ between machines."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.helpers.make_demo_data", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert data_files(tmp_path) == data_files(DEMO_DATA)
    for path in WHOLE_WEIGHTS:
        assert shapes(tmp_path / path) == shapes(DEMO_DATA / path)
    for path in CONFIGS:
        assert config(path, directory=tmp_path) == config(path)
