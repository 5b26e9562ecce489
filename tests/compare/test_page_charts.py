"""The charts of the page show the numbers where they belong, and whose they are."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from kora.compare.command import compare
from kora.compare.inline_svg import inline_svg
from kora.compare.page_charts import curve_chart, key, size_chart
from kora.console.identity import MARKERS, Look, looks
from tests.support.compare_factory import five_strategies
from tests.support.comparisons import run
from tests.support.svg import by_hover, marks


def svg(figure: Figure | None) -> str:
    assert figure is not None
    return inline_svg(figure, title="a chart", name="c")


def shapes(groups: list[ElementTree.Element], style: str) -> set[str | None]:
    """Of the marks in these groups, all of which have this style."""
    known = {f"#{path.get('id')}": path.get("d") for one in groups for path in one.iter("path")}
    uses = [use for one in groups for use in one.iter("use")]
    assert all(style in use.get("style", "") for use in uses)
    return {known.get(use.get("href", "")) for use in uses}


def test_more_parameters_stand_to_the_right_and_better_values_higher(tmp_path: Path) -> None:
    drawn = by_hover(svg(size_chart(compare(five_strategies(tmp_path)))))
    # The mark lies between the caps of its interval.
    places = {t.partition(":")[0]: sorted(marks(groups))[1] for t, groups in drawn.items()}
    across = sorted(places, key=lambda name: places[name][0])
    assert across == ["LinearProbe", "VPT", "KoRA-side", "LoRA", "KoRA"]
    assert min(places, key=lambda name: places[name][1]) == "KoRA"


def test_a_point_says_its_numbers_to_the_pointer(tmp_path: Path) -> None:
    drawn = by_hover(svg(size_chart(compare([run("LoRA", 0, 0.5), run("KoRA", 0, 0.25)]))))
    assert set(drawn) == {"LoRA: 50.00 % at 1,000", "KoRA: 25.00 % at 1,000"}


def test_labels_of_points_that_lie_together_cover_neither_each_other_nor_a_mark() -> None:
    runs = [run(f"Strategy{k}", 0, 0.5 + k / 10_000) for k in range(6)]
    figure = size_chart(compare([*runs, run("Other", 0, 0.2)]))
    assert figure is not None
    (axis,) = figure.axes
    assert sorted(text.get_text() for text in axis.texts) == [
        "Other", *(f"Strategy{k}" for k in range(6))
    ]  # fmt: skip
    boxes = [text.get_window_extent() for text in axis.texts]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    for container in axis.containers:
        at = axis.transData.transform(container.lines[0].get_xydata())[0]
        for box in boxes:
            assert not box.padded(5).contains(*at)
    assert any(line.get_color() == "#666666" for line in axis.lines), "a line to one that is apart"


def test_one_value_alone_or_equal_ones_can_be_drawn() -> None:
    assert size_chart(compare([run("LoRA", 0, 0.0), run("KoRA", 0, 0.0)])) is not None
    assert "nan" not in svg(curve_chart({"LoRA": [([0], [0.5])]}, "val/accuracy"))


def test_without_values_there_is_no_chart() -> None:
    unknown = compare([run("LoRA", 0, 0.5, parameters={})])
    assert size_chart(unknown) is None
    assert curve_chart({"LoRA": [], "KoRA": [([1], [math.nan])]}, "val/loss") is None


def test_the_strong_line_is_the_mean_of_the_seeds_at_their_common_steps() -> None:
    seeds = [([0, 10, 20], [0.2, 0.4, 0.9]), ([0, 10], [0.4, 0.4])]
    drawn = by_hover(svg(curve_chart({"LoRA": seeds}, "val/accuracy")))
    assert len(marks(drawn["LoRA"])) == 2
    assert len(drawn["LoRA, a seed"]) == 2
    alone = by_hover(svg(curve_chart({"LoRA": [([0, 10, 20], [0.3, 0.4, 0.9])]}, "val/accuracy")))
    assert len(marks(alone["LoRA"])) == 3  # where a single seed goes, the mean goes


@pytest.mark.parametrize("hole", [math.nan, math.inf])
def test_a_value_that_is_not_finite_leaves_a_gap(hole: float) -> None:
    drawn = svg(curve_chart({"L": [([0, 1, 2, 3, 4], [2.0, 1.0, hole, 2.0, 1.0])]}, "val/loss"))
    ((group,),) = (groups for title, groups in by_hover(drawn).items() if title == "L")
    (line,) = (path.get("d", "") for path in group.findall("path"))
    assert line.count("M") == 2
    assert "nan" not in drawn
    assert "inf" not in drawn


@pytest.mark.parametrize("name", ["a<b&c", "</svg><script>", '"x" y=\'', r"$\frac$", "a$b$c", "\0"])
def test_a_name_is_shown_as_it_is_and_is_neither_markup_nor_mathematics(name: str) -> None:
    shown = name.replace("\0", "\ufffd")
    sizes = svg(size_chart(compare([run(name, 0, 0.5)])))
    assert shown in [text.text for text in ElementTree.fromstring(sizes).iter("text")]
    curves = svg(curve_chart({name: [([0, 1], [0.1, 0.2])]}, "val/accuracy"))
    for drawn, said in ((sizes, f"{shown}: 50.00 % at 1,000"), (curves, shown)):
        assert said in by_hover(drawn)
        assert "<script" not in drawn


@pytest.mark.parametrize("name", ["LoRA", "KoRA", "LinearProbe", "VPT"])
def test_a_group_has_the_same_colour_and_mark_in_the_legend_and_in_both_charts(
    name: str, tmp_path: Path
) -> None:
    size = size_chart(compare(five_strategies(tmp_path)))
    curve = curve_chart({n: [([0, 1], [0.1, 0.2])] for n in ("SSF", name)}, "val/accuracy")
    colour = f"stroke: var(--c{looks([name])[name].colour})"
    (shape,) = shapes([ElementTree.fromstring(svg(key(looks([name])[name])))], colour)
    for drawn in (by_hover(svg(size)), by_hover(svg(curve))):
        (groups,) = (found for title, found in drawn.items() if title.partition(":")[0] == name)
        assert shape in shapes(groups, colour)


def test_the_test_is_a_hollow_diamond_at_its_step() -> None:
    curves = {"LoRA": [([0, 10], [0.2, 0.4])]}
    tested = {"LoRA": [(10, 0.3)], "KoRA": [(5, 0.1)]}
    drawn = by_hover(svg(curve_chart(curves, "val/accuracy", tested=tested)))
    assert "KoRA, tested" not in drawn
    ((x, _),) = marks(drawn["LoRA, tested"])
    assert x == marks(drawn["LoRA"])[-1][0]
    assert "fill: var(--raised)" in ElementTree.tostring(drawn["LoRA, tested"][0], "unicode")


def test_groups_can_be_told_apart_without_colour() -> None:
    drawn = {re.sub("#m[0-9a-f]+|id=.*? ", "", svg(key(Look(0, m)))) for m in range(len(MARKERS))}
    assert len(drawn) == len(MARKERS)
