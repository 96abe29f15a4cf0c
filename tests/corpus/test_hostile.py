"""Hostile files that are too large to keep, and file systems that do not behave."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import time
from pathlib import Path

import pytest

from lora_registry.adapter_config import parse_adapter_config
from lora_registry.compatibility import check_compatibility
from lora_registry.errors import Rejected
from lora_registry.findings import Finding
from lora_registry.module_patterns import is_hazardous
from lora_registry.stages.validate import read_staged_header
from lora_workers.linear_patterns import linear_time_patterns
from lora_workers.sources.local import LocalSource
from tests.corpus.judging import judge
from tests.corpus.spoiling import CONFIG, WEIGHTS
from tests.helpers.adapters import codes_of, errors_of, make_adapter, make_base

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A legal adapter for the tiny Llama."""
    directory = tmp_path / "root" / "adapter"
    directory.mkdir(parents=True)
    (directory / CONFIG).write_bytes(make_adapter().config_bytes)
    (directory / WEIGHTS).write_bytes(make_adapter().weights_bytes)
    return directory


def verdict(directory: Path) -> list[Finding]:
    """What is wrong with it."""
    return judge(directory, make_base(), root=directory.parent)


def test_the_legal_one_is_accepted(adapter: Path) -> None:
    """Nothing is wrong before something is spoilt."""
    assert verdict(adapter) == []


def test_header_of_100_mb_is_not_read(adapter: Path) -> None:
    """A header larger than any adapter needs is refused by its length, without memory for it."""
    length = 100_000_000
    with (adapter / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", length) + b"{")
        file.truncate(8 + length)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert codes_of(verdict(adapter)) == ["WEIGHTS_HEADER_TOO_LARGE"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_60000_empty_tensors_are_refused(adapter: Path) -> None:
    """Very many tensors without a byte each end at the first."""
    entry = {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]}
    header = json.dumps({f"t{number}": entry for number in range(60_000)}).encode()
    (adapter / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header)
    assert codes_of(verdict(adapter)) == ["TENSOR_EMPTY"]


def test_60000_foreign_tensors_give_a_bounded_verdict(adapter: Path) -> None:
    """Very many tensors that mean nothing give a bounded list of findings in little time."""
    entries = {f"t{n}": {"dtype": "U8", "shape": [1], "data_offsets": [n, n + 1]} for n in range(60_000)}
    header = json.dumps(entries).encode()
    (adapter / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + bytes(60_000))
    findings = verdict(adapter)
    assert findings[-1].code == "TOO_MANY_FINDINGS"
    assert len(findings) < 1100


def test_large_lists_and_tables_are_judged_in_bounded_time() -> None:
    """Ten thousand targets, patterns of all shapes and saved names do not multiply to minutes."""
    names = [f"model.layers.{layer}.self_attn.x{number}" for layer in range(10) for number in range(1000)]
    began = time.monotonic()
    for changes in (
        {"target_modules": [*names, "q_proj", "v_proj"]},
        {"rank_pattern": dict.fromkeys(names, 4)},
        {"exclude_modules": names},
        {"modules_to_save": names[:100]},
        {"target_parameters": names},
    ):
        errors_of(make_adapter(**changes).check())  # type: ignore[arg-type]
    assert time.monotonic() - began < 30  # a bound against hanging, not a measurement


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "([a-z._0-9]|[a-z._0-9]{2})+!", "(a|aa)*b", "(.*)*x", ".*.*.*.*.*.*.*x", "((a{1,9}){1,9}){1,9}"],
)
def test_patterns_that_hang_engines_are_known(pattern: str) -> None:
    """An expression on which backtracking engines hang is refused before any engine sees it."""
    assert is_hazardous(pattern)


def test_patterns_that_are_let_through_are_matched_in_linear_time() -> None:
    """What is not refused is matched by RE2: a long name costs no more than its length."""
    compile_pattern = linear_time_patterns()
    if compile_pattern is None:
        pytest.skip("google-re2 is not installed")
    matches = compile_pattern(r".*a.*a.*a.*a.*a.*!")
    began = time.monotonic()
    assert not matches("a" * 100_000)
    assert time.monotonic() - began < 10  # a bound against hanging, not a measurement


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_file_that_becomes_a_pipe_is_not_waited_for(adapter: Path, name: str) -> None:
    """A file that was pinned and is a pipe, a link or another file when it is opened is refused at once."""
    source = LocalSource([adapter.parent])
    pinned = source.resolve(str(adapter))
    file = pinned.config if name == CONFIG else pinned.weights
    original = (adapter / name).read_bytes()
    for spoil in (
        lambda: os.mkfifo(adapter / name),
        lambda: (adapter / name).symlink_to("/etc/hostname"),
        lambda: (adapter / name).mkdir(),
        lambda: (adapter / name).write_bytes(original),
    ):
        path = adapter / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        spoil()
        with pytest.raises(Rejected) as caught:
            source.read(file, limit_bytes=100)
        assert caught.value.findings[0].code in {"FILE_NOT_REGULAR", "SOURCE_CHANGED"}


def test_directories_that_are_no_adapters(adapter: Path) -> None:
    """Roots are real places: links out of them, relative paths and NUL bytes lead nowhere."""
    root = adapter.parent
    source = LocalSource([root])
    (root / "out").symlink_to("/etc")
    (root / "loop").symlink_to("loop")
    (root / "link").symlink_to("adapter")
    assert source.resolve(str(root / "link")).config.location == str(adapter / CONFIG)
    for path in (root / "out", root / "loop", root / "adapter" / ".." / ".." / "root2", Path("adapter"), root / "a\0b"):
        with pytest.raises(Rejected):
            source.resolve(str(path))


def test_tokenizer_files_are_offered_if_they_are_regular(adapter: Path) -> None:
    """A tokenizer beside the adapter is pinned; a hostile file in its place is left out and refuses nothing."""
    (adapter / "tokenizer.json").write_text("{}")
    os.mkfifo(adapter / "vocab.json")
    (adapter / "added_tokens.json").symlink_to("/etc/hostname")
    pinned = LocalSource([adapter.parent]).resolve(str(adapter))
    assert [file.name for file in pinned.tokenizer] == ["tokenizer.json"]
    assert type(pinned).from_json(pinned.to_json()) == pinned


def test_a_mixture_with_very_many_experts_is_judged(tmp_path: Path) -> None:
    """A header of 25,000 tensors with single experts is judged whole."""
    shapes: dict[str, tuple[int, ...]] = {}
    experts: dict[str, tuple[int, ...]] = {}
    for layer in range(2):
        for expert in range(2000):
            for projection, (out, in_) in {"gate_proj": (4, 8), "up_proj": (4, 8), "down_proj": (8, 4)}.items():
                at = f"model.layers.{layer}.mlp.experts.{expert}.{projection}"
                experts[f"{at}.weight"] = (out, in_)
                shapes[f"base_model.model.{at}.lora_A.weight"] = (1, in_)
                shapes[f"base_model.model.{at}.lora_B.weight"] = (out, 1)
    ends = {"model.embed_tokens.weight": (8, 8), "lm_head.weight": (8, 8)}
    base = make_base(ends | experts, model_type="qwen3_moe")
    adapter = make_adapter(rank=1, target_modules=["gate_proj", "up_proj", "down_proj"])
    whole = type(adapter)(adapter.config, shapes)
    path = tmp_path / WEIGHTS
    path.write_bytes(whole.weights_bytes)
    config = parse_adapter_config(whole.config_bytes)
    findings = check_compatibility(config, read_staged_header(str(path)), base)
    assert errors_of(findings) == []
