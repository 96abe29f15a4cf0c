"""Tokenizers, as far as they matter beside an adapter: which token has which id.

Engines tokenise with the base model's tokenizer whatever the adapter brings; so an adapter that was trained with other
ids gets other tokens than it knows. Maps are compared, not files: the same map can be written in many ways.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_registry import fit_codes
from lora_registry.base_profile import BaseProfile
from lora_registry.findings import Finding
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
_SHOWN = 5


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

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.ids.values(), default=-1) + 1

    @property
    def digest(self) -> str:
        """Digest over all pairs of id and token."""
        return self.digest_below(self.size)

    def digest_below(self, size: int) -> str:
        """Digest over the pairs whose id is less than `size`: that of a smaller tokenizer if this one extends it."""
        digest = hashlib.sha256()
        for number, token in sorted((number, token) for token, number in self.ids.items() if number < size):
            digest.update(json.dumps([number, token]).encode("ascii"))
        return digest.hexdigest()


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


def check_tokenizer(
    adapter: TokenizerMap, base: BaseProfile, base_map: TokenizerMap | None = None
) -> Iterator[Finding]:
    """Compare an adapter's tokenizer with that of its base model.

    Args:
        adapter: the adapter's.
        base: the base's profile; with its digest alone it is only told whether the maps differ.
        base_map: the base's own map, where it is at hand.
    """
    for name, reason in adapter.problems:
        yield fit_codes.TOKENIZER_UNREADABLE.finding(name, reason)
    beyond = sorted((number, token) for token, number in adapter.ids.items() if number >= base.embedding_rows)
    if beyond:
        yield fit_codes.TOKEN_ID_OUT_OF_RANGE.finding(
            _named(beyond),
            expected=f"ids below {base.embedding_rows}",
            actual=f"{len(beyond)} ids, up to {beyond[-1][0]}",
        )
    size = base_map.size if base_map is not None else base.tokenizer_size
    if base_map is not None:
        yield from _compare(adapter, base_map)
    elif base.tokenizer_digest and adapter.digest_below(size) != base.tokenizer_digest:
        yield fit_codes.TOKENIZER_DIFFERS.finding(expected=base.tokenizer_digest[:12], actual=adapter.digest[:12])
    added = sorted((number, token) for token, number in adapter.ids.items() if size <= number < base.embedding_rows)
    if added and size:
        yield fit_codes.TOKENS_ADDED.finding(_named(added), actual=f"{len(added)} tokens")


def _compare(adapter: TokenizerMap, base: TokenizerMap) -> Iterator[Finding]:
    changed = sorted((number, token) for token, number in adapter.ids.items() if base.ids.get(token, number) != number)
    if changed:
        number, token = changed[0]
        yield fit_codes.TOKEN_ID_CHANGED.finding(
            _named(changed), expected=f"{token[:40]!r} is {base.ids[token]}", actual=f"{number}; {len(changed)} in all"
        )
    taken = {number for token, number in base.ids.items() if token not in adapter.ids}
    renamed = sorted(
        (number, token) for token, number in adapter.ids.items() if number in taken and token not in base.ids
    )
    if renamed:
        yield fit_codes.TOKENS_RENAMED.finding(_named(renamed), actual=f"{len(renamed)} tokens")
    for part, token in adapter.special.items():
        if part in base.special and base.special[part] != token:
            yield fit_codes.SPECIAL_TOKEN_DIFFERS.finding(part, expected=base.special[part][:60], actual=token[:60])
    if adapter.chat_template and adapter.chat_template != base.chat_template:
        yield fit_codes.CHAT_TEMPLATE_DIFFERS.finding("chat_template")


def _named(tokens: list[tuple[int, str]]) -> str:
    shown = ", ".join(repr(token[:40]) for _, token in tokens[:_SHOWN])
    return shown + (", …" if len(tokens) > _SHOWN else "")


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
