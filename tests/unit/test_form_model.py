"""The `model` field of a form with files: found as forms are written, replaced without touching anything else."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_workers.node.form_model import boundary_of, find_form_field


def written(**fields: Any) -> tuple[bytes, bytes]:
    """A form as a client's library writes it, and its boundary. Bytes are a file."""
    files = [(key, (None, value) if isinstance(value, str) else ("f.wav", value)) for key, value in fields.items()]
    request = httpx.Request("POST", "http://node", files=files)
    boundary = boundary_of(request.headers["content-type"].encode())
    assert boundary
    return request.read(), boundary


@given(
    before=st.binary(max_size=40),
    after=st.binary(max_size=40),
    language=st.text(max_size=8),
    model=st.text(min_size=1, max_size=12),
    new=st.text(min_size=1, max_size=12),
)
def test_only_the_model_changes(before: bytes, after: bytes, language: str, model: str, new: str) -> None:
    """Files and other fields stay byte for byte."""
    body, boundary = written(file=before, language=language, model=model, other=after)
    field = find_form_field(body, boundary)
    assert field
    assert field.name == model
    changed = field.replaced_by(new)
    ((begin, end),) = field.spans
    assert changed == body[:begin] + new.encode() + body[end:]
    again = find_form_field(changed, boundary)
    assert again
    assert again.name == new


def test_of_two_models_the_last_counts_and_both_are_replaced() -> None:
    """As in JSON; none can be fooled by the other."""
    one = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n'
    field = find_form_field(one % b"first" + one % b"second" + b"--b--\r\n", b"b")
    assert field
    assert field.name == "second"
    assert field.replaced_by("new") == one % b"new" * 2 + b"--b--\r\n"


@pytest.mark.parametrize(
    "part",
    [
        b'Content-Disposition: form-data; name="model"; filename="model"\r\n\r\nbot',
        b'Content-Disposition: form-data; name="models"\r\n\r\nbot',
        b'Content-Disposition: form-data; name="x"\r\n\r\nContent-Disposition: form-data; name="model"\r\n\r\nbot',
        b'Content-Disposition: attachment; name="model"\r\n\r\nbot',
        b'Content-Disposition: form-data; name="model"\r\n\r\n',
        b'Content-Disposition: form-data; name="model"\r\n\r\n\xff',
        b'Content-Disposition: form-data; name="model"\nbot',
        b"",
    ],
)
def test_what_names_no_model_is_left_alone(part: bytes) -> None:
    """A file, another field, a field's content, nothing: nobody's business here."""
    assert find_form_field(b"--b\r\n" + part + b"\r\n--b--\r\n", b"b") is None
    assert find_form_field(b"--b\r\n" + part, b"b") is None
    assert find_form_field(part, b"b") is None


def test_a_line_that_only_begins_like_the_boundary_is_content() -> None:
    """A file may hold the marks of another form."""
    inner = b'\r\n--bb\r\nContent-Disposition: form-data; name="model"\r\n\r\nwrong\r\n--bb--'
    right = b"\r\n--b\r\ncontent-type: text/plain\r\ncontent-disposition:form-data; name=model\r\n\r\nright\r\n--b--"
    field = find_form_field(
        b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n' + inner + right, b"b"
    )
    assert field
    assert (field.name, len(field.spans)) == ("right", 1)


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b'Multipart/Form-Data; charset=utf-8;boundary="a b"; x=y', b"a b"),
        (b"multipart/form-data", None),
        (b"multipart/form-data; boundary=", None),
        (b"multipart/mixed; boundary=abc", None),
        (b"application/x-www-form-urlencoded", None),
        (b"", None),
        (b"\xff;;=", None),
    ],
)
def test_the_boundary_is_what_the_header_says(content_type: bytes, expected: bytes | None) -> None:
    """Nothing but a form with files has one."""
    assert boundary_of(content_type) == expected
