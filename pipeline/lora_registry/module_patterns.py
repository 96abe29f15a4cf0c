"""How the names in adapter_config.json select modules, without running a regular expression that an adapter
brings.

PEFT reads a list of target modules as literal endings, and the keys of rank_pattern and alpha_pattern as
regular expressions for the end of a module's name. Only such expressions are read here as are a literal name;
every other is refused. This is the one place that would change if a matcher with linear running time took
over.

Source: `check_target_module_exists` and `get_pattern_key` in peft/tuners/tuners_utils.py and
    peft/utils/other.py (PEFT 0.21.2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

Value = TypeVar("Value")

MAX_PATTERN_SHAPES = 256
"""Distinct pairs of length and places of dots in one table of patterns; they bound the time per module."""

_LITERAL = re.compile(r"(\^?)((?:[A-Za-z0-9_\-.]|\\[._\-])+)\$?")
_REPEATED_GROUP = re.compile(r"\)[+*{]")
_ANY = "."
_DOT = "\0"


class PatternNotLiteral(ValueError):
    """The pattern is not a literal module name."""


def is_literal(pattern: str) -> bool:
    """Whether a pattern is a literal name or a literal ending of one, and so can be read here."""
    return _LITERAL.fullmatch(pattern) is not None


def is_hazardous(pattern: str) -> bool:
    """Whether a regular expression repeats a group, so that backtracking may take exponential time."""
    return _REPEATED_GROUP.search(pattern) is not None


def endings(module: str) -> Iterator[str]:
    """The dotted endings of a module's name, shortest first: c, b.c, a.b.c."""
    start = module.rfind(".")
    while start != -1:
        yield module[start + 1 :]
        start = module.rfind(".", 0, start)
    yield module


def ends_with_any(module: str, names: frozenset[str]) -> bool:
    """Whether one of the names is the module's name or a dotted ending of it."""
    return any(ending in names for ending in endings(module))


class PatternTable(Generic[Value]):
    """Values by pattern, as in rank_pattern: the first pattern that matches the end of a module's name
    counts.

    A dot in a pattern stands for any one character, as in PEFT; an escaped dot, a leading ^ and a final $ are
    read too.
    """

    def __init__(self, values: Mapping[str, Value], *, default: Value) -> None:
        """Take the patterns in their order.

        Raises:
            PatternNotLiteral: a pattern is not literal, or their shapes are too many.
        """
        self._default = default
        self._values = list(values.values())
        self._by_length: dict[int, dict[tuple[bool, tuple[int, ...]], dict[str, int]]] = {}
        shapes = 0
        for order, pattern in enumerate(values):
            anchored, text = _read(pattern)
            places = tuple(place for place, sign in enumerate(text) if sign == _ANY)
            tables = self._by_length.setdefault(len(text), {})
            if (anchored, places) not in tables:
                tables[anchored, places] = {}
                shapes += 1
            tables[anchored, places].setdefault(text.replace(_DOT, "."), order)
        if shapes > MAX_PATTERN_SHAPES:
            raise PatternNotLiteral(f"The patterns have more than {MAX_PATTERN_SHAPES} different shapes.")

    def of(self, module: str) -> Value:
        """The value of the first pattern that matches the module, or the default."""
        if not self._values:
            return self._default
        first = len(self._values)
        for ending in endings(module):
            for (anchored, places), table in self._by_length.get(len(ending), {}).items():
                if anchored and len(ending) != len(module):
                    continue
                first = min(first, table.get(_masked(ending, places), first))
        return self._values[first] if first < len(self._values) else self._default


def _read(pattern: str) -> tuple[bool, str]:
    match = _LITERAL.fullmatch(pattern)
    if match is None:
        raise PatternNotLiteral(f"{pattern[:100]!r} is not a literal module name.")
    text = match[2].replace("\\.", _DOT).replace("\\", "")
    return bool(match[1]), text


def _masked(text: str, places: Iterable[int]) -> str:
    signs = list(text)
    for place in places:
        signs[place] = _ANY
    return "".join(signs)


class TargetNames:
    """The modules that target_modules and its companions (exclusions, layers, their parents) select."""

    def __init__(
        self,
        targets: Iterable[str],
        *,
        excluded: Iterable[str] = (),
        layers: Iterable[int] = (),
        layer_parents: Iterable[str] = (),
    ) -> None:
        self._targets = frozenset(targets)
        self._excluded = frozenset(excluded)
        self._layers = frozenset(layers)
        self._layer_parents = frozenset(layer_parents)

    def __contains__(self, module: str) -> bool:
        if self._excluded and ends_with_any(module, self._excluded):
            return False
        if module in self._targets:
            return True
        return ends_with_any(module, self._targets) and (not self._layers or self._layer(module) in self._layers)

    def _layer(self, module: str) -> int | None:
        """The layer's number as PEFT reads it:

        the last one that follows a fitting parent and is not the end.
        """
        parts = module.split(".")
        for place in range(len(parts) - 2, 1, -1):
            if parts[place].isdecimal() and len(parts[place]) < 10:
                parent = parts[place - 1]
                if not self._layer_parents or parent in self._layer_parents:
                    return int(parts[place])
        return None
