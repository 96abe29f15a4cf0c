"""The `model` field of a request's JSON: found, and replaced without touching another byte."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class ModelField:
    """Where a request names its model.

    Attributes:
        name: the model. If the field comes twice, the last one counts, as for every JSON parser used here.
        text: the whole body.
        spans: begin and end of each value in it.
    """

    name: str
    text: str
    spans: tuple[tuple[int, int], ...]

    def replaced_by(self, name: str) -> bytes:
        """The body with another model."""
        parts, at = [], 0
        for begin, end in self.spans:
            parts += [self.text[at:begin], json.dumps(name)]
            at = end
        return "".join([*parts, self.text[at:]]).encode()


def find_field(body: bytes, field: str = "model") -> ModelField | None:
    """Where the body's top-level object has `field` with a string; None if it has not, or is no JSON."""
    try:
        text = body.decode()
        pairs = list(_members(text))
    except (ValueError, RecursionError, IndexError):
        return None
    found = [(value, begin, end) for key, value, begin, end in pairs if key == field]
    if not found or not isinstance(found[-1][0], str):
        return None
    return ModelField(found[-1][0], text, tuple((begin, end) for _, begin, end in found))


def _members(text: str) -> list[tuple[object, object, int, int]]:
    """Key, value, and where the value begins and ends, of each member of the object that `text` is.

    Raises:
        ValueError, IndexError: it is no JSON object.
    """
    members: list[tuple[object, object, int, int]] = []
    at = _expect(text, 0, "{")
    if text[at] == "}":
        return members
    while True:
        key, at = _DECODER.raw_decode(text, at)
        begin = _expect(text, _after_space(text, at), ":")
        value, end = _DECODER.raw_decode(text, begin)
        members.append((key, value, begin, end))
        at = _after_space(text, end)
        if text[at] == "}":
            return members
        at = _expect(text, at, ",")


def _expect(text: str, at: int, mark: str) -> int:
    at = _after_space(text, at)
    if text[at] != mark:
        raise ValueError(f"no {mark!r} at {at}")
    return _after_space(text, at + 1)


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
