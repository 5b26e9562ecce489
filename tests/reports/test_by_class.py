"""Claims about the scores of each class: what has none is left out."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from kora.reports.by_class import class_bars, write_classes

NAMES = [f"class {k}" for k in range(10)]


def scores(known: int) -> np.ndarray:
    return np.where(np.arange(10) < known, 0.5, np.nan)


def test_a_class_without_a_score_has_no_bar(tmp_path: Path) -> None:
    heights = []
    for known in (2, 9):
        path = tmp_path / f"{known}.png"
        class_bars(scores(known), NAMES, ["a note"] * 10, path, score="IoU")
        with Image.open(path) as picture:
            heights.append(picture.height)
    assert heights[0] < heights[1]


def test_a_class_without_a_score_has_an_empty_cell(tmp_path: Path) -> None:
    heads = ("class", "ap", "boxes")
    path = write_classes(tmp_path / "ap.csv", heads, NAMES, scores(1), range(10))
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    assert [(row["class"], row["ap"], row["boxes"]) for row in rows[:2]] == [
        ("class 0", "0.500000", "0"), ("class 1", "", "1"),
    ]  # fmt: skip


def test_a_name_is_no_formula(tmp_path: Path) -> None:
    path = write_classes(tmp_path / "ap.csv", ("class", "ap", "n"), ["=1+1"], scores(1)[:1], [0])
    assert "'=1+1," in path.read_text(encoding="utf-8")
