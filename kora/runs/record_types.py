"""Types of what a record of JSON holds, looked at when it is read.

Rules are names of kinds, each with the places of the record that must be of it: dotted names, where
`*` is every entry of a table or list, several with spaces between. What a record does not have is
of any kind.
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
    """Nothing that KoRA measures is larger, and sums of squares stay within float64."""
    if not isinstance(value, types) or isinstance(value, bool):
        return False
    return not 1e100 <= abs(value) < math.inf


def check_types(
    record: Mapping[str, Any], rules: Mapping[str, str], or_none: Mapping[str, str]
) -> None:
    """Compare a record with its rules, tables before what they hold.

    `rules` are of what must not be null, `or_none` of what may be.

    Raises:
        ValueError: Names the first place of another kind.
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
    """Dotted names and values at a place; none where there is nothing."""
    pairs = within.items() if isinstance(within, dict) else enumerate(within or ())
    for key, value in pairs:
        if keys[0] not in ("*", key):
            continue
        if len(keys) == 1:
            yield str(key), value
        else:
            yield from ((f"{key}.{name}", below) for name, below in _entries(value, keys[1:]))
