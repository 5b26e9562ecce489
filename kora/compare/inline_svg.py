"""A figure of matplotlib inside of a page, in the colours of the page's style sheet.

Texts stay texts, and nothing is named from outside. Matplotlib escapes what comes from a user.
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
_INK, _GROUND, _GRID = "#000000", "#ffffff", "#b0b0b0"  # as matplotlib has them
#: What the style sheet has for a light and for a dark screen.
_COLOURS = {colour: f"var(--c{number})" for number, colour in enumerate(LIGHT)} | {
    _INK: "var(--ink)", _GROUND: "var(--raised)", _GRID: "var(--faint)", GREY: "var(--faint)",
}  # fmt: skip
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def hover(artists: Iterable[Artist], words: str) -> None:
    """Show these words where the pointer rests on one of the artists; in a PNG nothing does."""
    for artist in artists:
        artist.set_gid(_HOVER + words)


def inline_svg(figure: Figure, *, title: str, name: str) -> str:
    """An `svg` element, which is as large as the page lets it be.

    `title` is for who cannot see a chart; what has none is no chart, and says nothing. The ids in
    it follow from `name`.
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
    """Leave out what the page has no use for, and put its colours in."""
    for style in element.findall("{*}style"):  # it would be that of the whole page
        element.remove(style)
    element.tag, element.tail = element.tag.rpartition("}")[2], None  # HTML knows the namespaces
    element.text = element.text if (element.text or "").strip() else None
    words = element.attrib.pop("id", "") if element.tag == "g" else ""  # no one refers to a group
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
