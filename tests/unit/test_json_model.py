"""The `model` field of a request: found as a JSON parser finds it, replaced without touching anything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_workers.node.json_model import find_field

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    before=st.dictionaries(st.text(max_size=6), VALUES, max_size=3),
    after=st.dictionaries(st.text(max_size=6), VALUES, max_size=3),
    model=st.text(max_size=12),
    new=st.text(max_size=12),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
)
def test_only_the_model_changes(
    before: dict[str, Any], after: dict[str, Any], model: str, new: str, indent: int | None, ascii_only: bool
) -> None:
    """Whatever else the object holds, and however it is written, stays byte for byte."""
    body = before | {"model": model} | after | {"model": model}
    try:
        raw = json.dumps(body, indent=indent, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:  # a lone surrogate is no UTF-8
        return
    field = find_field(raw)
    assert field
    assert field.name == model
    assert json.loads(field.replaced_by(new)) == body | {"model": new}
    (begin, end), text = field.spans[0], raw.decode()
    changed = field.replaced_by(new).decode()
    assert changed.startswith(text[:begin])
    assert changed.endswith(text[end:])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"model"',
        b'{"model": 5}',
        b'{"model": null}',
        b'{"modele": "x"}',
        b'{"a": {"model": "inner"}}',
        b'{"model" "x"}',
        b'{"model": "x"',
        b'{"model": "x",}',
        b"\xff\xfe{",
        b"[" * 100_000,
    ],
)
def test_what_names_no_model_is_left_alone(raw: bytes) -> None:
    """No JSON, no object, no string there: nobody's business here."""
    assert find_field(raw) is None


def test_of_two_models_the_last_counts_and_both_are_replaced() -> None:
    """As every JSON parser in vLLM takes it; none can be fooled by the other."""
    field = find_field(b'{"model": "first", "x": 1, "model": "second"}')
    assert field
    assert field.name == "second"
    assert field.replaced_by("new") == b'{"model": "new", "x": 1, "model": "new"}'


def test_numbers_and_spaces_stay_as_they_were_written() -> None:
    """A parser would write 1.10 as 1.1, and a long integer as it likes."""
    raw = b' { "t":1.10 ,"big":123456789012345678901234567890,"model" :\n"a" , "u":"\\u00e9"} '
    field = find_field(raw)
    assert field
    assert field.replaced_by("b.v2") == raw.replace(b'"a"', b'"b.v2"')
