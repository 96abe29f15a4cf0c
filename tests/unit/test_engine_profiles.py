import json
from pathlib import Path

import pytest

from lora_registry.engine_conditions import CONDITIONS
from lora_registry.engine_profiles import (
    BUILT_IN,
    EngineProfile,
    Ruling,
    built_in_profile,
    engine_table,
    find_profiles,
    in_range,
    load_profile,
    rules_of,
)
from lora_registry.errors import Configuration
from lora_registry.settings import load_settings


def write(directory: Path, fields: object, name: str = "node.json") -> Path:
    """A profile's file."""
    path = directory / name
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields), encoding="utf-8")
    return path


@pytest.mark.parametrize("engine", BUILT_IN)
def test_every_rule_says_where_it_is_known_from(engine: str) -> None:
    """A source, a reason and a known condition; and no condition twice, so that an own rule replaces exactly one."""
    table = engine_table(engine)

    assert table.read
    assert table.profile_source
    assert table.profile.engine == table.profile.name == engine
    conditions = [rule.condition for rule in table.rules]
    assert len(set(conditions)) == len(conditions)
    assert all(rule.source and rule.reason and rule.condition in CONDITIONS for rule in table.rules)
    assert in_range(table.profile.version, table.read_versions)


def test_every_condition_is_used() -> None:
    """There is no condition that no built-in engine has a rule for."""
    used = {rule.condition for engine in BUILT_IN for rule in engine_table(engine).rules}

    assert used == set(CONDITIONS)


def test_vllm_starts_with_its_own_default_rank() -> None:
    """Without --max-lora-rank vLLM takes 16."""
    assert built_in_profile("vllm").max_lora_rank == 16


def test_an_operators_profile_is_read(tmp_path: Path) -> None:
    """All fields of a file come through."""
    fields = {
        "name": "team-a", "engine": "vllm", "version": "0.33.0", "max_lora_rank": 64, "target_modules": ["q_proj"],
        "dtype": "float16", "tensor_parallel_size": 2, "flags": ["is_3d_lora_weight"],
    }  # fmt: skip

    profile = load_profile(write(tmp_path, fields))

    assert profile.model_dump(mode="json", include=set(fields)) == fields
    assert EngineProfile.model_validate_json(profile.model_dump_json()) == profile


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ("{", "JSON"),
        ('{"name": "a", "name": "b"}', "twice"),
        ([], "object"),
        ({"name": "a"}, "engine"),
        ({"name": "a", "engine": "vllm", "max_lora_ranks": 8}, "max_lora_ranks"),
        ({"name": "a", "engine": "vllm", "max_lora_rank": "8"}, "max_lora_rank"),
        ({"name": "a", "engine": "vllm", "max_lora_rank": 0}, "max_lora_rank"),
        ({"name": "a", "engine": "vllm", "dtype": "int4"}, "dtype"),
        ({"name": "A b", "engine": "vllm"}, "name"),
        ({"name": "a", "engine": "vllm", "schema_version": 2}, "schema_version"),
        ({"name": "a", "engine": "mistralrs"}, "mistralrs"),
        ({"name": "a", "engine": "vllm", "rules": [{"condition": "dora", "verdict": "refuse"}]}, "rules.0.reason"),
        (
            {"name": "a", "engine": "vllm",
             "rules": [{"condition": "nothing", "verdict": "refuse", "reason": "r", "source": "s"}]},
            "no condition",
        ),
        (
            {"name": "a", "engine": "vllm",
             "rules": [{"condition": "dora", "verdict": "refuse", "reason": "r", "source": "s", "versions": "~1"}]},
            "range",
        ),
    ],
)  # fmt: skip
def test_a_wrong_profile_names_the_file_and_the_field(tmp_path: Path, fields: object, named: str) -> None:
    """Strict: nothing is guessed and no unknown field passes."""
    path = write(tmp_path, fields)

    with pytest.raises(Configuration) as caught:
        load_profile(path)

    assert str(path) in caught.value.message
    assert named in caught.value.message


def test_a_profile_that_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    """As is a name of no engine, and two of one name."""
    for names in ([str(tmp_path / "none.json")], ["nosuch"], ["vllm", "vllm"], ["../vllm"]):
        with pytest.raises(Configuration):
            find_profiles(names)


def test_names_and_files_are_found_in_their_order(tmp_path: Path) -> None:
    """A name is a built-in engine; what looks like a path is a file."""
    path = write(tmp_path, {"name": "mine", "engine": "sglang"})

    assert [profile.name for profile in find_profiles(["tgi", str(path), "vllm"])] == ["tgi", "mine", "vllm"]


def test_an_own_rule_replaces_the_engines(tmp_path: Path) -> None:
    """A patched engine is described by the rule that differs; the others stay."""
    own = {"condition": "rslora", "verdict": "accept", "reason": "patched", "source": "us"}
    profile = load_profile(write(tmp_path, {"name": "patched", "engine": "sglang", "rules": [own]}))

    rules = {rule.condition: rule.verdict for rule in rules_of(profile)}

    assert rules["rslora"] is Ruling.ACCEPT
    assert rules.keys() == {rule.condition for rule in rules_of(built_in_profile("sglang"))}


def test_another_engine_brings_all_its_rules(tmp_path: Path) -> None:
    """An engine that is not built in is judged by the profile's rules alone."""
    own = {"condition": "dora", "verdict": "refuse", "reason": "no", "source": "us"}
    profile = load_profile(write(tmp_path, {"name": "other", "engine": "mistralrs", "rules": [own]}))

    assert [rule.condition for rule in rules_of(profile)] == ["dora"]


@pytest.mark.parametrize(
    ("version", "versions", "expected"),
    [
        ("0.33.0", ">=0.32,<0.34", True),
        ("0.32", ">=0.32.0", True),
        ("0.34.0", ">=0.32,<0.34", False),
        ("0.9.1", ">=0.32", False),
        ("0.33.1+cpu", "==0.33.1", True),
        ("v1.0", ">1.0", False),
        ("a7394ba3", ">=1.0", True),
        ("", ">=1.0", True),
        ("1.0", "", True),
        ("0.5.23", "<=0.5.23", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, versions: str, expected: bool) -> None:
    """0.9 is before 0.32; what has no number is taken to be meant."""
    assert in_range(version, versions) is expected


def test_a_rule_for_other_versions_does_not_count(tmp_path: Path) -> None:
    """Neither does one that a flag of the node takes away."""
    rules = [
        {"condition": "dora", "verdict": "refuse", "reason": "r", "source": "s", "versions": "<0.30"},
        {"condition": "rslora", "verdict": "refuse", "reason": "r", "source": "s", "unless_flag": "fixed"},
    ]
    fields = {"name": "a", "engine": "other", "version": "0.33", "flags": ["fixed"], "rules": rules}

    assert rules_of(load_profile(write(tmp_path, fields))) == ()


def test_the_setting_takes_names_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """LORA_REGISTRY_ENGINE_PROFILES, with spaces or without; none by default."""
    assert load_settings().engine_profiles == ()
    monkeypatch.setenv("LORA_REGISTRY_ENGINE_PROFILES", "vllm, /etc/node.json,")

    assert load_settings().engine_profiles == ("vllm", "/etc/node.json")
