"""How the names in adapter_config.json select modules, without running a regular expression that an adapter brings in
an engine that may backtrack.

PEFT reads a list of target modules as literal endings, and the keys of rank_pattern and alpha_pattern as regular
expressions for the end of a module's name. Expressions that are a literal name are read here; others are given to a
matcher with linear running time, where one is at hand, and refused otherwise.

Source: `check_target_module_exists` in peft/tuners/tuners_utils.py and `get_pattern_key` in peft/utils/other.py
    (PEFT 0.21.2).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

Value = TypeVar("Value")
Matcher = Callable[[str], bool]
"""Whether a whole text matches."""
CompilePattern = Callable[[str], Matcher]
"""Makes a matcher whose running time is linear in the text. Raises ValueError if it does not know the syntax."""

MAX_PATTERN_SHAPES = 256
"""Distinct pairs of length and places of dots in one table of patterns; they bound the time per module."""
MAX_EXPRESSIONS = 64
"""Regular expressions in one table of patterns; each is tried on every module."""
MAX_EXPRESSION_LENGTH = 4096
MAX_LOOK_AHEADS = 8
"""Look-aheads in one expression; each is a matcher of its own."""
MAX_REPEATS = 6
"""Repetitions in target_modules or exclude_modules, which PEFT runs with backtracking: each may cost it a factor of
the name's length."""
MAX_TABLE_REPEATS = 2
"""As above, in a key of rank_pattern or alpha_pattern, which serving engines run too."""

_LITERAL = re.compile(r"(\^?|\.\*\\\.|\.\*)((?:[A-Za-z0-9_\-.]|\\[._\-])+)\$?")
_REPEATED_GROUP = re.compile(r"\)[+*{]")
_REPEAT = re.compile(r"[*+{]")
# What means the same to Python's re and to RE2 on ASCII names. Tokens are atomic, so that this is itself linear.
_SYNTAX = re.compile(
    r"(?>[A-Za-z0-9_\-/]|\\[dwsDWSbB._\-/]|[.^$|)]|\((?:\?:)?|\[\^?(?:[A-Za-z0-9_.\-]|\\[dws._\-])++\]"
    r"|[*+?]\??|\{\d{1,3}(?:,\d{0,3})?\}\??)*+"
)
_NOT_AHEAD = "(?!"
_ATOM = re.compile(r"\\.|\[\^?\]?[^\]]*\]|.", re.DOTALL)
"""One sign, an escaped one, or a class of signs."""
_ANY = "."
_DOT = "\0"
_WHOLE, _ENDING, _PROPER, _LOOSE = "^", "", ".*\\.", ".*"


class PatternNotLiteral(ValueError):
    """The pattern is not a literal module name."""


def is_literal(pattern: str) -> bool:
    """Whether a pattern is a literal name or a literal ending of one, and so can be read here."""
    return _LITERAL.fullmatch(pattern) is not None


def is_literal_name(name: str) -> bool:
    """Whether a name that PEFT puts into a regular expression as it is stands for itself only."""
    return re.fullmatch(r"[A-Za-z0-9_\-.]+", name) is not None


def is_hazardous(pattern: str, *, repeats: int = MAX_REPEATS) -> bool:
    """Whether backtracking may take exponential or very long time: a repeated group, or more than so many repeats."""
    return _REPEATED_GROUP.search(pattern) is not None or len(_REPEAT.findall(pattern)) > repeats


def compile_expression(pattern: str, compile_pattern: CompilePattern | None) -> Matcher:
    """A matcher for a regular expression.

    A negative look-ahead at its very beginning, which engines with linear running time do not know, is a matcher of its
    own for the texts that must not match.

    Raises:
        PatternNotLiteral: none is at hand, or the syntax is not one that all engines read in the same way.
    """
    if compile_pattern is None:
        raise PatternNotLiteral("The pattern is a regular expression, and no linear-time matcher is installed.")
    if pattern.count(_NOT_AHEAD) > MAX_LOOK_AHEADS:
        raise PatternNotLiteral("The regular expression has too many look-aheads.")
    if pattern.removeprefix("^").startswith(_NOT_AHEAD):
        unwanted, rest = _without_look_ahead(pattern)
        is_unwanted = compile_expression(f"(?:{unwanted}).*", compile_pattern)
        matches = compile_expression(rest, compile_pattern)
        return lambda text: not is_unwanted(text) and matches(text)
    if len(pattern) > MAX_EXPRESSION_LENGTH or _SYNTAX.fullmatch(pattern) is None:
        raise PatternNotLiteral("The regular expression has a syntax that not all engines read in the same way.")
    try:
        re.compile(pattern)  # only to see whether PEFT can read it; it is never matched
        return compile_pattern(pattern)
    except (ValueError, re.error, RecursionError, OverflowError) as exc:
        raise PatternNotLiteral(f"The regular expression cannot be read: {str(exc)[:100]}") from exc


def _without_look_ahead(pattern: str) -> tuple[str, str]:
    """What must not stand at the beginning, and the rest of the expression.

    Raises:
        PatternNotLiteral: the look-ahead does not count for all of the rest, or does not end.
    """
    begin = pattern.index(_NOT_AHEAD) + len(_NOT_AHEAD)
    depth, end = 1, 0
    for match in _ATOM.finditer(pattern, begin):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if depth == 0 and not end:
            end = match.start()
        elif depth < 0 or (end and depth == 0 and match[0] == "|"):
            break
    else:
        if end:
            return pattern[begin:end], pattern[end + 1 :]
    raise PatternNotLiteral("The look-ahead of the regular expression does not count for all of it.")


def endings(module: str) -> Iterator[str]:
    """The dotted endings of a module's name, shortest first: c, b.c, a.b.c."""
    start = module.rfind(".")
    while start != -1:
        yield module[start + 1 :]
        start = module.rfind(".", 0, start)
    yield module


def ends_with_any(module: str, names: frozenset[str]) -> bool:
    """Whether one of the names is the module's name or a dotted ending of it."""
    # As `endings`, without a generator: this is asked for every module of an adapter.
    start = module.rfind(".")
    while start != -1:
        if module[start + 1 :] in names:
            return True
        start = module.rfind(".", 0, start)
    return module in names


class PatternTable(Generic[Value]):
    """Values by pattern, as in rank_pattern: the first pattern that matches the end of a module's name counts.

    A dot in a literal pattern stands for any one character, as in PEFT; an escaped dot, a leading ^, `.*` or `.*\\.`
    and a final $ are read too.
    """

    def __init__(
        self, values: Mapping[str, Value], *, default: Value, compile_pattern: CompilePattern | None = None
    ) -> None:
        """Take the patterns in their order.

        Raises:
            PatternNotLiteral: a pattern cannot be read, or there are too many.
        """
        self._default = default
        self._values = list(values.values())
        self._by_length: dict[int, dict[tuple[str, tuple[int, ...]], dict[str, int]]] = {}
        self._loose: dict[int, dict[tuple[str, tuple[int, ...]], dict[str, int]]] = {}
        self._expressions: list[tuple[int, Matcher]] = []
        shapes = 0
        for order, pattern in enumerate(values):
            match = _LITERAL.fullmatch(pattern)
            if match is None:
                self._expressions.append((order, compile_expression(rf"(?:.*\.)?(?:{pattern})", compile_pattern)))
            else:
                shapes += self._add(match[1], match[2], order)
        if shapes > MAX_PATTERN_SHAPES or len(self._expressions) > MAX_EXPRESSIONS:
            raise PatternNotLiteral("There are too many different patterns.")

    def _add(self, kind: str, written: str, order: int) -> bool:
        """Add a literal pattern; whether its shape is a new one."""
        text = written.replace("\\.", _DOT).replace("\\", "")
        places = tuple(place for place, sign in enumerate(text) if sign == _ANY)
        by_length = self._loose if kind == _LOOSE else self._by_length
        tables = by_length.setdefault(len(text), {})
        is_new = (kind, places) not in tables
        tables.setdefault((kind, places), {}).setdefault(text.replace(_DOT, "."), order)
        return is_new

    def of(self, module: str) -> Value:
        """The value of the first pattern that matches the module, or the default."""
        if not self._values:
            return self._default
        first = len(self._values)
        for ending in endings(module):
            for (kind, places), table in self._by_length.get(len(ending), {}).items():
                is_whole = len(ending) == len(module)
                if (kind != _WHOLE or is_whole) and (kind != _PROPER or not is_whole):
                    first = min(first, table.get(_masked(ending, places), first))
        for length, tables in self._loose.items():
            for (_, places), table in tables.items():
                if len(module) >= length:
                    first = min(first, table.get(_masked(module[-length:], places), first))
        for order, matches in self._expressions:
            if order < first and matches(module):
                first = order
        return self._values[first] if first < len(self._values) else self._default


def _masked(text: str, places: Iterable[int]) -> str:
    signs = list(text)
    for place in places:
        signs[place] = _ANY
    return "".join(signs)
