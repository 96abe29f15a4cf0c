"""Where a request names its model: in JSON, or in a form with files."""

from __future__ import annotations

from typing import Final

from lora_workers.node.asgi import Scope, header
from lora_workers.node.form_model import FormField, boundary_of, find_form_field
from lora_workers.node.json_model import ModelField, find_field

LARGEST_FORM_BYTES: Final = 64 << 20
"""Forms are held in memory here, while vLLM writes them to disk; it takes 25 MB of sound unless told otherwise.
Source: vLLM 0.32.0, VLLM_MAX_AUDIO_CLIP_FILESIZE_MB."""
_MOST_DIGITS: Final = 18


def may_name_model(scope: Scope) -> bool:
    """Whether the body is worth reading: it is JSON, or a form that says that it is not too large."""
    return _is_json(scope) or (_boundary(scope) is not None and _is_small(scope))


def find_model(scope: Scope, body: bytes) -> ModelField | FormField | None:
    """Where the body names the model; None if it does not."""
    if _is_json(scope):
        return find_field(body)
    boundary = _boundary(scope)
    return find_form_field(body, boundary) if boundary else None


def _is_json(scope: Scope) -> bool:
    return header(scope, b"content-type").partition(b";")[0].strip().lower().endswith(b"json")


def _boundary(scope: Scope) -> bytes | None:
    return boundary_of(header(scope, b"content-type"))


def _is_small(scope: Scope) -> bool:
    told = header(scope, b"content-length")
    return told.isdigit() and len(told) <= _MOST_DIGITS and int(told) <= LARGEST_FORM_BYTES
