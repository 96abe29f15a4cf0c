"""A request as a hook sees it: headers and the raw bytes of the body, which are what was signed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Final

from lora_registry.strict_json import StrictJsonError, load_object
from lora_workers.hooks.refusals import malformed

_KEPT: Final = ("content-type", "webhook-id", "x-mlflow-delivery-id", "x-amz-sns-message-type")
_SECRET_WORDS: Final = ("token", "secret", "password", "opaquedata", "apikey", "api_key")
_SECRET_FIELD: Final = re.compile(
    rf'("[^"\\]{{0,60}}(?:{"|".join(_SECRET_WORDS)})"\s*:\s*)"(?:[^"\\]|\\.)*"', re.IGNORECASE
)


@dataclass(frozen=True)
class HookRequest:
    """One request.

    Attributes:
        headers: by their names in lower case.
        body: the bytes that came.
    """

    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    def header(self, name: str) -> str:
        """A header's value, or the empty string."""
        return self.headers.get(name, "")

    def json(self) -> dict[str, Any]:
        """The body as JSON; nobody changes it.

        Raises:
            Refused: it is no JSON object.
        """
        return self._parsed

    @cached_property
    def _parsed(self) -> dict[str, Any]:
        return parse_json(self.body)

    def without_secrets(self, secrets: Iterable[str]) -> HookRequest:
        """What may be kept of the request to read it again: no secret, no signature."""
        body = self.body.decode("utf-8", errors="replace")
        for secret in secrets:
            for form in _forms(secret):
                body = body.replace(form, "***")
        folded = body.casefold()
        if any(word in folded for word in _SECRET_WORDS):  # the pattern takes ten times as long to find none
            body = _SECRET_FIELD.sub(r'\1"***"', body)
        headers = {name: value for name, value in self.headers.items() if name in _KEPT or name.startswith("ce-")}
        return HookRequest(headers, body.encode())

    def to_text(self) -> str:
        """One that may be kept, as it is kept."""
        return json.dumps({"headers": self.headers, "body": self.body.decode()}, ensure_ascii=False)

    @classmethod
    def from_text(cls, text: str) -> HookRequest:
        """The inverse of `to_text`."""
        kept = json.loads(text)
        return cls(kept["headers"], kept["body"].encode())


@cache
def _forms(secret: str) -> frozenset[str]:
    """How a secret may be written in JSON."""
    return frozenset({secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]})


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`.

    Raises:
        Refused: it is none.
    """
    try:
        return load_object(body)
    except StrictJsonError as error:
        raise malformed(str(error)) from error
