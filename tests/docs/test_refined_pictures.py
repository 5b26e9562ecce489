"""The pictures of the refined KoRA show what the tables of docs/RESULTS.md say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests.cli.support import REPOSITORY

SCRIPT = REPOSITORY / "docs/refined_pictures.py"
RESULTS = (REPOSITORY / "docs/RESULTS.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("refined_pictures", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def page(pictures: ModuleType) -> str:
    """A page with a table of two strategies for each size, LoRA's time 1,000 s."""
    once = "| Once | 8.00 % | ± 0.50 | 9 s |\n"
    tables = [
        f"{start} and so on;\nmore:\n\n"
        "| strategy | mean | 95 % interval | fit |\n"
        "| :-- | --: | --: | --: |\n"
        f"| Form: side | {10 + size}.50 % | ± 1.20 | 20 s |\n"
        "| LoRA | 9.00 % | ± 0.50 | 1,000 s |\n"
        f"{once if size == 20 else ''}\n"
        "A table behind it does not count.\n\n"
        "| strategy |\n| :-- |\n| Other |\n"
        for start, size in pictures.SIZES.items()
    ]
    return "\n\n".join(["# Results", pictures.SECTION, *tables, "## Another section"])


def test_rows_are_those_of_the_first_table_of_each_size(pictures: ModuleType) -> None:
    tables = pictures.read_tables(page(pictures))
    assert list(tables) == [1, 5, 20, 95]
    assert tables[5] == [("side", 0.155, 0.012, 20.0), ("LoRA", 0.09, 0.005, 1000.0)]


def test_both_pictures_show_what_stands_in_several_tables(
    pictures: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[Figure] = []

    def keep(figure: Figure, out: Path, **_: object) -> Path:
        drawn.append(figure)
        return out

    monkeypatch.setattr(pictures, "save", keep)
    paths = pictures.draw(pictures.read_tables(page(pictures)), tmp_path)
    assert [path.name for path in paths] == [
        "refined_against_images.png",
        "refined_against_time.png",
    ]
    found = [
        {
            str(one.get_label()): one.lines[0].get_xydata().tolist()
            for one in figure.axes[0].containers
        }
        for figure in drawn
    ]
    assert list(found[0]) == ["side", "LoRA"]
    assert found[0]["side"] == [[100, 0.115], [500, 0.155], [2000, 0.305], [9500, 1.055]]
    assert found[1]["20 a class"] == [[0.02, 0.305], [1.0, 0.09]]
    assert list(found[1]) == ["1 a class", "5 a class", "20 a class", "95 a class"]


def test_the_pictures_of_the_page_are_those_of_its_tables(pictures: ModuleType) -> None:
    """Where this fails: python docs/refined_pictures.py."""
    tables = pictures.read_tables(RESULTS)
    for rows in tables.values():
        assert {"LinearProbe", "KoRA-refined-side-logits", "LoRA"} <= {row.name for row in rows}
    for name in ("images", "time"):
        path = REPOSITORY / f"docs/images/refined_against_{name}.png"
        assert f"(images/{path.name})" in RESULTS
        with Image.open(path) as picture:
            assert picture.info["Description"] == pictures.describe(tables)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("## The refined", "## A refined", "no section"),
        ("Twenty images", "Twenty-one images", 'no table behind "Twenty images a class"'),
        ("| fit |", "| seconds |", r"has no \['fit'\]"),
    ],
)
def test_a_page_that_was_changed_is_told(
    pictures: ModuleType, old: str, new: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        pictures.read_tables(page(pictures).replace(old, new))
