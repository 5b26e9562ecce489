"""What is in a picture file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from kora.reports import canvas

__all__ = ["colours", "size"]


def colours(path: Path) -> dict[str, int]:
    """Pixels of each named colour of the module in a picture."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    names = ("BLUE", "GREEN", "RED", "ORANGE", "LEVEL")
    found = {}
    for name in names:
        value = getattr(canvas, name).lstrip("#")
        rgb = [int(value[k : k + 2], 16) for k in (0, 2, 4)]
        found[name] = int((pixels == rgb).all(axis=1).sum())
    return found


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size
