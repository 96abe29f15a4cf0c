"""Engine profiles: what a kind of node accepts; and the table of rules of each engine.

Four engines are built in (engines/*.json). A node that was started otherwise, or whose engine behaves otherwise, is
described by the operator's own JSON file: the fields of `EngineProfile`, with rules of its own if it takes any. A rule
of a profile replaces the engine's rules of the same condition; one with the verdict "accept" takes them away.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from enum import StrEnum
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from lora_registry.engine_conditions import CONDITIONS
from lora_registry.errors import Configuration
from lora_registry.events import describe_validation_error
from lora_registry.strict_json import StrictJsonError, load_object

BUILT_IN = ("vllm", "sglang", "lorax", "tgi")
MAX_PROFILE_BYTES = 1 << 20

_RANGE = re.compile(r"(>=|<=|==|>|<)([0-9]+(?:\.[0-9]+)*)")
_VERSION = re.compile(r"v?([0-9]+(?:\.[0-9]+)+)")
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


class Ruling(StrEnum):
    """What becomes of an adapter on an engine."""

    ACCEPT = "accept"
    """It is served as it was trained."""
    SILENTLY_WRONG = "silently_wrong"
    """The engine would take it and answer wrongly without a word, so the registry refuses it for this engine."""
    REFUSE = "refuse"
    """The engine refuses it, or dies of it."""


class EngineRule(BaseModel):
    """What an engine does with adapters for which a condition holds.

    Attributes:
        condition: name in `lora_registry.engine_conditions.CONDITIONS`.
        verdict: what becomes of the adapter; `accept` for what is only worth a note.
        reason: the engine's own words if it has any, else what happens; `{expected}` and `{actual}` are filled in.
        source: where this was read or seen: project, version, file and lines, or an issue.
        versions: versions of the engine that it is about, such as `>=0.32,<0.34`; empty: all.
        values: names that the condition takes.
        limit: number that the condition takes.
        unless_flag: the rule does not count on nodes with this flag.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    condition: str
    verdict: Ruling
    reason: Text
    source: Text
    versions: str = ""
    values: tuple[str, ...] = ()
    limit: int | None = None
    unless_flag: str = ""

    @field_validator("condition")
    @classmethod
    def _known(cls, condition: str) -> str:
        if condition not in CONDITIONS:
            raise ValueError(f"{condition!r} is no condition; there are {', '.join(CONDITIONS)}")
        return condition

    @field_validator("versions")
    @classmethod
    def _readable(cls, versions: str) -> str:
        if versions and not all(_RANGE.fullmatch(part) for part in versions.split(",")):
            raise ValueError(f"{versions!r} is no range of versions such as >=0.32,<0.34")
        return versions


_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
"""As safetensors calls them."""


class EngineProfile(BaseModel):
    """An engine as a node runs it.

    Attributes:
        schema_version: version of this form.
        name: what verdicts are filed under.
        engine: `vllm`, `sglang`, `lorax`, `tgi`, or another one that has all its rules here.
        version: version of the engine, as it calls it; empty: unknown.
        max_lora_rank: largest rank that the node was started for; None: not limited, or not known.
        target_modules: last parts of the names of the modules that the node was started for; None: all.
        dtype: what the node serves in; `auto`: the base model's.
        tensor_parallel_size: number of devices that share one model.
        flags: other options of the node that rules ask for.
        rules: rules besides the engine's, or instead of those of the same condition.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    name: Name
    engine: Name
    version: Annotated[str, StringConstraints(max_length=64)] = ""
    max_lora_rank: Annotated[int, Field(gt=0)] | None = None
    target_modules: tuple[Text, ...] | None = None
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    tensor_parallel_size: Annotated[int, Field(gt=0, le=1024)] = 1
    flags: tuple[str, ...] = ()
    rules: tuple[EngineRule, ...] = ()

    @model_validator(mode="after")
    def _has_rules(self) -> EngineProfile:
        if self.engine not in BUILT_IN and not self.rules:
            raise ValueError(
                f"engine {self.engine!r} is none of {', '.join(BUILT_IN)}; a profile of another one takes rules"
            )
        return self

    def served_dtype(self, base_dtype: str) -> str:
        """What the node serves a base of this dtype in, as safetensors calls it."""
        return base_dtype if self.dtype == "auto" else _DTYPES[self.dtype]


class EngineTable(BaseModel):
    """What is known of one engine.

    Attributes:
        schema_version: version of this form.
        engine: its name.
        read: what the rules were taken from.
        read_versions: range of versions that they are known to be true of; empty: not numbered.
        profile: the engine as it runs by default.
        profile_source: where these defaults are from.
        rules: what it does with which adapters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1]
    engine: Name
    read: Text
    read_versions: str = ""
    profile: EngineProfile
    profile_source: Text
    rules: tuple[EngineRule, ...]


@cache
def engine_table(engine: str) -> EngineTable:
    """The table of a built-in engine.

    Raises:
        Configuration: there is no such engine.
    """
    if engine not in BUILT_IN:
        raise Configuration(f"engine profile {engine[:80]!r}: there are {', '.join(BUILT_IN)}, or a JSON file")
    raw = resources.files("lora_registry").joinpath("engines", f"{engine}.json").read_bytes()
    return EngineTable.model_validate_json(raw, strict=True)


def built_in_profile(name: str) -> EngineProfile:
    """The profile of a built-in engine as it runs by default.

    Raises:
        Configuration: there is no such engine.
    """
    return engine_table(name).profile


def load_profile(path: Path) -> EngineProfile:
    """Read an operator's profile, strictly: an unknown or misspelt field is an error; `~` is a home, if there is one.

    Raises:
        Configuration: the file cannot be read or is no profile; the message names the file and the field.
    """
    try:
        with open(os.path.expanduser(path), "rb") as file:  # noqa: PTH111, PTH123 # pathlib raises for unknown users
            raw = file.read(MAX_PROFILE_BYTES + 1)
        fields = load_object(raw[:MAX_PROFILE_BYTES])
        unknown = sorted(fields.keys() - EngineProfile.model_fields)
        if unknown:
            raise Configuration(f"engine profile {path}: {unknown[0][:80]!r} is no field of a profile")
        return EngineProfile.model_validate_json(raw, strict=True)
    except OSError as error:
        raise Configuration(f"engine profile {path}: {error.strerror or error}") from error
    except StrictJsonError as error:
        raise Configuration(f"engine profile {path}: {error}") from error
    except ValidationError as error:
        raise Configuration(f"engine profile {path}: {describe_validation_error(error)}") from error


def find_profiles(names: Iterable[str]) -> tuple[EngineProfile, ...]:
    """The profiles of names of built-in engines and paths of JSON files, in their order.

    Raises:
        Configuration: one is neither, cannot be read, or two have one name.
    """
    found: dict[str, EngineProfile] = {}
    for name in names:
        is_file = name not in BUILT_IN and (name.endswith(".json") or "/" in name)
        profile = load_profile(Path(name)) if is_file else built_in_profile(name)
        if profile.name in found:
            raise Configuration(f"two engine profiles have the name {profile.name!r}")
        found[profile.name] = profile
    return tuple(found.values())


@lru_cache(maxsize=256)
def rules_of(profile: EngineProfile) -> tuple[EngineRule, ...]:
    """The rules that count on a node: those of its engine and version, and its own."""
    own = {rule.condition for rule in profile.rules}
    known = engine_table(profile.engine).rules if profile.engine in BUILT_IN else ()
    return tuple(
        rule
        for rule in (*(rule for rule in known if rule.condition not in own), *profile.rules)
        if in_range(profile.version, rule.versions) and (not rule.unless_flag or rule.unless_flag not in profile.flags)
    )


def in_range(version: str, versions: str) -> bool:
    """Whether a version lies in a range such as `>=0.32,<0.34`; an empty range and a version without numbers match."""
    numbers = _VERSION.match(version)
    if not versions or numbers is None:
        return True
    mine = _numbers(numbers[1])
    for operator, text in _RANGE.findall(versions):
        other = _numbers(text)
        order = (mine > other) - (mine < other)
        if order not in {">=": (0, 1), "<=": (0, -1), "==": (0,), ">": (1,), "<": (-1,)}[operator]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """The version's numbers without zeros at the end, so that 0.33 and 0.33.0 are one."""
    parts = [int(part) for part in version.split(".")]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
