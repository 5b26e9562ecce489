"""The log of a run survives what may happen to its file."""

from __future__ import annotations

from pathlib import Path

from kora.loggers.csv_log import RowByRow, count_rows


def test_a_file_that_a_power_cut_left_empty_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").touch()
    log = RowByRow(tmp_path, name="", version="")
    log.log_metrics({"train/loss": 1.0}, step=0)
    log.log_metrics({"val/loss": 2.0}, step=1)
    assert count_rows(tmp_path / "metrics.csv") == 2
