"""The `model` field of a form with files (`multipart/form-data`): found, and replaced without touching another byte.

Source: RFC 7578 and RFC 2046, section 5.1.1. What is not written as clients write it is left alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

_BOUNDARY = re.compile(rb';\s*boundary=(?:"([^"]+)"|([^\s";]+))', re.I)
_MODEL = re.compile(rb'content-disposition:[ \t]*form-data;[ \t]*name="?model"?[ \t]*', re.I)


@dataclass(frozen=True)
class FormField:
    """Where a form names its model.

    Attributes:
        name: the model. If the field comes twice, the last one counts, as for vLLM.
        body: the whole form.
        spans: begin and end of each value in it.
    """

    name: str
    body: bytes
    spans: tuple[tuple[int, int], ...]

    def replaced_by(self, name: str) -> bytes:
        """The form with another model."""
        parts, at = [], 0
        for begin, end in self.spans:
            parts += [self.body[at:begin], name.encode()]
            at = end
        return b"".join([*parts, self.body[at:]])


def boundary_of(content_type: bytes) -> bytes | None:
    """What parts a form's fields; None if that is no form with files."""
    kind, _, _ = content_type.partition(b";")
    found = _BOUNDARY.search(content_type) if kind.strip().lower() == b"multipart/form-data" else None
    return (found[1] or found[2]) if found else None


def find_form_field(body: bytes, boundary: bytes) -> FormField | None:
    """Where the form has a field `model` with a text; None if it has not."""
    mark = re.compile(rb"(?:\A|\r\n)--" + re.escape(boundary) + rb"(?=\r\n|--)")
    spans = []
    for before, after in pairwise(mark.finditer(body)):
        head = body.find(b"\r\n\r\n", before.end(), after.start())
        lines = body[before.end() : head].split(b"\r\n") if head >= 0 else []
        if any(_MODEL.fullmatch(line) for line in lines):
            spans.append((head + 4, after.start()))
    try:
        name = body[slice(*spans[-1])].decode() if spans else ""
    except UnicodeDecodeError:
        return None
    return FormField(name, body, tuple(spans)) if name else None
