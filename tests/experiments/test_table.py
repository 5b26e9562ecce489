"""The worth of a form is its difference to the twin on common seeds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments.twins import PAIRS, Measured, main, measured, read, worth
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
    found = worth(runs(), "digits", *PAIRS[FORM])
    assert found is not None
    assert found.mean == pytest.approx(2.0)
    assert found.seeds == 2
    assert worth(runs(), "letters", *PAIRS[FORM]) is None


def test_a_tested_run_counts_by_its_test_and_another_by_its_validation(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(REPOSITORY / "tests/runs/saved/classification", folder)
    kept = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    del kept["record_sha256"]
    validated = {"best_val/accuracy": 0.5}
    for metrics, score in ((validated | {"test/accuracy": 0.75}, 0.75), (validated, 0.5)):
        (folder / "results.json").write_text(json.dumps(kept | {"metrics": metrics}))
        assert [run.score for run in measured(folder, "scenes")] == [score]


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
