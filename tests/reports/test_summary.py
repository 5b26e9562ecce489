"""The table at the end of a run: its test metrics, beside every baseline that was measured."""

import io
from typing import Any

from rich.console import Console

from kora.reports.summary import evaluation_sentence, summary_table
from kora.runs.results import RunResult
from tests.support.comparisons import EVALUATION


def result(**changes: Any) -> RunResult:
    values: dict[str, Any] = {
        "experiment": "quickstart",
        "strategy": "LoRA",
        "stage": "fit",
        "seed": 0,
        "metrics": {"test/accuracy": 0.7104, "test/weighted_f1": 0.7, "val/accuracy": 0.9999},
        "baselines": {
            "chance": {"accuracy": 0.1},
            "majority": {"accuracy": 0.125, "weighted_f1": 0.0278},
        },
        "protocol": {"dataset": "Synthetic", "sizes": {"train": 50, "test": 100}},
        "audit": {},
        "parameters": {"trainable": 1_256_548, "percent": 1.443},
        "seconds": {"fit": 12.34},
        "peak_memory_mib": 1024.5,
        "backbone": {"name": "vit_nano"},
    }
    return RunResult(**{**values, **changes})


def depth_result(**changes: Any) -> RunResult:
    values: dict[str, Any] = {
        "metrics": {"test/rmse_m": 0.44912, "test/delta1": 0.83, "test/skipped_images": 2.0},
        "baselines": {
            "mean_depth": {"rmse_m": 1.25, "delta1": 0.5},
            "mean_map": {"rmse_m": 1.0, "delta1": 0.625},
        },
        "protocol": {"dataset": "NYU", "evaluation": EVALUATION},
    }
    return result(**{**values, **changes})


def shown(result: RunResult, *, width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(summary_table(result))
    return console.export_text()


def rows(text: str) -> list[list[str]]:
    """Cells of the heading and of each row."""
    lines = [line for line in text.splitlines() if line[:1] in ("┃", "│")]
    return [[cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]] for line in lines]


def test_test_metrics_stand_beside_the_baselines() -> None:
    text = shown(result())
    assert rows(text) == [
        ["metric", "result", "chance", "majority class"],
        ["test/accuracy", "71.04 %", "10.00 %", "12.50 %"],
        ["test/weighted_f1", "70.00 %", "–", "2.78 %"],
    ]
    assert "99.99" not in text  # validation is not a test result
    assert "1,256,548 trainable (1.44 %)" in text
    assert "Evaluation" not in text


def test_a_depth_run_stands_beside_its_own_baselines() -> None:
    assert rows(shown(depth_result())) == [
        ["metric", "result", "mean depth", "mean depth map"],
        ["test/rmse_m", "0.4491", "1.250", "1"],
        ["test/delta1", "83.00 %", "50.00 %", "62.50 %"],
        ["test/skipped_images", "2", "–", "–"],
    ]


def test_without_baselines_there_is_no_column_of_dashes() -> None:
    nothing: list[dict[str, dict[str, float]]] = [{}, {"chance": {}}]
    for baselines in nothing:
        assert rows(shown(result(baselines=baselines)))[0] == ["metric", "result"]


def test_validation_alone_shows_its_own_metrics() -> None:
    assert [row[0] for row in rows(shown(result(stage="validate")))] == ["metric", "val/accuracy"]


def test_the_evaluation_keeps_to_one_line_though_the_table_is_narrower() -> None:
    sentence = evaluation_sentence({"evaluation": EVALUATION})
    assert sentence is not None
    assert "Eigen" in sentence
    narrow = depth_result(baselines={})
    assert f"Evaluation: {sentence}" in [line.rstrip() for line in shown(narrow).splitlines()]


def test_an_evaluation_of_another_kind_is_spelt_out() -> None:
    other = {"evaluation": {"threshold": 0.5, "per": "image"}}
    assert evaluation_sentence(other) == "threshold 0.5, per image"
    assert evaluation_sentence({}) is None
