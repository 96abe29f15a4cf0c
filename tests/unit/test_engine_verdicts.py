import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from tests.helpers.adapters import PREFIX, Adapter, header_of, llama_shapes, make_adapter, make_base

from lora_registry.adapter_config import parse_adapter_config
from lora_registry.adapter_traits import AdapterTraits, traits_of
from lora_registry.all_codes import CODES, ENGINE_CODES
from lora_registry.base_profile import BaseProfile
from lora_registry.engine_conditions import CONDITIONS
from lora_registry.engine_profiles import BUILT_IN, EngineProfile, Ruling, built_in_profile, engine_table, find_profiles
from lora_registry.engine_verdicts import judge_engine, judge_engines, refuse_invalid
from lora_registry.fit_codes import RANK_TOO_LARGE
from lora_registry.judgement import judge

BASE = make_base()
FULL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
HEAD = "lm_head"
EMBEDDING = "model.embed_tokens"
LARGE_VOCABULARY = make_base(llama_shapes(vocab=300_000))


@dataclass(frozen=True)
class Case:
    """An adapter that a condition holds for; `near` is as like it as can be, and the condition does not hold."""

    adapter: Adapter
    near: Adapter
    base: BaseProfile = BASE
    near_base: BaseProfile = BASE
    node: dict[str, object] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    near_files: tuple[str, ...] = ()
    overflows: tuple[str, ...] = ()
    near_overflows: tuple[str, ...] = ()


def good(**fields: object) -> Adapter:
    """An adapter on all projections whose rank every engine serves."""
    return make_adapter(targets=FULL, **fields)  # type: ignore[arg-type]


def rank_in_one_layer(rank: int) -> Adapter:
    """Rank 8 everywhere but in one q_proj."""
    name = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_"
    adapter = good(rank_pattern={"layers.0.self_attn.q_proj": rank})
    return adapter.with_tensors({f"{name}A.weight": (rank, 32), f"{name}B.weight": (32, rank)})


ONE_LAYER_LESS = good().without("layers.1.mlp.down_proj.lora_A.weight").without("layers.1.mlp.down_proj.lora_B.weight")
WITH_HEAD = make_adapter(targets=(*FULL, HEAD))
WITH_BIAS = good(lora_bias=True).with_tensors(
    {f"{name.removesuffix('.weight')}.bias": shape[:1] for name, shape in good().shapes.items() if "lora_B" in name}
)
WITH_SAVED_HEAD = good(modules_to_save=["lm_head"]).with_tensors({f"{PREFIX}lm_head.weight": (64, 32)})
WITH_TOKENS = good(trainable_token_indices=[1, 2]).with_tensors(
    {f"{PREFIX}{EMBEDDING}.token_adapter.trainable_tokens_delta": (2, 32)}
)
WITH_COPY = make_adapter(targets=(*FULL, "embed_tokens")).with_tensors(
    {f"{PREFIX}{EMBEDDING}.base_layer.weight": (64, 32)}
)

CASES: dict[str, Case] = {
    "rank_over_maximum": Case(good(rank=32), good(rank=16), node={"max_lora_rank": 16}),
    "modules_not_served": Case(
        good(), make_adapter(targets=("q_proj", "v_proj")), node={"target_modules": ["self_attn.q_proj", "v_proj"]}
    ),
    "dora": Case(good(use_dora=True), good(use_dora=False)),
    "bias_announced": Case(good(bias="lora_only"), good(bias="none")),
    "lora_bias": Case(WITH_BIAS, good(lora_bias=False)),
    "bias_tensors": Case(WITH_BIAS, good(bias="all")),
    "saved_modules_other_than": Case(good(modules_to_save=["lm_head"]), good(modules_to_save=["score"])),
    "whole_tensors": Case(WITH_SAVED_HEAD, good(modules_to_save=["lm_head"])),
    "initialised_by": Case(good(init_lora_weights="pissa_niter_16"), good(init_lora_weights="gaussian")),
    "initialised_by_other_than": Case(good(init_lora_weights="OLoRA"), good(init_lora_weights="eva")),
    "rslora": Case(good(use_rslora=True), good(rank=1, use_rslora=True)),
    "ranks_differ": Case(rank_in_one_layer(16), rank_in_one_layer(8)),
    "alphas_differ": Case(good(alpha_pattern={"q_proj": 5}), good(alpha_pattern={"q_proj": 16, "nowhere": 3})),
    "rank_padded": Case(good(rank=24), good(rank=32)),
    "target_parameters": Case(good(target_parameters=["mlp.experts.gate_up_proj"]), good()),
    "layer_replication": Case(good(layer_replication=[[0, 2], [1, 2]]), good(layer_replication=None)),
    "activated_lora": Case(good(alora_invocation_tokens=[5]), good(alora_invocation_tokens=[])),
    "trained_tokens": Case(WITH_TOKENS, good()),
    "embedding_lora": Case(make_adapter(targets=(*FULL, "embed_tokens")), good()),
    "head_lora": Case(WITH_HEAD, good()),
    "head_rows_over": Case(
        make_adapter(targets=(*FULL, HEAD), base=LARGE_VOCABULARY), WITH_HEAD, base=LARGE_VOCABULARY
    ),
    "layers_partial": Case(ONE_LAYER_LESS, good()),
    "q_without_v": Case(make_adapter(targets=("q_proj", "k_proj")), make_adapter(targets=("q_proj", "v_proj"))),
    "kv_without_q": Case(make_adapter(targets=("k_proj", "v_proj")), make_adapter(targets=("o_proj",))),
    "up_without_gate": Case(make_adapter(targets=("up_proj",)), make_adapter(targets=("gate_proj",))),
    "targets_pattern": Case(good(target_modules=".*_proj"), good(target_modules="all-linear")),
    "overflows_dtype": Case(
        good(), good(), node={"dtype": "float16"}, overflows=("F16",), near_overflows=("BF16",)
    ),
    "embedding_copy": Case(WITH_COPY, make_adapter(targets=(*FULL, "embed_tokens"))),
    "other_weights": Case(
        good(), good(), files=("checkpoint.safetensors",), near_files=("old/model.safetensors", "README.md")
    ),
    "own_tokenizer": Case(good(), good(), files=("tokenizer.json",), near_files=("special_tokens_map.json",)),
}  # fmt: skip

RULES = [
    pytest.param(engine, rule.condition, id=f"{engine}-{rule.condition}")
    for engine in BUILT_IN
    for rule in engine_table(engine).rules
]


def traits(
    adapter: Adapter, base: BaseProfile = BASE, *, files: Iterable[str] = (), overflows: Iterable[str] = ()
) -> AdapterTraits:
    """The traits of an adapter."""
    config = parse_adapter_config(adapter.config_bytes, compile_pattern=lambda pattern: re.compile(pattern).fullmatch)
    return traits_of(
        config, header_of(adapter.weights_bytes), base, other_files=tuple(files), overflows=tuple(overflows)
    )


def node_of(engine: str, **fields: object) -> EngineProfile:
    """A node of a built-in engine."""
    return built_in_profile(engine).model_copy(
        update={name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    )


def test_every_condition_has_its_two_adapters() -> None:
    """One that it holds for, and one that it does not hold for."""
    assert CASES.keys() == CONDITIONS.keys()


@pytest.mark.parametrize(("engine", "condition"), RULES)
def test_each_rule_holds_for_its_adapter_and_not_for_the_one_beside_it(engine: str, condition: str) -> None:
    """The reason carries the rule's verdict, its source and the condition's code; the near adapter gets none of it."""
    case = CASES[condition]
    [rule] = [rule for rule in engine_table(engine).rules if rule.condition == condition]
    code = CONDITIONS[condition].code.code
    node = node_of(engine, **({"max_lora_rank": None} | case.node))

    found = judge_engine(traits(case.adapter, case.base, files=case.files, overflows=case.overflows), node)
    beside = judge_engine(traits(case.near, case.near_base, files=case.near_files, overflows=case.near_overflows), node)

    reasons = [reason for reason in found.reasons if reason.source == rule.source and reason.code == code]
    assert [reason.verdict for reason in reasons] == [rule.verdict]
    assert reasons[0].remedy
    assert "{" not in reasons[0].message
    others = [reason for reason in beside.reasons if reason.code == code and reason.source == rule.source]
    assert others == []


def test_a_plain_adapter_is_accepted_everywhere() -> None:
    """Rank 8 on all projections of all layers: every engine serves it as it was trained."""
    verdicts = judge_engines(traits(good()), find_profiles(BUILT_IN))

    assert {name: verdict.verdict for name, verdict in verdicts.items()} == dict.fromkeys(BUILT_IN, Ruling.ACCEPT)
    assert all(verdict.reasons == () for verdict in verdicts.values())


def test_what_is_refused_is_not_served_wrongly() -> None:
    """The worst reason decides, and stands first."""
    verdict = judge_engine(traits(good(use_rslora=True, use_dora=True)), built_in_profile("sglang"))

    assert verdict.verdict is Ruling.REFUSE
    assert [reason.code for reason in verdict.reasons] == ["ENGINE_DORA", "ENGINE_RSLORA"]


def test_a_note_leaves_the_verdict_alone() -> None:
    """Other weights beside the adapter are said, and change nothing: the artifact does not hold them."""
    verdict = judge_engine(traits(good(), files=("a.safetensors",)), built_in_profile("sglang"))

    assert verdict.verdict is Ruling.ACCEPT
    assert [(reason.code, reason.severity) for reason in verdict.reasons] == [("ENGINE_OTHER_WEIGHTS", "info")]


def test_vllm_says_it_in_its_own_words() -> None:
    """What an operator would find in the engine's log is what the report says."""
    verdict = judge_engine(traits(good(rank=64)), built_in_profile("vllm"))

    assert [reason.message for reason in verdict.reasons] == ["LoRA rank 64 is greater than max_lora_rank 16."]


@pytest.mark.parametrize(
    ("rank", "devices", "padded"),
    [(8, 1, False), (16, 1, False), (48, 1, False), (4, 1, True), (12, 1, True), (24, 1, True), (16, 2, False),
     (16, 4, True), (32, 4, False), (48, 4, False), (40, 4, True)],
)  # fmt: skip
def test_lorax_serves_the_ranks_that_it_does_not_pad(rank: int, devices: int, padded: bool) -> None:
    """Exactly 8 times the tensor-parallel size, or a multiple of 16 above that."""
    verdict = judge_engine(traits(good(rank=rank)), node_of("lorax", tensor_parallel_size=devices))

    assert (verdict.verdict is Ruling.SILENTLY_WRONG) is padded


def test_auto_means_the_dtype_of_the_base() -> None:
    """A node without a dtype of its own overflows where the base's dtype does."""
    half = traits(good(), make_base().model_copy(update={"dtype": "F16"}), overflows=("F16",))

    assert judge_engine(half, built_in_profile("vllm")).verdict is Ruling.SILENTLY_WRONG
    assert judge_engine(half, node_of("vllm", dtype="bfloat16")).verdict is Ruling.ACCEPT


def test_fused_experts_are_served_where_the_node_says_so() -> None:
    """The flag of the profile takes the rule away."""
    experts = traits(good(target_parameters=["mlp.experts.gate_up_proj"]))

    assert judge_engine(experts, built_in_profile("vllm")).verdict is Ruling.REFUSE
    assert judge_engine(experts, node_of("vllm", flags=["is_3d_lora_weight"])).verdict is Ruling.ACCEPT


def test_a_version_that_nobody_read_is_said() -> None:
    """The rules are applied all the same, with a note."""
    verdict = judge_engine(traits(good()), node_of("vllm", version="0.99.0"))

    assert verdict.verdict is Ruling.ACCEPT
    assert [reason.code for reason in verdict.reasons] == ["ENGINE_VERSION_UNKNOWN"]


def test_an_invalid_adapter_is_refused_for_every_engine() -> None:
    """Whatever the engine would do with it; the codes of the errors are named."""
    refused = refuse_invalid(find_profiles(BUILT_IN), [RANK_TOO_LARGE.finding()])

    assert {verdict.verdict for verdict in refused.values()} == {Ruling.REFUSE}
    assert refused["tgi"].reasons[0].code == "ENGINE_ADAPTER_INVALID"
    assert refused["tgi"].reasons[0].actual == "RANK_TOO_LARGE"


def test_structure_and_engines_are_two_questions() -> None:
    """rsLoRA is valid, and SGLang serves it wrongly."""
    adapter = good(use_rslora=True)
    judged = judge(
        parse_adapter_config(adapter.config_bytes),
        header_of(adapter.weights_bytes),
        BASE,
        max_lora_rank=512,
        profiles=find_profiles(["sglang", "vllm"]),
    )

    assert judged.findings == ()
    assert judged.engines["sglang"].verdict is Ruling.SILENTLY_WRONG
    assert judged.engines["vllm"].verdict is Ruling.ACCEPT
    assert judged.timings_ms.keys() == {"structure", "engines"}


def test_traits_of_a_pattern_count_only_the_modules_that_there_are() -> None:
    """The largest rank, and the modules that differ."""
    found = traits(rank_in_one_layer(16))

    assert found.largest_rank == 16
    assert found.other_ranks == ("model.layers.0.self_attn.q_proj",)


def test_layers_that_the_base_leaves_out_are_no_gap() -> None:
    """A kind of module that the base itself has in one layer only is whole with that one."""
    shapes = {name: shape for name, shape in llama_shapes().items() if "layers.1.mlp" not in name}
    base = make_base(shapes)

    assert traits(make_adapter(targets=FULL, base=base), base).partial_types == ()


def test_codes_of_verdicts_reject_nothing_and_are_no_other_codes() -> None:
    """They are warnings and notes, and none of them is the code of a finding too."""
    assert {code.severity.value for code in ENGINE_CODES.values()} == {"warning", "info"}
    assert not ENGINE_CODES.keys() & CODES.keys()
    assert all(name.startswith("ENGINE_") and code.cause and code.remedy for name, code in ENGINE_CODES.items())
