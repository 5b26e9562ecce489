"""The worth of a form is its difference to the twin on common seeds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments.twins import PAIRS, Measured, main, measured, read, table, worth
from tests.support.cli import REPOSITORY

FORM = "modulation, per image"


def runs() -> list[Measured]:
    form, twin = PAIRS[FORM]
    values = {form: {1: 0.50, 2: 0.54, 3: 0.9}, twin: {1: 0.49, 2: 0.51}}
    return [
        Measured("digits", name, seed, value, 100)
        for name, of_seed in values.items()
        for seed, value in of_seed.items()
    ]


def test_only_common_seeds_count() -> None:
    (found,) = worth(runs(), "digits", *PAIRS[FORM])
    assert found.ahead.mean == pytest.approx(2.0)
    assert found.ahead.seeds == 2
    assert worth(runs(), "letters", *PAIRS[FORM]) == []


def test_each_size_of_a_form_meets_the_twin_of_that_size() -> None:
    form, twin = PAIRS[FORM]
    larger = [
        Measured("digits", form, 1, 0.7, 900),
        Measured("digits", twin, 1, 0.6, 901),
    ]
    small, large = worth([*larger, *runs()], "digits", form, twin)
    assert (small.size, large.size, large.twins_size) == (100, 900, 901)
    assert large.ahead.mean == pytest.approx(10)
    assert (large.mine, large.twins) == (pytest.approx(70), pytest.approx(60))


def test_a_tested_run_counts_by_its_test_and_another_by_its_validation(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(REPOSITORY / "tests/runs/saved/classification", folder)
    kept = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    del kept["record_sha256"]
    validated = {"best_val/accuracy": 0.5}
    for metrics, score in ((validated | {"test/accuracy": 0.75}, 0.75), (validated, 0.5)):
        (folder / "results.json").write_text(json.dumps(kept | {"metrics": metrics}))
        assert [run.score for run in measured(folder, "scenes")] == [score]


def test_an_error_counts_with_a_minus_so_that_more_is_better(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(REPOSITORY / "tests/runs/saved/classification", folder)
    kept = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    del kept["record_sha256"]
    (folder / "results.json").write_text(json.dumps(kept | {"metrics": {"test/rmse_m": 0.25}}))
    (run,) = measured(folder, "room")
    assert run.score == -0.25
    pair = [run._replace(form=form, seed=seed) for form in PAIRS[FORM] for seed in (1, 2)]
    assert "| 25.00 cm |" in table(pair, "room")


@pytest.mark.parametrize("kind", ["_source", "_tune"])
def test_a_source_stage_and_a_trial_are_no_result(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(REPOSITORY / "tests/runs/saved/classification", folder)
    kept = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    del kept["record_sha256"]
    assert len(measured(folder, "digits")) == 1
    (folder / "results.json").write_text(json.dumps(kept | {"experiment": f"digits{kind}"}))
    assert measured(folder, "digits") == []


def test_values_are_read_back_as_they_were_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, picture = tmp_path / "kept.csv", tmp_path / "worth.png"
    rows = ["data,form,seed,score,trainable", *(",".join(map(str, run)) for run in runs())]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    again = tmp_path / "again.csv"
    main([str(path), "--csv", str(again), "--out", str(picture)])
    assert sorted(read([again])) == sorted(runs())
    assert "+2.00 ±" in capsys.readouterr().out
    assert picture.stat().st_size > 1000
