"""Events: what a publisher may ask for, and what is said of an event that is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lora_registry.errors import InvalidName, Rejected
from lora_registry.events import Follow, RegistrationRequested, parse_event
from lora_registry.names import AdapterName


def make_fields(**changes: Any) -> dict[str, Any]:
    """The fields of an event."""
    return {"name": "support-bot", "base_model": "tiny-llama", "source": "/adapters/support-bot"} | changes


def make_event(**changes: Any) -> RegistrationRequested:
    """An event."""
    return RegistrationRequested(**make_fields(**changes))


def test_only_name_base_and_source_are_needed() -> None:
    """Everything else has a default, and the default namespace is one of them."""
    event = parse_event(json.dumps(make_fields()))
    assert event.adapter == AdapterName("default", "support-bot")
    assert (event.labels, event.metadata, event.supersede, event.follow) == ({}, {}, False, Follow.LATEST)


def test_event_survives_the_queue() -> None:
    """What is written as JSON is read as the same event."""
    event = make_event(
        namespace="team", labels={"team/x": "ü\n\"'"}, metadata={"a": ""}, supersede=True, follow=Follow.MANUAL
    )
    assert parse_event(event.model_dump_json()) == event


def test_unknown_fields_are_ignored_on_read_and_kept_out_on_write() -> None:
    """An event of a later version is read as far as it is known."""
    event = parse_event(json.dumps(make_fields(priority=9)))
    assert event == make_event()
    assert "priority" not in event.model_dump_json()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"source": ""}, "source"),
        ({"source": "/" * 2049}, "source"),
        ({"labels": {"": "x"}}, "labels"),
        ({"labels": {"a b": "x"}}, "labels"),
        ({"labels": {"-a": "x"}}, "labels"),
        ({"labels": {"a\n": "x"}}, "labels"),
        ({"labels": {"a" * 64: "x"}}, "labels"),
        ({"labels": {"a": "x" * 257}}, "labels.a"),
        ({"labels": {f"a{number}": "" for number in range(33)}}, "labels"),
        ({"metadata": {f"a{number}": "" for number in range(33)}}, "metadata"),
        ({"labels": {"a": 1}}, "labels.a"),
        ({"follow": "nobody"}, "follow"),
        ({"schema_version": 2}, "schema_version"),
        ({"name": None}, "name"),
    ],
)
def test_illegal_field_is_named(changes: dict[str, Any], field: str) -> None:
    """The publisher is told which field is wrong."""
    with pytest.raises(Rejected, match=f"^{field}"):
        parse_event(json.dumps(make_fields(**changes)))


@pytest.mark.parametrize(
    "source",
    [
        "https://bot:s3cret@host/adapters",
        "s3://key:s3cret@bucket/adapters",
        "https://:s3cret@host/adapters",
        "https://host/adapters?X-Amz-Signature=s3cret",
        "HTTPS://host?s3cret",
        "https://s3cret@host/adapters",
        "https://host/adapters#token=s3cret",
        "s3://AKIAKNOWN:wJalr/K7/s3cret@bucket/adapters",
        "s3://bucket/adapters?X-Amz-Signature=s3cret",
    ],
)
def test_secrets_in_a_source_are_refused_before_anything_is_kept(source: str) -> None:
    """An event lies in Redis and is shown to many; what is said of it repeats nothing."""
    with pytest.raises(Rejected, match="credential") as rejected:
        parse_event(json.dumps(make_fields(source=source)))
    assert "s3cret" not in str(rejected.value)


@pytest.mark.parametrize(
    "source",
    [
        "org/repo@main",
        "hf://org/repo@refs/pr/1",
        "mlflow://a%3Ab@champion",
        "abfs://box@account.example/x",
        "/a:b@c",
        "https://host:8443/run:3/step@900",
        "s3://bucket/run#3/what?",
    ],
)
def test_an_at_sign_alone_is_no_secret(source: str) -> None:
    """Revisions, aliases and accounts are written with one."""
    assert make_event(source=source).source == source


@pytest.mark.parametrize("field", ["name", "base_model", "source"])
def test_missing_field_is_named(field: str) -> None:
    """A field without a default is asked for by its name."""
    fields = make_fields()
    del fields[field]
    with pytest.raises(Rejected, match=f"^{field}: Field required"):
        parse_event(json.dumps(fields))


@pytest.mark.parametrize("changes", [{"name": "Support"}, {"namespace": "base"}, {"base_model": "a//b"}])
def test_illegal_names_are_refused_as_names(changes: dict[str, Any]) -> None:
    """A name is refused with the rule it breaks, by the model and by the parser alike."""
    with pytest.raises(InvalidName):
        make_event(**changes)
    with pytest.raises(InvalidName):
        parse_event(json.dumps(make_fields(**changes)))


def test_message_repeats_nothing_of_the_input() -> None:
    """A secret in a wrong field does not end up in logs."""
    with pytest.raises(Rejected) as refused:
        parse_event(json.dumps(make_fields(labels={"token": ["hunter2"]})))
    assert "hunter2" not in refused.value.message


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(
    st.binary() | st.text() | st.dictionaries(st.sampled_from(sorted(RegistrationRequested.model_fields)), json_values)
)
def test_anything_is_an_event_or_rejected(raw: Any) -> None:
    """Nothing that lies in the queue raises anything but Rejected, for the dispatcher must get past it."""
    text = json.dumps(raw) if isinstance(raw, dict) else raw
    try:
        event = parse_event(text)
    except Rejected:
        return
    assert parse_event(event.model_dump_json()) == event


def test_deeply_nested_event_is_rejected() -> None:
    """Nesting without end exhausts no stack."""
    with pytest.raises(Rejected):
        parse_event('{"labels":' * 100_000)


def test_text_that_is_no_unicode_is_rejected() -> None:
    """A lone surrogate, which no JSON could carry to the dispatcher, is refused at the publisher."""
    with pytest.raises(ValidationError):
        make_event(source="/adapters/\udcff")


def test_events_are_frozen() -> None:
    """An event does not change under those who hold it."""
    with pytest.raises(ValidationError):
        make_event().name = "other"


def test_payload_digest_tells_requests_apart() -> None:
    """Every field counts: under one idempotency key another request is not taken for a repetition."""
    changes: list[dict[str, Any]] = [
        {},
        {"namespace": "team"},
        {"name": "other"},
        {"base_model": "other"},
        {"source": "/other"},
        {"labels": {"a": "b"}},
        {"metadata": {"a": "b"}},
        {"supersede": True},
        {"follow": Follow.MANUAL},
    ]
    assert len({make_event(**each).payload_digest() for each in changes}) == len(changes)


def test_payload_digest_does_not_depend_on_the_order_of_labels() -> None:
    """Equal events have equal digests: a publisher may build its labels in another order when it tries again."""
    one, other = make_event(labels={"a": "1", "b": "2"}), make_event(labels={"b": "2", "a": "1"})
    assert one == other
    assert one.payload_digest() == other.payload_digest()
