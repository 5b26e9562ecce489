"""The charts of the page are well-formed SVG that shows the numbers where they belong."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kora.compare import compare
from kora.figures_compare import curve_chart, mark, size_chart
from tests.compare_factory import five_strategies
from tests.test_compare import run


def marks(svg: str) -> dict[str, list[tuple[float, float]]]:
    """Where the marks of each group stand, by the title of the group."""
    found = {}
    for group in ElementTree.fromstring(svg).iter("g"):
        title = group.findtext("title") or ""
        places = [p.get("transform", "") for p in group.iter("path") if p.get("class") == "mark"]
        numbers = [re.findall(r"-?[\d.]+", place) for place in places]
        found[title] = [(float(x), float(y)) for x, y in numbers]
    return found


def test_more_parameters_stand_to_the_right_and_better_values_higher(tmp_path: Path) -> None:
    svg = size_chart(compare(five_strategies(tmp_path)))
    assert svg is not None
    places = {title.partition(":")[0]: place for title, (place,) in marks(svg).items()}
    across = sorted(places, key=lambda name: places[name][0])
    assert across == ["LinearProbe", "VPT", "KoRA-side", "LoRA", "KoRA"]
    assert min(places, key=lambda name: places[name][1]) == "KoRA"


def test_labels_of_points_that_lie_together_do_not_cover_each_other() -> None:
    runs = [run(f"Strategy{k}", 0, 0.5 + k / 10_000) for k in range(6)]
    svg = size_chart(compare([*runs, run("Other", 0, 0.2)]))
    assert svg is not None
    texts = [t for t in ElementTree.fromstring(svg).iter("text") if "Strategy" in (t.text or "")]
    boxes = [(float(t.get("x", 0)), float(t.get("y", 0))) for t in texts]
    assert len(boxes) == 6
    for k, (x, y) in enumerate(boxes):
        for other_x, other_y in boxes[k + 1 :]:
            assert abs(x - other_x) > 60 or abs(y - other_y) > 12


def test_one_value_alone_or_equal_ones_can_be_drawn() -> None:
    assert size_chart(compare([run("LoRA", 0, 0.0), run("KoRA", 0, 0.0)])) is not None
    assert curve_chart({"LoRA": [([0], [0.5])]}, "val/accuracy", ["LoRA"]) is not None


def test_without_values_there_is_no_chart() -> None:
    unknown = compare([run("LoRA", 0, 0.5, parameters={})])
    assert size_chart(unknown) is None
    assert curve_chart({"LoRA": [], "KoRA": [([1], [math.nan])]}, "val/loss", ["LoRA"]) is None


def test_the_strong_line_is_the_mean_of_the_seeds_at_their_common_steps() -> None:
    seeds = [([0, 10, 20], [0.2, 0.4, 0.9]), ([0, 10], [0.4, 0.4])]
    svg = curve_chart({"LoRA": seeds}, "val/accuracy", ["LoRA"])
    assert svg is not None
    (places,) = marks(svg).values()
    assert len(places) == 2
    alone = curve_chart({"LoRA": [([0, 10, 20], [0.3, 0.4, 0.9])]}, "val/accuracy", ["LoRA"])
    assert alone is not None
    assert svg.count('class="seed"') == 2


def test_a_value_that_is_not_finite_leaves_a_gap() -> None:
    svg = curve_chart({"L": [([0, 1, 2, 3], [1.0, math.nan, 2.0, 1.0])]}, "val/loss", ["L"])
    assert svg is not None
    (line,) = re.findall(r'class="mean"[^>]* d="([^"]*)"', svg)
    assert line.count("M") == 2
    assert "nan" not in svg


def test_names_are_escaped() -> None:
    svg = size_chart(compare([run("a<b&c", 0, 0.5)]))
    assert svg is not None
    assert "a&lt;b&amp;c" in svg
    ElementTree.fromstring(svg)


@pytest.mark.parametrize("count", [8, 20])
def test_groups_can_be_told_apart_without_colour(count: int) -> None:
    drawn = {re.sub(r" c\d", "", mark(place)) for place in range(count)}
    assert len(drawn) >= min(count, 10) // 2
