"""Tokenizers, as far as they matter beside an adapter: which token has which id.

The map is what counts, not the files: the same map can be written in many ways.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from lora_registry.strict_json import StrictJsonError, load_object

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "chat_template.jinja",
)
"""The files that are read, where they are there."""

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class TokenizerMap:
    """What a tokenizer maps to what.

    Attributes:
        ids: id by token.
        special: token by its part (bos_token, eos_token, …).
        chat_template: digest of the chat template, "" if there is none.
        problems: files that could not be read, with the reason.
    """

    ids: dict[str, int]
    special: dict[str, str] = field(default_factory=dict)
    chat_template: str = ""
    problems: tuple[tuple[str, str], ...] = ()

    @cached_property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.ids.values(), default=-1) + 1

    @cached_property
    def digest(self) -> str:
        """Digest over all pairs of id and token."""
        return self.digest_below(self.size)

    def digest_below(self, size: int) -> str:
        """Digest over the pairs whose id is less than `size`: that of a smaller tokenizer if this one extends it."""
        digest = hashlib.sha256()
        for number, token in sorted((number, token) for token, number in self.ids.items() if number < size):
            digest.update(json.dumps([number, token]).encode("ascii"))
        return digest.hexdigest()

    @cached_property
    def stored(self) -> str:
        """All of it but the problems as compressed text: for 128,000 tokens less than a megabyte."""
        pairs = sorted((number, token) for token, number in self.ids.items())
        content = {
            "steps": [number - before for (number, _), (before, _) in zip(pairs, [(0, ""), *pairs], strict=False)],
            "tokens": [token for _, token in pairs],
            "special": self.special,
            "chat_template": self.chat_template,
        }
        raw = json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")
        return base64.b64encode(zlib.compress(raw)).decode("ascii")

    @classmethod
    def from_stored(cls, stored: str) -> TokenizerMap:
        """The map that gave this text."""
        content = json.loads(zlib.decompress(base64.b64decode(stored)))
        ids = dict(zip(content["tokens"], accumulate(content["steps"]), strict=True))
        return cls(ids, content["special"], content["chat_template"])


def stored_digest(stored: str) -> str:
    """Digest of a stored map: of everything that is kept of a tokenizer."""
    return hashlib.sha256(stored.encode("ascii")).hexdigest()


def read_tokenizer(files: Mapping[str, bytes]) -> TokenizerMap | None:
    """Read a tokenizer from its files, by name; None if they hold no map.

    Never raises: a file that cannot be read is listed in `problems`.
    """
    loaded: dict[str, dict[str, Any]] = {}
    problems: list[tuple[str, str]] = []
    for name, raw in files.items():
        if name.endswith(".json"):
            try:
                loaded[name] = load_object(raw)
            except StrictJsonError as error:
                problems.append((name, str(error)))
    ids = _base_ids(loaded, files)
    for token, number in _added(loaded):
        ids[token] = number
    if not ids and not problems:
        return None
    config = loaded.get("tokenizer_config.json", {})
    template = files.get("chat_template.jinja") or config.get("chat_template")
    return TokenizerMap(ids, _special(loaded), _digest_of(template), tuple(problems))


def _base_ids(loaded: Mapping[str, dict[str, Any]], files: Mapping[str, bytes]) -> dict[str, int]:
    model = loaded.get("tokenizer.json", {}).get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # Unigram: pairs of piece and score, the id is the place
        return {pair[0]: number for number, pair in enumerate(vocabulary) if _is_pair(pair)}
    if not isinstance(vocabulary, dict):
        vocabulary = loaded.get("vocab.json", {})
    if vocabulary:
        return {token: number for token, number in vocabulary.items() if type(number) is int and number >= 0}
    lines = files.get("vocab.txt", b"").decode("utf-8", errors="replace").split("\n")
    return {token: number for number, token in enumerate(lines) if token}


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)


def _added(loaded: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, int]]:
    for token, number in loaded.get("added_tokens.json", {}).items():
        if type(number) is int and number >= 0:
            yield token, number
    decoder = loaded.get("tokenizer_config.json", {}).get("added_tokens_decoder")
    for written, entry in decoder.items() if isinstance(decoder, dict) else ():
        if written.isdecimal() and len(written) < 10 and isinstance(entry, dict):
            yield from _content(entry, int(written))
    listed = loaded.get("tokenizer.json", {}).get("added_tokens")
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict) and type(entry.get("id")) is int and entry["id"] >= 0:
            yield from _content(entry, entry["id"])


def _content(entry: dict[str, Any], number: int) -> Iterator[tuple[str, int]]:
    content = entry.get("content")
    if isinstance(content, str):
        yield content, number


def _special(loaded: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for part in _SPECIAL:
            value = loaded.get(name, {}).get(part)
            content = value.get("content") if isinstance(value, dict) else value
            if isinstance(content, str):
                found[part] = content
    return found


def _digest_of(template: object) -> str:
    if not template:
        return ""
    raw = template if isinstance(template, bytes) else json.dumps(template, sort_keys=True).encode("ascii")
    if isinstance(template, str):
        raw = template.encode("utf-8", errors="replace")
    return hashlib.sha256(raw.strip()).hexdigest()
