"""A matplotlib figure as SVG inside a page, in the colours of the page's style sheet.

Text stays text, and nothing is loaded from outside. Matplotlib escapes what comes from a user.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from kora.console.identity import LIGHT
from kora.reports.canvas import GREY

__all__ = ["hover", "inline_svg"]

_HOVER = "hover: "
_INK, _GROUND, _GRID = "#000000", "#ffffff", "#b0b0b0"  # matplotlib's defaults
#: Variables that the style sheet sets for light and for dark screens.
_COLOURS = {colour: f"var(--c{number})" for number, colour in enumerate(LIGHT)} | {
    _INK: "var(--ink)", _GROUND: "var(--raised)", _GRID: "var(--faint)", GREY: "var(--faint)",
}  # fmt: skip
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def hover(artists: Iterable[Artist], words: str) -> None:
    """Show these words when the pointer rests on one of the artists; a PNG ignores them."""
    for artist in artists:
        artist.set_gid(_HOVER + words)


def inline_svg(figure: Figure, *, title: str, name: str) -> str:
    """An `svg` element without a size of its own: the page sets it.

    `title` describes a chart to a screen reader; leave it empty for decoration. The ids in the
    element derive from `name`.
    """
    written = io.StringIO()
    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.sans-serif": ["DejaVu Sans"],
    }  # fmt: skip
    none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context(settings):
        figure.savefig(written, format="svg", transparent=True, metadata=none)
    root = ElementTree.fromstring(_NOT_IN_XML.sub("\ufffd", written.getvalue()))
    for element in root.iter():
        _plain(element)
    root.attrib = {"id": name, "viewBox": root.attrib["viewBox"]}
    if title:
        root.attrib |= {"class": "chart", "role": "img"}
        _entitle(root, title)
    return ElementTree.tostring(root, encoding="unicode")


def _plain(element: ElementTree.Element) -> None:
    """Remove what the page does not need, and set the page's colours."""
    for style in element.findall("{*}style"):  # it would apply to the whole page
        element.remove(style)
    element.tag, element.tail = element.tag.rpartition("}")[2], None  # HTML knows the namespaces
    element.text = element.text if (element.text or "").strip() else None
    words = element.attrib.pop("id", "") if element.tag == "g" else ""  # nothing refers to a group
    element.attrib = {key.rpartition("}")[2]: _short(value) for key, value in element.items()}
    if words.startswith(_HOVER):
        _entitle(element, words.removeprefix(_HOVER))


def _short(value: str) -> str:
    value = re.sub("#[0-9a-f]{6}", lambda found: _COLOURS.get(found[0], found[0]), value)
    return re.sub(r"(\.\d\d)\d+", r"\1", " ".join(value.split()))


def _entitle(element: ElementTree.Element, words: str) -> None:
    title = ElementTree.Element("title")
    title.text = words
    element.insert(0, title)
