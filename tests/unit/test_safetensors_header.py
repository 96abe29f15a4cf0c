from __future__ import annotations

import json
import pickle
import struct
from typing import Any

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.adapters import header_of, make_adapter, reader, safetensors_bytes, with_header

from lora_registry import file_codes
from lora_registry import safetensors_header as sh
from lora_registry.safetensors_header import Header, HeaderError, TensorEntry, parse_header, read_header


def tensor(**changes: Any) -> dict[str, Any]:
    """A tensor's fields, good but for the changes."""
    return {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | changes


def code_of(fields: object, *, data_bytes: int = 24) -> str:
    """The code with which a header is refused."""
    raw = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    with pytest.raises(HeaderError) as caught:
        parse_header(raw, data_bytes=data_bytes)
    return caught.value.finding.code


def test_reads_tensors_and_metadata() -> None:
    """A file gives its tensors in order with dtype, shape and byte range, its metadata and its header's
    length.
    """
    raw = safetensors_bytes({"a": (2, 3), "b": (4,)}, dtype="BF16", metadata={"format": "pt"})
    header = header_of(raw)
    (json_bytes,) = struct.unpack("<Q", raw[:8])
    assert header == Header(
        {"a": TensorEntry("a", "BF16", (2, 3), 0, 12), "b": TensorEntry("b", "BF16", (4,), 12, 20)},
        {"format": "pt"},
        8 + json_bytes,
    )


def test_reads_a_small_header_in_one_request() -> None:
    """The whole header of a usual adapter comes with the first ranged read, and the weights stay where they
    are.
    """
    raw = safetensors_bytes({"a": (1000, 100)})
    asked: list[tuple[int, int]] = []

    def read(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return raw[offset : offset + length]

    read_header(read, file_size_bytes=len(raw))
    assert asked == [(0, sh.FIRST_READ_BYTES)]


def test_reads_a_long_header_in_two_requests() -> None:
    """A header longer than the first read is completed by a second one."""
    raw = safetensors_bytes({f"tensor.{n}": (1,) for n in range(3000)})
    assert len(header_of(raw).tensors) == 3000


def test_header_padded_with_spaces_is_read() -> None:
    """Trailing spaces, with which writers align the data, are accepted."""
    assert parse_header(json.dumps({"a": tensor()}).encode() + b"   ", data_bytes=24).tensors.keys() == {"a"}


def test_scalar_is_read() -> None:
    """A tensor without dimensions has one element."""
    entry = parse_header(json.dumps({"a": tensor(shape=[], data_offsets=[0, 4])}).encode(), data_bytes=4).tensors["a"]
    assert entry.shape == ()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"extra": 1}, "WEIGHTS_HEADER_MALFORMED"),
        ({"shape": [2, 3.0]}, "WEIGHTS_HEADER_MALFORMED"),
        ({"shape": [True, 6]}, "WEIGHTS_HEADER_MALFORMED"),
        ({"shape": [-2, -3]}, "WEIGHTS_HEADER_MALFORMED"),
        ({"shape": "6"}, "WEIGHTS_HEADER_MALFORMED"),
        ({"shape": [1] * 9}, "WEIGHTS_HEADER_MALFORMED"),
        ({"dtype": 1}, "WEIGHTS_HEADER_MALFORMED"),
        ({"data_offsets": [0]}, "WEIGHTS_HEADER_MALFORMED"),
        ({"data_offsets": [0, 24.0]}, "WEIGHTS_HEADER_MALFORMED"),
        ({"data_offsets": [None, 24]}, "WEIGHTS_HEADER_MALFORMED"),
        ({"dtype": "F4"}, "TENSOR_DTYPE_UNKNOWN"),
        ({"dtype": "f32"}, "TENSOR_DTYPE_UNKNOWN"),
        ({"shape": [0, 6], "data_offsets": [0, 0]}, "TENSOR_EMPTY"),
        ({"shape": [2, 4]}, "WEIGHTS_OFFSETS_INVALID"),
        ({"shape": [10**19, 10**19]}, "WEIGHTS_OFFSETS_INVALID"),
        ({"data_offsets": [24, 0]}, "WEIGHTS_OFFSETS_INVALID"),
        ({"data_offsets": [4, 28]}, "WEIGHTS_OFFSETS_INVALID"),
    ],
)
def test_malformed_tensor_is_refused(changes: dict[str, Any], code: str) -> None:
    """Every field of a tensor has one type and one meaning; anything else is refused with its own code."""
    assert code_of({"a": tensor(**changes)}) == code


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}',
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}',
        b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[-0,24]}}',
        b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,' + b"9" * 5000 + b"]}}",
        b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,24]}}',
        b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,24]}}',
        b'{"__metadata__":{"n":1}}',
        b'{"__metadata__":null}',
        b'{"__metadata__":{"n":"\\ud800"}}',
        b'{"a":\xff}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":1}',
        b"{",
        b'{"a":{}} x',
    ],
)
def test_malformed_json_is_refused(raw: bytes) -> None:
    """Repeated keys, odd numbers, bad texts and deep nesting are refused, never raised as anything else."""
    assert code_of(raw) == "WEIGHTS_HEADER_MALFORMED"


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a..b", "ä", "a\n", "a\nb", "\n", "x" * 513])
def test_odd_names_are_refused(name: str) -> None:
    """Names that no module has are refused: they end up in paths, logs and other people's programs."""
    assert code_of({name: tensor()}) == "TENSOR_NAME_INVALID"
    assert code_of({"a": tensor(), name: tensor(), "b": tensor()}) == "TENSOR_NAME_INVALID"


def test_gaps_and_overlaps_are_refused() -> None:
    """Tensors must follow each other without a gap and without sharing a byte."""
    gap = {"a": tensor(), "b": tensor(data_offsets=[28, 52])}
    overlap = {"a": tensor(), "b": tensor(data_offsets=[20, 44])}
    assert code_of(gap, data_bytes=52) == code_of(overlap, data_bytes=44) == "WEIGHTS_OFFSETS_INVALID"


def test_file_that_ends_early_is_truncated() -> None:
    """A file shorter than its header announces is told apart from every other fault, wherever it ends."""
    raw = safetensors_bytes({"a": (2, 3)})
    for size in (len(raw) - 1, len(raw) - 24, 40):
        with pytest.raises(HeaderError) as caught:
            header_of(raw[:size])
        assert caught.value.finding.code == "WEIGHTS_TRUNCATED"


def test_file_with_more_bytes_is_refused() -> None:
    """Bytes after the last tensor are refused: they would be unseen cargo."""
    with pytest.raises(HeaderError) as caught:
        header_of(safetensors_bytes({"a": (2, 3)}) + b"x")
    assert caught.value.finding.code == "WEIGHTS_TRAILING_BYTES"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "WEIGHTS_TRUNCATED"),
        (b"1234", "WEIGHTS_NOT_SAFETENSORS"),
        (b"PK\x03\x04" + bytes(100), "WEIGHTS_NOT_SAFETENSORS"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "WEIGHTS_LFS_POINTER"),
        (struct.pack("<Q", 2**63) + b"{}", "WEIGHTS_HEADER_TOO_LARGE"),
        (struct.pack("<Q", sh.MAX_HEADER_BYTES + 1) + b"{}", "WEIGHTS_HEADER_TOO_LARGE"),
        (with_header(b""), "WEIGHTS_NOT_SAFETENSORS"),
        (with_header(b" {}"), "WEIGHTS_NOT_SAFETENSORS"),
    ],
)
def test_other_files_are_recognised(raw: bytes, code: str) -> None:
    """What is no safetensors file at all is named for what it is."""
    with pytest.raises(HeaderError) as caught:
        header_of(raw)
    assert caught.value.finding.code == code


def test_short_read_is_truncation() -> None:
    """A source that gives fewer bytes than it was asked for is a truncated file."""
    with pytest.raises(HeaderError) as caught:
        read_header(reader(b"{" * 20), file_size_bytes=1000)
    assert caught.value.finding.code == "WEIGHTS_TRUNCATED"


def test_too_many_tensors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of tensors is bounded, so that one header cannot occupy a worker for long."""
    monkeypatch.setattr(sh, "MAX_TENSORS", 3)
    with pytest.raises(HeaderError) as caught:
        header_of(safetensors_bytes({f"t{n}": (1,) for n in range(4)}))
    assert caught.value.finding.code == "WEIGHTS_TOO_MANY_TENSORS"


def test_error_survives_pickling() -> None:
    """A HeaderError keeps its finding when it travels between processes."""
    error = HeaderError.of(file_codes.WEIGHTS_TRUNCATED, "file", expected=1, actual=2)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is HeaderError
    assert again.finding == error.finding


def library_accepts(raw: bytes) -> bool:
    """Whether the safetensors library reads a file."""
    try:
        safetensors.deserialize(raw)
    except safetensors.SafetensorError:
        return False
    return True


def assert_never_looser(raw: bytes) -> None:
    """Fail if a file is accepted here that the library refuses."""
    try:
        header_of(raw)
    except HeaderError:
        return
    assert library_accepts(raw), raw[:400]


GOOD = safetensors_bytes({"a.lora_A.weight": (2, 3), "a.lora_B.weight": (4, 2)}, metadata={"format": "pt"})
_FRAGMENTS = [
    b"-0",
    b"-",
    b"1e2",
    b"1.0",
    b"00",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'""',
    b" ",
    b"\t",
    b"\\u0061",
    b"\\ud800",
    b",",
    b":",
    b'"',
    b"0",
    b"24",
    b"NaN",
    b"\xc3\xa9",
    b"\xff",
    b"\x00",
    b"F64",
    b"__metadata__",
]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_never_looser_than_the_library_after_edits(data: st.DataObject) -> None:
    """Whatever is put in, cut out or replaced in a good header: what is accepted here the library accepts
    too.
    """
    (length,) = struct.unpack("<Q", GOOD[:8])
    header, body = bytearray(GOOD[8 : 8 + length]), GOOD[8 + length :]
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(header)))
        end = min(len(header), begin + data.draw(st.integers(0, 4)))
        header[begin:end] = data.draw(st.one_of(st.sampled_from(_FRAGMENTS), st.binary(max_size=3)))
    assert_never_looser(with_header(bytes(header), data=body))


_numbers = st.one_of(st.integers(-2, 30), st.sampled_from([2**63, 2**64, 10**20, -0.0, 1.5, 24.0, True, None, "4"]))
_tensors = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F4", "F6_E2M3", "C64", "I8", "X", 3]),
        "shape": st.one_of(st.lists(_numbers, max_size=3), st.none()),
        "data_offsets": st.one_of(st.lists(_numbers, max_size=3), st.just([0, 24])),
    },
    optional={"extra": st.none()},
)


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(st.text(max_size=4), _tensors, max_size=3),
    st.one_of(st.none(), st.dictionaries(st.text(max_size=3), st.one_of(st.text(max_size=3), st.none()), max_size=2)),
    st.integers(0, 40),
)
def test_never_looser_than_the_library_on_made_up_headers(
    tensors: dict[str, Any], metadata: dict[str, Any] | None, data_bytes: int
) -> None:
    """Headers made up field by field are accepted here only if the library accepts them."""
    fields = tensors | ({} if metadata is None else {"__metadata__": metadata})
    assert_never_looser(with_header(json.dumps(fields).encode(), data=bytes(data_bytes)))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 100))
def test_any_bytes_give_a_header_or_a_header_error(raw: bytes, data_bytes: int) -> None:
    """No bytes whatever make the parser raise anything but HeaderError."""
    for text in (raw, b"{" + raw):
        try:
            parse_header(text, data_bytes=data_bytes)
        except HeaderError:
            continue


def test_every_prefix_of_a_file_is_refused() -> None:
    """However much of an adapter's file has arrived, it is accepted only when it is whole."""
    raw = make_adapter().weights_bytes
    for size in range(0, len(raw), 37):
        with pytest.raises(HeaderError):
            header_of(raw[:size])
    assert library_accepts(raw)
