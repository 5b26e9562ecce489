"""What is in an SVG that a page shows."""

from __future__ import annotations

from xml.etree import ElementTree

__all__ = ["by_hover", "marks"]


def by_hover(svg: str) -> dict[str, list[ElementTree.Element]]:
    """The groups that have a title, by its text."""
    found: dict[str, list[ElementTree.Element]] = {}
    for group in ElementTree.fromstring(svg).iter("g"):
        if (title := group.findtext("title")) is not None:
            found.setdefault(title, []).append(group)
    return found


def marks(groups: list[ElementTree.Element]) -> list[tuple[float, float]]:
    """Where the marks of these groups stand; y grows downwards."""
    return [
        (float(use.get("x", "")), float(use.get("y", "")))
        for group in groups
        for use in group.iter("use")
    ]
