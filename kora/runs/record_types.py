"""Check the types in a JSON record when it is read.

A rule is the name of a type, with the places of the record that must have it: dotted names with
spaces between, where `*` is every entry of a table or list. Places that are missing are accepted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["check_types"]

_KINDS: dict[str, Callable[[Any], bool]] = {
    "a text": lambda value: isinstance(value, str),
    "a table of values": lambda value: isinstance(value, dict),
    "a list": lambda value: isinstance(value, list),
    "a number below 1e100": lambda value: _is_number(value, int | float),
    "a whole number below 1e100": lambda value: _is_number(value, int),
    "true or false": lambda value: isinstance(value, bool),
}


def _is_number(value: Any, types: Any) -> bool:
    """KoRA measures nothing above 1e100, and sums of squares stay within float64."""
    if not isinstance(value, types) or isinstance(value, bool):
        return False
    return not 1e100 <= abs(value) < math.inf


def check_types(
    record: Mapping[str, Any], rules: Mapping[str, str], or_none: Mapping[str, str]
) -> None:
    """Compare a record with its rules, tables before their entries.

    `rules` are for values that must not be null, `or_none` for values that may be.

    Raises:
        ValueError: A value has another type; names the first one.
    """
    found = [
        (place.count("."), place, kind, empty)
        for given, empty in ((rules, False), (or_none, True))
        for kind, places in given.items()
        for place in places.split()
    ]
    for _, place, kind, empty in sorted(found):
        for name, value in _entries(record, place.split(".")):
            if not (_KINDS[kind](value) or (empty and value is None)):
                text = repr(value)
                text = text if len(text) <= 80 else f"{text[:77]}..."
                raise ValueError(f"{name} is {text}; expected {kind}.")


def _entries(within: Any, keys: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Dotted names and values at a place; empty if there are none."""
    pairs = within.items() if isinstance(within, dict) else enumerate(within or ())
    for key, value in pairs:
        if keys[0] not in ("*", key):
            continue
        if len(keys) == 1:
            yield str(key), value
        else:
            yield from ((f"{key}.{name}", below) for name, below in _entries(value, keys[1:]))
