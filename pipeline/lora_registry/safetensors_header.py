"""The header of a safetensors file, read without the file: eight bytes of length, then JSON.

Nothing is accepted here that the safetensors library refuses. Some things are refused that it accepts:
unknown fields of a tensor, names that no module has, tensors without elements, dtypes of less than a byte.

Source: the format's README and `Metadata::validate` in safetensors' tensor.rs (huggingface/safetensors
    0.8.0).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from lora_registry import file_codes
from lora_registry.code import Code
from lora_registry.errors import Rejected
from lora_registry.findings import Finding
from lora_registry.strict_json import MAX_INTEGER_DIGITS, StrictJsonError, load_object

MAX_HEADER_BYTES = 25_000_000
"""Source:

SAFETENSORS_MAX_HEADER_LENGTH in huggingface_hub's constants.py; the library itself allows 100 MB.
"""

MAX_TENSORS = 200_000
"""About twice the 89,552 tensors of a LoRA on every projection and expert of a DeepSeek-V3."""

FIRST_READ_BYTES = 100_000
"""Length of the first read: it holds the whole header of nearly every dense adapter in one request."""

MAX_DIMENSIONS = 8
"""More than any module's weight has."""

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes per element.

Source: `Dtype::bitsize` in safetensors' tensor.rs, without F4 and F6 (less than a byte).
"""

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,512}")
_NAMES = re.compile(rf"(?:{_NAME.pattern}\n)*+{_NAME.pattern}")
"""All names at once, which takes a fraction of the time of one by one."""
_LFS_POINTER = b"version https://git-lfs"


class HeaderError(Rejected):
    """The weights' header is not acceptable."""

    code = "WEIGHTS_INVALID"

    @classmethod
    def of(
        cls,
        code: Code,
        subject: str = "",
        message: str = "",
        *,
        expected: object = "",
        actual: object = "",
    ) -> HeaderError:
        """The error that carries one finding of `code`."""
        finding = code.finding(subject, message, expected=expected, actual=actual)
        return cls(f"{subject}: {finding.message}" if subject else finding.message, findings=(finding,))

    @property
    def finding(self) -> Finding:
        """What is wrong; its `code` is one of `lora_registry.codes`."""
        return self.findings[0]


class TensorEntry(NamedTuple):
    """One tensor of the header; a tuple, because a header has hundreds to thousands.

    Attributes:
        name: the tensor's name.
        dtype: a key of `DTYPE_BYTES`.
        shape: sizes of its dimensions, each at least 1; () for a scalar.
        begin: first byte, counted from the end of the header.
        end: the byte after its last.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A whole header.

    Attributes:
        tensors: the tensors by name, in the order of the header.
        metadata: the free texts under __metadata__.
        header_bytes: bytes before the first tensor: eight of length plus the JSON.
    """

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    header_bytes: int


def read_header(
    read: Callable[[int, int], bytes], *, file_size_bytes: int, first_read_bytes: int = FIRST_READ_BYTES
) -> Header:
    """Read the header of a file through ranged reads.

    Args:
        read: gives the bytes at (offset, length), both in bytes. What it raises is passed on.
        file_size_bytes: size of the whole file.
        first_read_bytes: length of the first read; a short one saves bytes where a second read costs little.

    Raises:
        HeaderError: the header is not acceptable, or the file does not have the size that it announces.
    """
    start = _read_exactly(read, 0, min(file_size_bytes, first_read_bytes))
    if start.startswith(_LFS_POINTER):
        raise HeaderError.of(file_codes.WEIGHTS_LFS_POINTER)
    if len(start) < 9:
        code = file_codes.WEIGHTS_TRUNCATED if file_size_bytes == 0 else file_codes.WEIGHTS_NOT_SAFETENSORS
        raise HeaderError.of(code, actual=f"{file_size_bytes} bytes")
    json_bytes = int.from_bytes(start[:8], "little")
    if start[8:9] != b"{":
        raise HeaderError.of(file_codes.WEIGHTS_NOT_SAFETENSORS)
    if json_bytes > MAX_HEADER_BYTES:
        raise HeaderError.of(
            file_codes.WEIGHTS_HEADER_TOO_LARGE,
            expected=f"at most {MAX_HEADER_BYTES} bytes",
            actual=f"{json_bytes} bytes",
        )
    header_bytes = 8 + json_bytes
    if header_bytes > file_size_bytes:
        raise HeaderError.of(
            file_codes.WEIGHTS_TRUNCATED,
            expected=f"at least {header_bytes} bytes",
            actual=f"{file_size_bytes} bytes",
        )
    if header_bytes > len(start):
        start += _read_exactly(read, len(start), header_bytes - len(start))
    return parse_header(start[8:header_bytes], data_bytes=file_size_bytes - header_bytes)


def parse_header(raw_header_json: bytes, *, data_bytes: int) -> Header:
    """Parse a header's JSON.

    Args:
        raw_header_json: the JSON, without the eight bytes of length.
        data_bytes: bytes of the file that follow the header; the tensors must cover exactly these.

    Raises:
        HeaderError: the header is not acceptable.
    """
    if len(raw_header_json) > MAX_HEADER_BYTES:
        raise HeaderError.of(file_codes.WEIGHTS_HEADER_TOO_LARGE, actual=f"{len(raw_header_json)} bytes")
    if raw_header_json[:1] != b"{":
        raise HeaderError.of(file_codes.WEIGHTS_NOT_SAFETENSORS)
    try:
        fields = load_object(raw_header_json, integers=_unsigned if b"-" in raw_header_json else int)
    except StrictJsonError as exc:
        raise HeaderError.of(file_codes.WEIGHTS_HEADER_MALFORMED, message=str(exc)) from exc
    metadata = _metadata(fields.pop("__metadata__", {}))
    if len(fields) > MAX_TENSORS:
        raise HeaderError.of(file_codes.WEIGHTS_TOO_MANY_TENSORS, expected=f"at most {MAX_TENSORS}", actual=len(fields))
    _check_names(fields)
    tensors = {name: _tensor(name, value) for name, value in fields.items()}
    _check_layout(tensors, data_bytes)
    return Header(tensors, metadata, 8 + len(raw_header_json))


def _read_exactly(read: Callable[[int, int], bytes], offset: int, length: int) -> bytes:
    got = bytes(read(offset, length))
    if len(got) != length:
        raise HeaderError.of(
            file_codes.WEIGHTS_TRUNCATED, expected=f"{length} bytes at {offset}", actual=f"{len(got)} bytes"
        )
    return got


def _unsigned(text: str) -> int:
    # serde reads "-0" as a float and refuses it where a size belongs; int() would make it 0.
    if text[0] == "-" or len(text) > MAX_INTEGER_DIGITS:
        raise StrictJsonError(f"{text[:MAX_INTEGER_DIGITS]} is not a size.")
    return int(text)


def _metadata(value: object) -> dict[str, str]:
    if type(value) is not dict or any(type(text) is not str for text in value.values()):
        raise HeaderError.of(
            file_codes.WEIGHTS_HEADER_MALFORMED,
            "__metadata__",
            "The metadata is not an object whose values are texts.",
        )
    return value


def _check_names(names: Collection[str]) -> None:
    text = "\n".join(names)
    if _NAMES.fullmatch(text) is None or ".." in text or text.count("\n") >= len(names):
        wrong = next((name for name in names if _NAME.fullmatch(name) is None or ".." in name), None)
        if wrong is not None:
            raise HeaderError.of(file_codes.TENSOR_NAME_INVALID, repr(wrong[:100]))


def _tensor(name: str, value: Any) -> TensorEntry:
    try:
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        begin, end = offsets
    except (TypeError, KeyError, ValueError):
        raise _malformed(name, "The tensor does not have the fields dtype, shape and two data_offsets.") from None
    if len(value) != 3:
        raise _malformed(name, "The tensor has other fields than dtype, shape and data_offsets.")
    if type(dtype) is not str or type(shape) is not list or type(offsets) is not list:
        raise _malformed(name, "The tensor's dtype, shape or data_offsets is not of the right type.")
    if type(begin) is not int or type(end) is not int:
        raise _malformed(name, "An offset is not an integer.")
    if len(shape) > MAX_DIMENSIONS:
        raise _malformed(name, f"The tensor has more than {MAX_DIMENSIONS} dimensions.")
    for size in shape:
        if type(size) is not int:
            raise _malformed(name, "A size in the shape is not an integer.")
    element_bytes = DTYPE_BYTES.get(dtype)
    if element_bytes is None:
        raise HeaderError.of(file_codes.TENSOR_DTYPE_UNKNOWN, name, actual=dtype[:40])
    if 0 in shape:
        raise HeaderError.of(file_codes.TENSOR_EMPTY, name, actual=shape)
    if prod(shape) * element_bytes != end - begin:
        raise HeaderError.of(
            file_codes.WEIGHTS_OFFSETS_INVALID,
            name,
            "The tensor's byte range does not fit its shape and dtype.",
            expected=f"{dtype[:40]} {str(shape)[:200]}",
            actual=f"{end - begin} bytes",
        )
    return TensorEntry(name, dtype, tuple(shape), begin, end)


def _check_layout(tensors: dict[str, TensorEntry], data_bytes: int) -> None:
    covered = 0
    for entry in _in_order(tensors):
        if entry.begin != covered:
            raise HeaderError.of(
                file_codes.WEIGHTS_OFFSETS_INVALID,
                entry.name,
                "The tensor's bytes do not begin where those of the one before end.",
                expected=covered,
                actual=entry.begin,
            )
        covered = entry.end
    if covered != data_bytes:
        code = file_codes.WEIGHTS_TRUNCATED if covered > data_bytes else file_codes.WEIGHTS_TRAILING_BYTES
        raise HeaderError.of(code, expected=f"{covered} bytes of tensors", actual=f"{data_bytes} bytes")


def _in_order(tensors: dict[str, TensorEntry]) -> Iterable[TensorEntry]:
    """The tensors by their first byte; most writers list them so."""
    last = 0
    for entry in tensors.values():
        if entry.begin < last:
            return sorted(tensors.values(), key=lambda entry: entry.begin)
        last = entry.begin
    return tensors.values()


def _malformed(name: str, message: str) -> HeaderError:
    return HeaderError.of(file_codes.WEIGHTS_HEADER_MALFORMED, name, message)
