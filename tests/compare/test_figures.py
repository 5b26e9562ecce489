"""Claims about the picture of a comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kora.compare import figures
from kora.compare.comparison import Comparison, Group
from kora.compare.verdict import Verdict
from kora.console.identity import looks
from tests.support.pixels import colours, size


def comparison(**changes: Any) -> Comparison:
    lora = Group("LoRA", (0, 1), (0.4, 0.5), 0.45, 0.07, 0.2, 10, 1.0, 1.0)
    probe = Group("LinearProbe", (0,), (0.3,), 0.3, None, None, 10, 1.0, 1.0)
    values: dict[str, Any] = {
        "title": "quickstart",
        "metric": "test/accuracy",
        "by": "strategy",
        "groups": (lora, probe),
        "baselines": {"chance": 0.1, "majority": 0.12},
        "reference": None,
        "protocol": {},
        "backbone": "vit_nano",
        "notes": (),
    }
    return Comparison(**{**values, **changes})


def test_comparison_draws_a_line_for_each_baseline_that_there_is(tmp_path: Path) -> None:
    path = tmp_path / "comparison.png"
    assert colours(figures.comparison(comparison(), path))["LEVEL"] > 50
    without = comparison(baselines={}, metric="test/loss")
    assert colours(figures.comparison(without, path))["LEVEL"] == 0
    depth = comparison(baselines={"mean_depth": 1.2, "mean_map": 1.0}, metric="test/rmse_m")
    assert colours(figures.comparison(depth, path))["LEVEL"] > 50


@pytest.mark.parametrize(("metric", "first"), [("test/rmse_m", 1), ("test/cohen_kappa", 2)])
def test_the_best_baseline_comes_first_also_where_more_is_better(metric: str, first: int) -> None:
    rows = comparison(baselines={"mean_depth": 1, "mean_map": 2}, metric=metric).baseline_rows()
    assert rows[0][2] == first


def drawn(result: Comparison, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The axes of a comparison's picture, and its legend's texts."""
    found: list[Any] = []
    monkeypatch.setattr(figures, "save", lambda figure, out: found.append(figure) or Path(out))
    figures.comparison(result, folder / "x.png")
    texts = [text.get_text() for text in found[0].legends[0].get_texts()]
    return found[0].axes[0], texts


def test_a_long_legend_stays_within_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Group("LoRA", (0, 1), (0.58, 0.59), 0.585, 0.01, 0.02, 10, 1.0, 1.0)
    far = {"mean_depth": 1.2, "mean_map": 1.0}
    few = {"common_seeds": (0,), "baselines": far, "metric": "test/rmse_m"}
    axis, texts = drawn(comparison(groups=(one,), **few), tmp_path, monkeypatch)
    assert "seed that not all have" in texts
    figure = axis.figure
    width = figure.legends[0].get_window_extent().width
    assert len(figure.legends) == 1
    assert width <= figure.bbox.width


def test_groups_that_lie_close_together_are_shown_close_and_baselines_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Group("LoRA", (0, 1), (0.80, 0.81), 0.805, 0.01, 0.02, 10, 1.0, 1.0)
    other = Group("LinearProbe", (0, 1), (0.79, 0.80), 0.795, 0.01, 0.02, 10, 1.0, 1.0)
    axis, texts = drawn(comparison(groups=(one, other)), tmp_path, monkeypatch)
    assert axis.get_xlim()[0] > 0.7
    assert "chance 10.00 % (off the axis)" in texts
    axis, texts = drawn(comparison(), tmp_path, monkeypatch)
    assert axis.get_xlim()[0] == 0
    assert "chance 10.00 %" in texts


def test_a_strategy_has_its_own_colour_and_its_verdict_and_uncommon_seeds_are_hollow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora, probe = comparison().groups
    lora = replace(lora, verdict=Verdict("ahead", "LoRA is ahead."))
    result = comparison(groups=(lora, probe), reference="LinearProbe", common_seeds=(0,))
    axis, texts = drawn(result, tmp_path, monkeypatch)
    assert {text.get_text() for text in axis.texts} == {"ahead", "reference"}
    dots = [line for line in axis.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    mine = [line for line in dots if line.get_color() == looks(["LoRA"])["LoRA"].hex]
    assert [line.get_markerfacecolor() for line in mine] == [looks(["LoRA"])["LoRA"].hex, "none"]
    assert "seed that not all have" in texts


def test_comparison_grows_with_its_groups(tmp_path: Path) -> None:
    few = size(figures.comparison(comparison(), tmp_path / "few.png"))
    many = size(figures.comparison(comparison(groups=comparison().groups * 5), tmp_path / "m.png"))
    assert many[1] > few[1]
    assert many[0] == few[0]
