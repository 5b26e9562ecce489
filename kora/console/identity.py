"""One colour and marker for a strategy, the same in every picture and page.

Known strategies have fixed ones. Any other name gets one by its hash, or the next free one if the
same picture has that colour already. Neither depends on the order of the names, so a change in the
ranking changes no colour.

Colours are those of Okabe and Ito (2008), moved until any two differ by more than 20 in CIELAB for
full colour vision, protanopia and deuteranopia. Each has a marker and a dash, so that no meaning
depends on colour alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["DARK", "LIGHT", "MARKERS", "Look", "looks"]

#: By number, on white and on a dark background.
LIGHT = (
    "#005fa2", "#e48704", "#00ae68", "#c78bb3", "#6c4505", "#4da3ff", "#1b1d21", "#3a0a8a",
)  # fmt: skip
DARK = (
    "#0d6eff", "#f3a444", "#018c4b", "#c5789d", "#e3ce9c", "#7bd0fc", "#f2f2f2", "#8569c0",
)  # fmt: skip
MARKERS = "osD^vPX"  # as matplotlib names them
_DASHES = (
    "-",
    (0, (3.5, 2)),
    (0, (1, 1.5)),
    (0, (4.5, 1.5, 1, 1.5)),
    (0, (2.5, 1)),
    (0, (0.5, 1)),
    (0, (6, 2)),
)  # as matplotlib takes them, by marker
_BLUE, _ORANGE, _GREEN, _PINK, _BROWN, _SKY, _INK, _VIOLET = range(8)


@dataclass(frozen=True)
class Look:
    """Colour and marker, as indices into `LIGHT` or `DARK` and into `MARKERS`."""

    colour: int
    marker: int

    @property
    def hex(self) -> str:
        """The colour on white."""
        return LIGHT[self.colour]

    @property
    def sign(self) -> str:
        """The marker, as matplotlib names it."""
        return MARKERS[self.marker]

    @property
    def style(self) -> dict[str, Any]:
        """Colour, marker and dash of a line, as arguments of matplotlib."""
        dash = _DASHES[self.marker]
        return {"color": self.hex, "marker": self.sign, "markersize": 7, "linestyle": dash}


_CIRCLE, _SQUARE, _DIAMOND, _UP, _DOWN, _PLUS, _CROSS = range(7)
_KNOWN = {
    "LinearProbe": Look(_INK, _CIRCLE),
    "MultiLayerProbe": Look(_BROWN, _SQUARE),
    "MultiLayerProbe-block": Look(_GREEN, _CIRCLE),
    "LoRA": Look(_ORANGE, _UP),
    "LoRA-layers": Look(_VIOLET, _UP),
    "KoRA": Look(_BLUE, _DIAMOND),
    "KoRA-side": Look(_SKY, _DIAMOND),
    "KoRA-refined": Look(_SKY, _SQUARE),
    "KoRA-refined-injected": Look(_BLUE, _SQUARE),
    "KoRA-over-LoRA": Look(_BLUE, _CIRCLE),
    "BitFit": Look(_PINK, _DOWN),
    "Adapter+": Look(_GREEN, _PLUS),
    "Bottleneck": Look(_GREEN, _SQUARE),
    "AdapterFusion": Look(_VIOLET, _SQUARE),
    "LowRankFusion": Look(_VIOLET, _DOWN),
    "DoRA": Look(_PINK, _UP),
    "VPT": Look(_GREEN, _CROSS),
    "SSF": Look(_BROWN, _DOWN),
    "FullFineTune": Look(_INK, _CROSS),
}


def looks(names: Iterable[str]) -> dict[str, Look]:
    """The look of each name in a picture; no two are alike as long as there are enough looks."""
    wanted = dict.fromkeys(names)
    found = {name: _KNOWN[name] for name in wanted if name in _KNOWN}
    for name in sorted(set(wanted) - set(found)):
        found[name] = _free(name, set(found.values()))
    return {name: found[name] for name in wanted}


def _free(name: str, taken: set[Look]) -> Look:
    """The look by hash, or else the next with a free colour, or else the next free look."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    total = len(LIGHT) * len(MARKERS)
    # A step without common factors with the total visits every look once, colours in turn.
    order = [(number + 9 * k) % total for k in range(total)]
    candidates = [Look(at % len(LIGHT), at // len(LIGHT)) for at in order]
    colours = {look.colour for look in taken}
    for look in candidates:
        if look.colour not in colours and look not in taken:
            return look
    return next((look for look in candidates if look not in taken), candidates[0])
