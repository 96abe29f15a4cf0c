"""An adapter's tokenizer beside that of its base model.

Engines tokenise with the base model's tokenizer whatever the adapter brings; so an adapter that was trained with other
ids gets other tokens than it knows.
"""

from __future__ import annotations

from collections.abc import Iterator

from lora_registry import fit_codes
from lora_registry.base_profile import BaseProfile
from lora_registry.findings import Finding
from lora_registry.tokenizer_maps import TokenizerMap

_SHOWN = 5


def check_tokenizer(adapter: TokenizerMap, base: BaseProfile) -> Iterator[Finding]:
    """Compare an adapter's tokenizer with that of its base model.

    Args:
        adapter: the adapter's.
        base: the base's profile; without its tokenizer's map it is only told whether the two differ.
    """
    base_map = base.tokenizer
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
    elif adapter.ids and base.tokenizer_digest and adapter.digest_below(size) != base.tokenizer_digest:
        yield fit_codes.TOKENIZER_DIFFERS.finding(expected=base.tokenizer_digest[:12], actual=adapter.digest[:12])
    added = sorted((number, token) for token, number in adapter.ids.items() if size <= number < base.embedding_rows)
    if added and size:
        yield fit_codes.TOKENS_ADDED.finding(_named(added), actual=f"{len(added)} tokens")


def _compare(adapter: TokenizerMap, base: TokenizerMap) -> Iterator[Finding]:
    if adapter.ids != base.ids:
        yield from _compare_ids(adapter, base)
    for part, token in adapter.special.items():
        if part in base.special and base.special[part] != token:
            yield fit_codes.SPECIAL_TOKEN_DIFFERS.finding(part, expected=base.special[part][:60], actual=token[:60])
    if adapter.chat_template and adapter.chat_template != base.chat_template:
        yield fit_codes.CHAT_TEMPLATE_DIFFERS.finding("chat_template")


def _compare_ids(adapter: TokenizerMap, base: TokenizerMap) -> Iterator[Finding]:
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


def _named(tokens: list[tuple[int, str]]) -> str:
    shown = ", ".join(repr(token[:40]) for _, token in tokens[:_SHOWN])
    return shown + (", …" if len(tokens) > _SHOWN else "")
