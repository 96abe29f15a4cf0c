"""Names: namespaces, adapters, versions and aliases, and the strings they are written as.

    adapter      support-bot            team.support-bot            (namespace `default` is left out)
    served name  support-bot.v3         team.support-bot.v3         what an engine gets; always the same bytes
    alias        support-bot@stable     team.support-bot@stable     movable, resolved outside the engine

A namespace and a name hold no '.' and no '@', and no name is `v` + digits, so every string parses back one way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from lora_registry.errors import InvalidName

DEFAULT_NAMESPACE: Final = "default"

RESERVED: Final = frozenset({"text", "image", "audio", "video", "input", "file", "refusal", "thinking", "base", "all"})
"""Words that are no adapter's name.

vLLM applies a loaded adapter whose name equals the prefix of a chat content-part type to requests for the base
model, whether anyone asked for it or not. Source: vLLM 0.33.0, vllm/entrypoints/serve/engine/serving.py:144-207.
"""

_WORD = re.compile(r"[a-z0-9][a-z0-9_-]{0,95}", re.ASCII)
_VERSION_WORD = re.compile(r"v[0-9]{1,95}", re.ASCII)  # no word is longer
_BASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*", re.ASCII)
_BASE_LENGTH: Final = 200


@dataclass(frozen=True, order=True)
class AdapterName:
    """An adapter: a name in a namespace.

    Raises:
        InvalidName: either part is not a legal word, or is a reserved one.
    """

    namespace: str
    name: str

    def __post_init__(self) -> None:
        check_word(self.namespace, what="namespace")
        check_word(self.name, what="name")

    def __str__(self) -> str:
        return self.name if self.namespace == DEFAULT_NAMESPACE else self.qualified

    @property
    def qualified(self) -> str:
        """`namespace.name`, with the default namespace spelled out: how Redis keys and fields name it."""
        return f"{self.namespace}.{self.name}"

    def served_name(self, version: int) -> str:
        """What an engine calls this version; it never means other bytes."""
        return f"{self}.v{version}"


@dataclass(frozen=True)
class Reference:
    """What a user typed: an adapter, one version of it, or one of its aliases."""

    adapter: AdapterName
    version: int | None = None
    alias: str | None = None


def check_word(word: str, *, what: str = "name") -> str:
    """Return `word` if it is a legal namespace, adapter name or alias.

    Raises:
        InvalidName: it is not; the message says which rule it breaks.
    """
    if not _WORD.fullmatch(word):
        raise InvalidName(
            f"{what} {word[:100]!r} is not legal: it takes a-z, 0-9, '_' and '-', starts with a letter or digit, "
            "and has at most 96 characters"
        )
    if word in RESERVED:
        raise InvalidName(f"{what} {word!r} is a reserved word: engines give it a meaning of their own")
    if _VERSION_WORD.fullmatch(word):
        raise InvalidName(f"{what} {word!r} reads like a version number")
    return word


def check_base_name(base: str) -> str:
    """Return `base` if it is a legal base-model name such as `meta-llama/Llama-3.1-8B`.

    Raises:
        InvalidName: it is not.
    """
    if len(base) > _BASE_LENGTH or not _BASE.fullmatch(base):
        raise InvalidName(
            f"base model name {base[:100]!r} is not legal: letters, digits, '.', '_', '-' and '/' are",
            remedy="Use a name like meta-llama/Llama-3.1-8B, at most 200 characters.",
        )
    return base


def parse_adapter(text: str, *, namespace: str = DEFAULT_NAMESPACE) -> AdapterName:
    """Parse `name` or `namespace.name`; `namespace` is the one for a bare name.

    Raises:
        InvalidName: the text is neither.
    """
    if "@" in text or _VERSION_WORD.fullmatch(text.partition(".")[2].rpartition(".")[2]):
        raise InvalidName(
            f"{text[:100]!r} is {'an alias' if '@' in text else 'a version'}, where an adapter is meant",
            remedy="Give the adapter's name alone: NAME, or NAMESPACE.NAME.",
        )
    head, dot, tail = text.partition(".")
    return AdapterName(head, tail) if dot else AdapterName(namespace, head)


def parse_reference(text: str, *, namespace: str = DEFAULT_NAMESPACE) -> Reference:
    """Parse an adapter, `….vN` or `…@alias`.

    Raises:
        InvalidName: the text is none of them.
    """
    name, at, alias = text.partition("@")
    if at:
        return Reference(parse_adapter(name, namespace=namespace), alias=check_word(alias, what="alias"))
    head, dot, tail = name.rpartition(".")
    if dot and _VERSION_WORD.fullmatch(tail):
        return Reference(parse_adapter(head, namespace=namespace), version=int(tail[1:]))
    return Reference(parse_adapter(name, namespace=namespace))
