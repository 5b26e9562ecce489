"""A picture of a table shows what the table says."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.cli import REPOSITORY

DOCS = REPOSITORY / "docs"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "table_picture.py"))


def test_all_rows_of_the_first_table_are_read(script: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    head = "# Which?\n\n| strategy | seeds | mean | 95 % interval |\n| :-- | --: | --: | --: |\n"
    rows = "| LoRA | 5 | 52.95 % | ± 2.62 |\n| Adapter+ | 3 | 5.58 % | ± 3.28 |\n"
    page.write_text(head + rows + "\n" + head + "| KoRA | 5 | 1.00 % | ± 1.00 |\n")
    found = script["read"](page)
    assert found == [("LoRA", 52.95, 2.62, 5), ("Adapter+", 5.58, 3.28, 3)]
    drawn = script["draw"](found, "Which?", tmp_path / "drawn.png")
    with Image.open(drawn) as picture:
        assert picture.info["Description"] == script["describe"](found)


def test_the_picture_of_the_scenes_is_of_the_table_beside_it(script: dict[str, Any]) -> None:
    found = script["read"](DOCS / "results/scenes.md")
    assert len(found) == 8
    with Image.open(DOCS / "images/scenes.png") as picture:
        assert picture.info["Description"] == script["describe"](found)
