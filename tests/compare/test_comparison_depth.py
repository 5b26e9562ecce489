"""Depth runs in `kora compare`: their own metric, baselines and evaluation protocol."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kora.compare.command import compare, compare_command
from kora.reports.summary import evaluation_sentence
from tests.support.comparisons import EVALUATION, NYU, depth, run, screen, write

RUNS = [depth("LinearProbe", 0, 0.5), depth("KoRA", 0, 0.4)]


def printed(*paths: Path, **options: Any) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    compare_command(paths, console=console, **options)
    return console.export_text()


def test_without_a_metric_each_table_has_that_of_its_kind(tmp_path: Path) -> None:
    write(tmp_path, *RUNS, run("LoRA", 0, 0.5))
    text = printed(tmp_path)
    assert "depth: test/rmse_m" in text
    assert "fewshot: test/accuracy" in text
    assert compare(RUNS).metric == "test/rmse_m"
    assert compare([run("LoRA", 0, 0.5)]).metric == "test/accuracy"


def test_a_metric_that_is_named_is_the_one_compared(tmp_path: Path) -> None:
    write(tmp_path, *RUNS)
    assert "depth: val/rmse_m" in printed(tmp_path, metric="val/rmse_m")


def test_runs_with_neither_metric_say_what_they_have() -> None:
    odd = run("LoRA", 0, 0.5, metrics={"val/iou": 0.5})
    with pytest.raises(ValueError, match=r"test/accuracy or test/rmse_m.*val/iou.*--metric"):
        compare([odd])


def test_the_least_error_comes_first_and_the_largest_share() -> None:
    for metric in ("test/rmse_m", "test/delta1"):
        assert [group.name for group in compare(RUNS, metric=metric).groups] == [
            "KoRA",
            "LinearProbe",
        ]


def test_baselines_stand_below_the_groups_the_better_first() -> None:
    result = compare(RUNS)
    assert dict(result.baselines) == {"mean_depth": 1.25, "mean_map": 1.0}
    _, rows = result.cells()
    assert [row[:3] for row in rows[2:]] == [
        ["mean depth map", "", "1"],
        ["mean depth", "", "1.250"],
    ]
    _, rows = compare(RUNS, metric="test/delta1").cells()
    assert [row[:3] for row in rows[2:]] == [
        ["mean depth map", "", "50.00 %"],
        ["mean depth", "", "25.00 %"],
    ]
    assert not compare(RUNS, metric="test/skipped_images").baselines


def test_baselines_of_the_test_do_not_stand_beside_validation() -> None:
    assert not compare(RUNS, metric="val/rmse_m").baselines
    validated = [depth("KoRA", 0, 0.4, stage="validate")]
    assert compare(validated, metric="val/rmse_m").baselines["mean_map"] == 1.0


def test_a_baseline_is_the_mean_over_the_runs_that_have_it() -> None:
    other = depth("KoRA", 1, 0.4, baselines={"mean_depth": {"rmse_m": 1.75}})
    assert compare([*RUNS[1:], other]).baselines == {"mean_depth": 1.5, "mean_map": 1.0}


def test_markdown_and_csv_carry_baselines_and_evaluation(tmp_path: Path) -> None:
    write(tmp_path, *RUNS)
    written = compare_command([tmp_path], out=tmp_path / "o", console=screen())
    markdown, _, table, _, picture = written
    text = markdown.read_text()
    assert str(evaluation_sentence(NYU)) in text
    assert "1 % of the training set" in text
    assert "| mean depth map |  | 1 |" in text
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [row["strategy"] for row in rows[2:]] == ["mean depth map", "mean depth"]
    assert picture.is_file()


def test_what_is_better_is_said_where_it_is_the_lower() -> None:
    assert "lower is better" in compare(RUNS).to_markdown()
    assert "lower is better" not in compare(RUNS, metric="test/delta1").to_markdown()


@pytest.mark.parametrize(
    ("key", "value"), [("crop", "none"), ("align", "median"), ("max_depth_m", 80.0)]
)
def test_other_evaluations_are_not_mixed(key: str, value: object) -> None:
    other = {**NYU, "evaluation": {**EVALUATION, key: value}}
    with pytest.raises(ValueError, match=rf"protocol\.evaluation\.{key}: {value!r} in \S*KoRA"):
        compare([*RUNS, depth("LoRA", 0, 0.3), depth("KoRA", 1, 0.3, protocol=other)])


def test_a_run_without_a_stated_evaluation_is_not_mixed_with_one() -> None:
    silent = {key: value for key, value in NYU.items() if key != "evaluation"}
    with pytest.raises(ValueError, match=r"protocol\.evaluation\.crop: absent in"):
        compare([*RUNS, depth("LoRA", 0, 0.3, protocol=silent)])


def test_an_evaluation_of_some_images_is_not_mixed_with_one_of_all() -> None:
    some = {**NYU, "evaluated_images": {"test": 40}}
    with pytest.raises(ValueError, match=r"protocol\.evaluated_images\S*: .*40 in \S*KoRA"):
        compare([*RUNS, depth("LoRA", 0, 0.3), depth("KoRA", 1, 0.3, protocol=some)])
