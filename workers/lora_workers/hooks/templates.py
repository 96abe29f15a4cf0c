"""Templates such as `{repo_name}`: how a rule makes names, labels and sources of what a delivery says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import StringConstraints

Glob = Annotated[str, StringConstraints(min_length=1, max_length=500)]
"""A pattern with `*`, `?` and `[…]`, in which `*` also stands for slashes; case counts."""
_PLACEHOLDER = re.compile(r"\{([a-z_]+(?:\.[A-Za-z0-9_.-]+)?)\}")


def render(template: str, names: Mapping[str, str]) -> str:
    """The template with every placeholder replaced; one that `names` lacks becomes empty."""
    return _PLACEHOLDER.sub(lambda found: names.get(found[1], ""), template)


def unknown_placeholders(template: str, known: Iterable[str]) -> list[str]:
    """Placeholders that no delivery fills; of `tag.` any name is known if `tag.` is."""
    known = set(known)
    found = _PLACEHOLDER.findall(template)
    unknown = [each for each in found if each not in known and f"{each.partition('.')[0]}." not in known]
    return unknown + re.findall(r"\{[^}]*\}?", _PLACEHOLDER.sub("", template))


def adapter_name(text: str) -> str:
    """The nearest legal adapter name; it may still be reserved, or empty."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower())[:96].strip("-_")


def matches(text: str, globs: Iterable[str]) -> bool:
    """Whether one of the patterns fits the whole text."""
    return any(fnmatchcase(text, glob) for glob in globs)
