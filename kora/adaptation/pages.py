"""What the pages of `kora adapt` have in common: their name, and how they hold pictures."""

from __future__ import annotations

import base64
from pathlib import Path

__all__ = ["PAGE", "inline_png"]

PAGE = "index.html"


def inline_png(path: Path) -> str:
    """A picture as the address of an image in a page; empty if there is no such file."""
    if not path.is_file():
        return ""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
