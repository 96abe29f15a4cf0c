"""A version record keeps enough for every engine's verdict, and nodes are judged by what they say of themselves."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from tests.helpers.nodes import make_info
from tests.unit.test_announcements import make_record

from lora_registry.adapter_config import AdapterConfig
from lora_registry.adapter_traits import AdapterTraits
from lora_registry.engine_conditions import CONDITIONS
from lora_registry.engine_profiles import BUILT_IN, EngineProfile, EngineRule, Ruling, built_in_profile
from lora_registry.engine_verdicts import judge_engine
from lora_registry.kept_traits import CONFIG_FIELDS, TRAIT_FIELDS, keep_traits, parse_traits
from lora_registry.node_verdicts import profile_of, verdict_for_node, why_not

PROFILES = [built_in_profile(name) for name in BUILT_IN]
PLAIN = AdapterConfig(rank=8, lora_alpha=16.0, target_modules=("q_proj", "v_proj"))


def make_traits(config: AdapterConfig = PLAIN, **fields: Any) -> AdapterTraits:
    """Traits of a plain adapter, with some changed."""
    given = {"largest_rank": config.rank, "targets": frozenset({"q_proj", "v_proj"})}
    return AdapterTraits(config, **(given | fields))


def with_config(**fields: Any) -> AdapterTraits:
    """Traits of an adapter whose configuration says this."""
    given: dict[str, Any] = {"rank": 8, "lora_alpha": 16.0, "target_modules": ("q_proj",)}
    return make_traits(AdapterConfig(**(given | fields)))


MANY = tuple(f"model.layers.{number}.self_attn" for number in range(40))
EVERY_KIND = [
    make_traits(),
    with_config(use_rslora=True),
    with_config(use_dora=True, bias="all", lora_bias=True),
    with_config(modules_to_save=("lm_head", "score", "embed_tokens", "norm")),
    with_config(init_lora_weights="pissa_niter_16", rank=24),
    with_config(target_parameters=("a", "b", "c", "d", "e")),
    with_config(layer_replication=((0, 4), (2, 6)), alora_invocation_tokens=(5, 6, 7)),
    with_config(target_modules=r".*\.(q|v)_proj" + "x" * 200),
    make_traits(other_ranks=MANY, other_alphas=MANY[:1], whole_parameters=MANY, bias_parameters=MANY[:4]),
    make_traits(partial_types=MANY[:3], q_without_v=MANY, kv_without_q=MANY, up_without_gate=MANY),
    make_traits(embeddings=("embed_tokens",), heads=("lm_head",), head_rows=300_000, trained_tokens=("embed_tokens",)),
    make_traits(embedding_copies=("embed_tokens",), base_dtype="F16", overflows=("F16", "BF16"), largest_rank=512),
    make_traits(targets=frozenset(f"module_{number}" for number in range(50))),
]


class Watched:
    """An object that remembers which of its attributes were read."""

    def __init__(self, watched: object, read: set[str]) -> None:
        self._watched, self._read = watched, read

    def __getattr__(self, name: str) -> Any:
        self._read.add(name)
        return getattr(self._watched, name)


def test_everything_that_conditions_read_is_kept() -> None:
    """A condition that reads a trait which records do not keep would judge every node's adapters wrongly."""
    of_traits: set[str] = set()
    of_config: set[str] = set()
    for traits in EVERY_KIND:
        watched = Watched(traits, of_traits)
        watched.__dict__["config"] = Watched(traits.config, of_config)
        for name, condition in CONDITIONS.items():
            for values in ((), ("q_proj",)):
                rule = EngineRule(condition=name, verdict=Ruling.REFUSE, reason="-", source="-", limit=1, values=values)
                for profile in PROFILES:
                    limited = profile.model_copy(update={"target_modules": ("o_proj",), "max_lora_rank": 1})
                    condition.holds(watched, limited, rule)  # type: ignore[arg-type]
    assert of_traits - {"target_pattern"} - {"other_files"} <= set(TRAIT_FIELDS)
    assert of_config - {"target_modules"} <= set(CONFIG_FIELDS)
    assert set(TRAIT_FIELDS) <= {field.name for field in fields(AdapterTraits)}


@pytest.mark.parametrize("traits", EVERY_KIND, ids=range(len(EVERY_KIND)))
@pytest.mark.parametrize("profile", PROFILES, ids=BUILT_IN)
@pytest.mark.parametrize("tight", [False, True])
def test_verdict_by_kept_traits_is_the_verdict(traits: AdapterTraits, profile: EngineProfile, tight: bool) -> None:
    """Reasons included, whatever the adapter and the engine."""
    if tight:
        profile = profile.model_copy(update={"target_modules": ("o_proj",), "max_lora_rank": 4, "dtype": "float16"})
    assert judge_engine(parse_traits(keep_traits(traits)), profile) == judge_engine(traits, profile)


def test_kept_traits_are_small() -> None:
    """Lists of hundreds of modules are kept as three and a number."""
    assert len(keep_traits(make_traits())) < 120
    assert len(keep_traits(EVERY_KIND[8])) < 600
    assert json.loads(keep_traits(EVERY_KIND[8]))["other_ranks"]["of"] == 40


def test_traits_of_a_later_version_are_read() -> None:
    """What is not known is ignored."""
    text = json.loads(keep_traits(make_traits()))
    text |= {"of_the_future": [1], "config": text["config"] | {"also": 2}}
    assert parse_traits(json.dumps(text)) == parse_traits(keep_traits(make_traits()))


def test_node_is_judged_by_what_it_says_of_itself() -> None:
    """Engine, version, rank, modules, dtype, devices and flags of a node are those of the profile."""
    info = make_info(
        "Node.One",
        engine_version="0.33.0",
        max_lora_rank=16,
        target_modules=("q_proj",),
        dtype="float16",
        tensor_parallel_size=2,
        flags=("enable-lora-bias",),
    )
    assert profile_of(info) == EngineProfile(
        name="node.one",
        engine="vllm",
        version="0.33.0",
        max_lora_rank=16,
        target_modules=("q_proj",),
        dtype="float16",
        tensor_parallel_size=2,
        flags=("enable-lora-bias",),
    )


@pytest.mark.parametrize(
    ("traits", "info", "code"),
    [
        (make_traits(), make_info(), ""),
        (with_config(use_rslora=True), make_info(), ""),
        (with_config(use_rslora=True), make_info(engine="sglang"), "ENGINE_RSLORA"),
        (with_config(use_dora=True), make_info(), "ENGINE_DORA"),
        (with_config(rank=64), make_info(max_lora_rank=16), "ENGINE_RANK_TOO_LARGE"),
        (with_config(rank=64), make_info(max_lora_rank=64), ""),
        (make_traits(), make_info(target_modules=("o_proj",)), "ENGINE_MODULES_NOT_SERVED"),
        (make_traits(), make_info(engine="home-grown", max_lora_rank=8), ""),
        (make_traits(), make_info(engine="home-grown", max_lora_rank=4), "ENGINE_RANK_TOO_LARGE"),
        (make_traits(), make_info(engine="home-grown", target_modules=("o_proj",)), "ENGINE_MODULES_NOT_SERVED"),
    ],
)
def test_version_that_a_node_would_not_serve_well_is_told_before_it_is_fetched(
    traits: AdapterTraits, info: Any, code: str
) -> None:
    """Accepted, or with the code and the words with which the node says that it skips the version."""
    verdict = verdict_for_node(make_record(traits=keep_traits(traits)), info)
    said, reason = why_not(verdict)
    assert said == code
    assert bool(reason) is bool(code)
    assert (verdict.verdict is Ruling.ACCEPT) is (not code)


def test_version_without_traits_is_judged_by_its_rank() -> None:
    """What was published before traits were kept is refused where its rank is too large, and nowhere else."""
    record = make_record(rank=32)
    assert why_not(verdict_for_node(record, make_info(max_lora_rank=16)))[0] == "ENGINE_RANK_TOO_LARGE"
    assert verdict_for_node(record, make_info(max_lora_rank=32)).verdict is Ruling.ACCEPT
