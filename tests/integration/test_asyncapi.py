"""deploy/docs/asyncapi.yaml says of the announcements what the code does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_registry.announcements import Kind
from lora_registry.catalog_records import AliasMode, VersionRecord
from lora_registry.keys import Keys
from lora_registry.names import AdapterName, Reference
from tests.helpers.registry import Registry

DOCUMENT: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[2] / "deploy" / "docs" / "asyncapi.yaml").read_text(encoding="utf-8")
)
SCHEMAS = DOCUMENT["components"]["schemas"]
TYPES = {"string": str, "integer": int, "object": dict, "array": list, "null": type(None)}


def find(reference: str) -> Any:
    """What a `$ref` of the document leads to."""
    found: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def references(part: Any) -> Iterator[str]:
    """Every `$ref` in a part of the document."""
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"]
        for each in part.values():
            yield from references(each)
    elif isinstance(part, list):
        for each in part:
            yield from references(each)


def check(value: Any, schema: dict[str, Any], at: str) -> None:
    """That a value fits a schema; a key that the schema does not name does not."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    assert any(type(value) is TYPES[kind] for kind in kinds), (at, value)
    assert value == schema.get("const", value), at
    assert value in schema.get("enum", [value]), at
    for item in value if isinstance(value, list) else ():
        check(item, schema["items"], at)
    if isinstance(value, dict) and "properties" in schema:
        assert set(schema["required"]) <= value.keys() <= schema["properties"].keys(), at
        for name, each in value.items():
            check(each, schema["properties"][name], f"{at}.{name}")


def test_record_is_the_one_of_the_code() -> None:
    """Fields, types, defaults and what is required of a version record are pydantic's."""

    def without_titles(schema: Any) -> Any:
        if not isinstance(schema, dict):
            return schema
        return {name: without_titles(each) for name, each in schema.items() if name not in ("title", "description")}

    assert SCHEMAS["VersionRecord"] == without_titles(VersionRecord.model_json_schema())


def test_every_kind_of_announcement_is_in_it() -> None:
    """Both the channel and the log have a message for each, and every reference leads somewhere."""
    for channel in DOCUMENT["channels"].values():
        assert set(channel["messages"]) == set(Kind)
    assert set(SCHEMAS["AliasMoved"]["properties"]["mode"]["enum"]) == set(AliasMode)
    for reference in references(DOCUMENT):
        assert find(reference)
    base = "<base model>"
    assert [each["address"] for each in DOCUMENT["channels"].values()] == [Keys().channel(base), Keys().log(base)]


def test_real_announcements_fit(registry: Registry) -> None:
    """Each kind as the server's scripts write it, envelope and data."""
    bot = AdapterName("default", "support-bot")
    registry.register(content="one", labels={"a": "b"})
    registry.register(content="two")
    registry.lifecycle.label(Reference(bot), {"tier": "gold"})
    registry.lifecycle.direct(registry.version(), ["node-1"], token="t", for_s=60)
    registry.lifecycle.direct(registry.version(), [], token="t", for_s=0)
    registry.catalog.move_alias(bot, "stable", 1)
    registry.lifecycle.retire_adapter(bot)
    told = dict.fromkeys(Kind, 0)
    for text in registry.log():
        message = json.loads(text)
        kind = Kind(message["type"].removeprefix("io.lora-registry.").removesuffix(".v1"))
        envelope, special = find(f"#/components/messages/{kind}")["payload"]["allOf"]
        check(message, find(envelope["$ref"]), kind)
        check(message["data"], find(special["properties"]["data"]["$ref"]), kind)
        told[kind] += 1
    assert all(told.values()), told


@pytest.mark.parametrize("data", [{}, {"version": "1"}, {"version": 1, "more": 2}, {"version": True}])
def test_what_does_not_fit_is_noticed(data: dict[str, Any]) -> None:
    """The check that the test above relies on finds missing, additional and mistyped values."""
    with pytest.raises(AssertionError):
        check(data, {"type": "object", "required": ["version"], "properties": {"version": {"type": "integer"}}}, "")
