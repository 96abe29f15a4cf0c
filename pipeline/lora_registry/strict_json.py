"""JSON as it should have been:

one object, no key twice, no number that is none, no way to exhaust the reader.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

MAX_INTEGER_DIGITS = 20
"""Digits of the largest integer read; 2⁶⁴ has twenty, and Python needs quadratic time for long ones."""


class StrictJsonError(ValueError):
    """The text is not one strict JSON object."""


def load_object(raw: bytes, *, integers: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """Read one JSON object.

    Stricter than `json.loads`: UTF-8 without a byte-order mark, no key twice in any object, no NaN or
    infinity (spelled out or by overflow), integers of at most `MAX_INTEGER_DIGITS` digits, no lone
    surrogates.

    Args:
        raw: the whole text.
        integers: reads an integer's text instead of the default; it may raise StrictJsonError.

    Raises:
        StrictJsonError: with one sentence on what is wrong; nothing else, whatever the bytes are.
    """
    try:
        text = raw.decode("utf-8")
        loaded = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=integers or _integer,
        )
        if "\\ud" in text or "\\uD" in text:
            _refuse_lone_surrogates(loaded)
    except StrictJsonError:
        raise
    except RecursionError:
        raise StrictJsonError("The JSON is nested too deeply.") from None
    except UnicodeDecodeError as exc:
        raise StrictJsonError(f"The text is not UTF-8 (byte {exc.start}).") from exc
    except ValueError as exc:
        raise StrictJsonError(f"The text is not JSON: {str(exc)[:200]}") from exc
    if type(loaded) is not dict:
        raise StrictJsonError("The JSON is not an object.")
    return loaded


def dump_compact(value: object) -> bytes:
    """Deterministic, compact ASCII JSON with a final newline; the order of keys is kept.

    Integers keep every digit, and floats are written with the shortest digits that read back as the same
    double.
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise StrictJsonError(f"The key {twice[:100]!r} occurs twice in one object.")
    return found


def _integer(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise StrictJsonError(f"An integer has more than {MAX_INTEGER_DIGITS} digits.")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise StrictJsonError(f"The number {text[:40]} is too large.")
    return number


def _refuse_constant(text: str) -> float:
    raise StrictJsonError(f"{text} is not a JSON number.")


def _refuse_lone_surrogates(loaded: object) -> None:
    try:
        json.dumps(loaded, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise StrictJsonError("A text holds half of a surrogate pair.") from None
