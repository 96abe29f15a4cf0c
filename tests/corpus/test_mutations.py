"""Random changes. FUZZ_ROUNDS and FUZZ_LOADS say how many; `make fuzz` runs many more than the default."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError, deserialize

from lora_registry.adapter_config import ConfigError, canonical_config, parse_adapter_config
from lora_registry.compatibility import check_compatibility
from lora_registry.safetensors_header import HeaderError, read_header
from lora_workers.linear_patterns import linear_time_patterns
from tests.corpus.bases import make_model
from tests.corpus.config_values import any_value, well_typed_value
from tests.corpus.conftest import Corpus
from tests.corpus.judging import judge
from tests.corpus.spoiling import CONFIG, PREFIX, WEIGHTS, Tensors, read_tensors, write_tensors, zeros
from tests.corpus.valid import VALID
from tests.helpers.adapters import errors_of, reader

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(3600)]
ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "4000"))
LOADS = int(os.environ.get("FUZZ_LOADS", "150"))
SEED = int(os.environ.get("FUZZ_SEED", "20261"))
_MOST_GROWTH_KIB = 200_000

_TOKENS = [
    b"0", b"1", b"-1", b"-0", b"1.0", b"1e3", b"99999999999999999999", b"true", b"null", b'"F32"', b'"F16"', b'"I64"',
    b"[]", b"{}", b"[0,4]", b"[1,1]", b'"shape"', b'"dtype"', b'"data_offsets"', b'"__metadata__"', b",", b":", b"[",
    b"]", b"{", b"}", b'"', b" ", b"\\u0000", b"\xff", b"\x00", b"NaN", b'"a":1,', b"\n", b"4", b"8", b"512",
]  # fmt: skip


def _changed(raw: bytes, rng: random.Random) -> bytes:
    """The text with one to four random edits."""
    text = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        begin = rng.randrange(len(text) + 1)
        end = min(len(text), begin + rng.choice((0, 0, 1, 1, 2, 5, 20)))
        kind = rng.random()
        if kind < 0.45:
            text[begin:end] = rng.choice(_TOKENS)
        elif kind < 0.7:
            text[begin:end] = b""
        elif kind < 0.85 and text:
            other = rng.randrange(len(text))
            text[begin:begin] = text[other : other + rng.randint(1, 40)]
        elif begin < len(text):
            text[begin] = rng.randrange(256)
    return bytes(text)


def _library_accepts(raw: bytes) -> bool:
    try:
        deserialize(raw)
    except SafetensorError:
        return False
    return True


def _headers(corpus: Corpus) -> list[bytes]:
    """Small legal files: the first tensors of some adapters, so that a random edit is likely to matter."""
    found = []
    for case in VALID[:: max(1, len(VALID) // 20)]:
        tensors, _ = read_tensors(corpus.root / "valid" / case.name / WEIGHTS)
        path = corpus.root / "small.safetensors"
        write_tensors(path, dict(list(tensors.items())[:3]))
        found.append(path.read_bytes())
    return found


def test_changed_headers_are_never_read_more_loosely_than_by_the_library(corpus: Corpus) -> None:
    """No changed header is accepted that safetensors refuses; nothing but HeaderError is raised; memory is bounded."""
    rng = random.Random(SEED)
    files = _headers(corpus)
    accepted = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(ROUNDS):
        raw = rng.choice(files)
        (length,) = struct.unpack("<Q", raw[:8])
        header = _changed(raw[8 : 8 + length], rng)
        written = len(header) if rng.random() < 0.97 else rng.choice((0, 1, length, 2**31, 2**63, 2**64 - 1))
        data = raw[8 + length :] if rng.random() < 0.9 else raw[8 + length + rng.randint(-3, 8) :]
        changed = struct.pack("<Q", written) + header + data
        try:
            read_header(reader(changed), file_size_bytes=len(changed))
        except HeaderError:
            continue
        accepted += 1
        assert _library_accepts(changed), changed[:2000]
    assert accepted
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < _MOST_GROWTH_KIB


def test_changed_configurations_give_a_verdict(corpus: Corpus) -> None:
    """A changed configuration gives findings or a ConfigError, whatever it is; its canonical form is stable."""
    rng = random.Random(SEED)
    cases = [case for case in VALID if not case.base.startswith("llava")]
    raws = {case.name: (corpus.root / "valid" / case.name / CONFIG).read_bytes() for case in cases}
    headers = {}
    for case in cases:
        raw = (corpus.root / "valid" / case.name / WEIGHTS).read_bytes()
        headers[case.name] = read_header(reader(raw), file_size_bytes=len(raw))
    patterns = linear_time_patterns()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(ROUNDS):
        case = rng.choice(cases)
        try:
            changed = _changed(raws[case.name], rng)
            config = parse_adapter_config(changed, compile_pattern=patterns)
        except ConfigError:
            continue
        check_compatibility(config, headers[case.name], corpus.profiles[case.base])
        assert canonical_config(canonical_config(changed)) == canonical_config(changed)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < _MOST_GROWTH_KIB


_NAMES = ["q_proj", "v_proj", "k_proj", "up_proj", "lm_head", "embed_tokens", "norm", "self_attn", "score", "c_attn"]
_NAMES += ["model.layers.0.self_attn.q_proj", "layers.1.mlp.up_proj", "gate", "w1", "down_proj", "mlp", "wte", "query"]
_EXPRESSIONS = [r".*\.q_proj", r".*(q|v)_proj", r"model\.layers\.\d+\.self_attn\.[qkv]_proj", ".*proj", "q_proj", "x"]


def _one_field(rng: random.Random) -> dict[str, Any]:
    """Another value for one field: one that tells on these bases, or of any type and for any field of PEFT's."""
    if rng.random() < 0.3:
        return rng.choice((any_value, well_typed_value))(rng)
    names = rng.sample(_NAMES, rng.randint(0, 3))
    choices: dict[str, Callable[[], object]] = {
        "r": lambda: rng.choice([1, 2, 4, 6, 8]),
        "target_modules": lambda: rng.choice([names, rng.choice(_EXPRESSIONS), "all-linear", [*names, "q_proj"]]),
        "exclude_modules": lambda: rng.choice([names, rng.choice(_EXPRESSIONS), None]),
        "rank_pattern": lambda: {rng.choice([*_NAMES, *_EXPRESSIONS]): rng.choice([2, 4, 6]) for _ in range(2)},
        "modules_to_save": lambda: rng.choice([names, None]),
        "layers_to_transform": lambda: rng.choice([None, [], 0, [1], [0, 1], [5]]),
        "layers_pattern": lambda: rng.choice([None, [], "layers", ["layers"], ["model.layers"], ["h"]]),
        "use_dora": lambda: rng.random() < 0.5,
        "lora_bias": lambda: rng.random() < 0.5,
        "bias": lambda: rng.choice(["none", "all", "lora_only"]),
        "fan_in_fan_out": lambda: rng.random() < 0.5,
        "use_rslora": lambda: rng.random() < 0.5,
        "task_type": lambda: rng.choice([None, "CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION", ""]),
        "target_parameters": lambda: rng.choice([None, [], ["q_proj.weight"], ["experts.down_proj"], ["norm.weight"]]),
        "trainable_token_indices": lambda: rng.choice([None, [3, 5], {"embed_tokens": [3, 5]}, {"lm_head": [1]}, [95]]),
        "layer_replication": lambda: rng.choice([None, [], [[0, 2]], [[0, 1], [0, 2]], [[1, 2], [0, 1]]]),
        "init_lora_weights": lambda: rng.choice(
            [True, False, None, "gaussian", "orthogonal", "eva", "odd", "olora", "pissa", "corda", "lora_ga", "mica"]
        ),
        "lora_dropout": lambda: rng.choice([0, 0.1]),
        "ensure_weight_tying": lambda: rng.random() < 0.5,
        "inference_mode": lambda: rng.random() < 0.5,
    }
    name = rng.choice(sorted(choices))
    return {name: choices[name]()}


def _other_tensors(tensors: Tensors, rng: random.Random) -> Tensors:
    """One tensor renamed, dropped, reshaped or added."""
    name = rng.choice(sorted(tensors))
    dtype, shape, raw = tensors[name]
    changed = {key: value for key, value in tensors.items() if key != name}
    kind = rng.random()
    if kind < 0.3:
        return changed
    if kind < 0.6:
        old, new = rng.choice([("layers.0", "layers.1"), ("q_proj", "v_proj"), ("lora_A", "lora_B"), (PREFIX, "")])
        return changed | {name.replace(old, new): (dtype, shape, raw)}
    if kind < 0.8:
        return tensors | {name: zeros(*(length + rng.choice((0, 0, 1)) for length in shape))}
    return tensors | {f"{PREFIX}{rng.choice(_NAMES)}.{rng.choice(['weight', 'bias', 'lora_A.weight'])}": zeros(4, 32)}


def _loads(directory: Path, base: str) -> str:
    """Why real PEFT does not take the adapter, "" if it does and uses every tensor."""
    try:
        model = PeftModel.from_pretrained(make_model(base), str(directory)).eval()
        result = set_peft_model_state_dict(model, load_peft_weights(str(directory)))
    except Exception as error:  # noqa: BLE001 - whatever PEFT raises is a refusal
        return f"{type(error).__name__}: {error}"
    ignored = [name for name in result.unexpected_keys if not name.endswith(".modules_to_save.bias")]
    return f"ignored: {ignored[:3]}" if ignored else ""


def test_what_is_accepted_is_loaded_by_peft(corpus: Corpus, tmp_path: Path) -> None:
    """Whatever is changed in an adapter: if it is still accepted, real PEFT loads it and ignores no tensor."""
    rng = random.Random(SEED)
    cases = [case for case in VALID if case.base != "llava"]
    loaded, disagreements = 0, []
    for number in range(LOADS * 20):
        case = rng.choice(cases)
        directory = tmp_path / str(number)
        shutil.copytree(corpus.root / "valid" / case.name, directory)
        change: object = "tensors"
        if rng.random() < 0.7:
            fields = json.loads((directory / CONFIG).read_text())
            change = _one_field(rng) | (_one_field(rng) if rng.random() < 0.3 else {})
            (directory / CONFIG).write_text(json.dumps(fields | change))  # type: ignore[operator]
        else:
            tensors, metadata = read_tensors(directory / WEIGHTS)
            write_tensors(directory / WEIGHTS, _other_tensors(tensors, rng), metadata)
        accepted = not errors_of(judge(directory, corpus.profiles[case.base], root=tmp_path))
        if accepted:
            loaded += 1
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reason = _loads(directory, case.base)
            if reason:
                disagreements.append(f"{case.name} with {change}: {reason[:300]}")
        shutil.rmtree(directory)
        if loaded >= LOADS:
            break
    assert loaded
    assert not disagreements, "\n".join(disagreements)
