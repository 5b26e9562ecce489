"""The charts of the page are well-formed SVG that shows the numbers where they belong."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kora.compare.command import compare
from kora.compare.label_places import overlap, text_width
from kora.compare.page_charts import curve_chart, mark, size_chart
from kora.console.identity import MARKERS, Look, look_of
from tests.support.compare_factory import five_strategies
from tests.support.comparisons import run


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


def test_labels_of_points_that_lie_together_cover_neither_each_other_nor_a_mark() -> None:
    runs = [run(f"Strategy{k}", 0, 0.5 + k / 10_000) for k in range(6)]
    svg = size_chart(compare([*runs, run("Other", 0, 0.2)]))
    assert svg is not None
    texts = [t for t in ElementTree.fromstring(svg).iter("text") if "Strategy" in (t.text or "")]
    assert len(texts) == 6
    boxes = []
    for text in texts:
        x, y = float(text.get("x", 0)), float(text.get("y", 0))
        boxes.append((x, y - 11, x + text_width(text.text or ""), y + 3))
    for one, other in itertools.combinations(boxes, 2):
        assert overlap(one, other) == 0
    for x, y in (place for places in marks(svg).values() for place in places):
        assert all(overlap(box, (x - 5, y - 5, x + 5, y + 5)) == 0 for box in boxes)
    assert 'class="leader"' in svg


def test_one_value_alone_or_equal_ones_can_be_drawn() -> None:
    assert size_chart(compare([run("LoRA", 0, 0.0), run("KoRA", 0, 0.0)])) is not None
    assert curve_chart({"LoRA": [([0], [0.5])]}, "val/accuracy") is not None


def test_without_values_there_is_no_chart() -> None:
    unknown = compare([run("LoRA", 0, 0.5, parameters={})])
    assert size_chart(unknown) is None
    assert curve_chart({"LoRA": [], "KoRA": [([1], [math.nan])]}, "val/loss") is None


def test_the_strong_line_is_the_mean_of_the_seeds_at_their_common_steps() -> None:
    seeds = [([0, 10, 20], [0.2, 0.4, 0.9]), ([0, 10], [0.4, 0.4])]
    svg = curve_chart({"LoRA": seeds}, "val/accuracy")
    assert svg is not None
    (places,) = marks(svg).values()
    assert len(places) == 2
    alone = curve_chart({"LoRA": [([0, 10, 20], [0.3, 0.4, 0.9])]}, "val/accuracy")
    assert alone is not None
    (all_places,) = marks(alone).values()
    assert len(all_places) == 3  # where a single seed goes, the mean goes
    assert svg.count('class="seed"') == 2


def test_a_value_that_is_not_finite_leaves_a_gap() -> None:
    svg = curve_chart({"L": [([0, 1, 2, 3], [1.0, math.nan, 2.0, 1.0])]}, "val/loss")
    assert svg is not None
    (line,) = re.findall(r'class="mean"[^>]* d="([^"]*)"', svg)
    assert line.count("M") == 2
    assert "nan" not in svg


def test_names_are_escaped() -> None:
    svg = size_chart(compare([run("a<b&c", 0, 0.5)]))
    assert svg is not None
    assert "a&lt;b&amp;c" in svg
    ElementTree.fromstring(svg)


@pytest.mark.parametrize("name", ["LoRA", "KoRA", "LinearProbe", "VPT"])
def test_a_group_has_the_same_colour_and_mark_in_the_legend_and_in_both_charts(
    name: str, tmp_path: Path
) -> None:
    look = look_of(name)
    shape = re.findall(r' d="([^"]*)"/></svg>', mark(look))[0]
    result = compare(five_strategies(tmp_path))
    size = size_chart(result)
    curve = curve_chart({n: [([0, 1], [0.1, 0.2])] for n in ("SSF", name)}, "val/accuracy")
    for svg in (size, curve):
        assert svg is not None
        (group,) = (
            g
            for g in ElementTree.fromstring(svg).iter("g")
            if (g.findtext("title") or "").partition(":")[0] == name
        )
        assert group.get("class") == f"c{look.colour}"
        drawn = {p.get("d") for p in group.iter("path") if p.get("class") == "mark"}
        assert drawn == {shape}


def test_the_test_is_a_hollow_diamond_at_its_step() -> None:
    curves = {"LoRA": [([0, 10], [0.2, 0.4])]}
    svg = curve_chart(curves, "val/accuracy", tested={"LoRA": [(10, 0.3)], "KoRA": [(5, 0.1)]})
    assert svg is not None
    (place,) = re.findall(r'class="tested" transform="translate\(([\d.]+) ', svg)
    last = marks(svg)["LoRA"][-1]
    assert float(place) == last[0]


def test_groups_can_be_told_apart_without_colour() -> None:
    drawn = {re.sub(r" c\d", "", mark(Look(0, marker))) for marker in range(len(MARKERS))}
    assert len(drawn) == len(MARKERS)
