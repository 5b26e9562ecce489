"""The benchmark of waiting runs in its smallest form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import waiting
from tests.support.benchmarks import refused, written
from tests.support.kept import REPOSITORY, kept

pytest.importorskip("optuna", reason="optuna is not installed: pip install 'kora-vit[tune]'")

SMALL = {
    "trainer.max_epochs": 1, "data.train_images": 1200, "data.test_images": 12,
    "data.val_images": 12,
}  # fmt: skip


def measured(
    what: str, sizes: tuple[int, int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], str]:
    """Record and output of a benchmark of small grids, by commands that have imported before."""
    monkeypatch.setitem(waiting.SIZES, what, sizes)
    for name, value in SMALL.items():
        monkeypatch.setitem(waiting.SETTINGS, name, value)
    tools = folder / "tools"
    monkeypatch.setattr(waiting, "KORA", (str(tools / "kora"),))
    with kept(REPOSITORY, tools):
        return written("waiting", folder, "--repeats", "1", "--only", what)


@pytest.mark.slow
def test_a_grid_is_timed_against_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, printed = measured("grid", (1, 2), tmp_path, monkeypatch)
    assert set(record["lines"]["grid"]) == {"kora grid", "with pictures=false"}
    one, two = record["lines"]["grid"]["kora grid"]
    assert 0 < record["fit_seconds"] < one[0]
    assert f"| kora grid | {one[0]:.3f}" in printed
    assert len(two) == 3


@pytest.mark.slow
def test_a_grid_is_timed_one_by_one_and_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, printed = measured("batch", (1, 2), tmp_path, monkeypatch)
    assert set(record["lines"]["batch"]) == {"kora grid", "with --together"}
    assert "| runs of 60 epochs | 1 | 2 | one more |" in printed


def test_fits_at_once_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(waiting.SIZES, "together", (1, 2))
    monkeypatch.setattr(waiting, "SEARCHED", ("linear_probe",))
    record, printed = written("waiting", tmp_path, "--repeats", "1", "--only", "together")
    one, two = record["lines"]["together"]["linear_probe"]
    assert min(one[0], two[0]) > 0
    assert "| fits at once | 1 | 2 | one more |" in printed


def test_a_command_that_fails_is_an_error_and_no_time(tmp_path: Path) -> None:
    def call(size: int, number: int) -> tuple[str, ...]:
        return "grid", "--config", "none.yaml"

    with pytest.raises(RuntimeError, match=r"kora grid --config none\.yaml ends with 2"):
        waiting.line(call, tmp_path, "grid", 1)


def test_a_wrong_option_is_one_clear_error() -> None:
    assert "invalid choice" in refused("waiting", "--only", "all")
