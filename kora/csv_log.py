"""`metrics.csv` of a run that goes on: its rows up to the checkpoint stay, new ones follow."""

from __future__ import annotations

import csv
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from kora.results import write_atomically

__all__ = ["ContinuedCSVLogger", "count_rows", "keep_rows"]


class ContinuedCSVLogger(CSVLogger):
    """A CSVLogger that adds to the file which is there; Lightning's deletes it."""

    @property
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._experiment = _Writer(log_dir=self.log_dir)
        writer: ExperimentWriter = self._experiment  # type: ignore[assignment]
        return writer


class _Writer(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])


def count_rows(path: Path) -> int:
    """Rows of a CSV file, its header not counted; 0 where there is none."""
    if not path.is_file():
        return 0
    with path.open(encoding="utf-8", newline="") as file:
        return sum(1 for _ in csv.DictReader(file))


def keep_rows(path: Path, number: int) -> None:
    """Leave only the first rows: those behind a checkpoint are logged again."""
    if count_rows(path) <= number:
        return
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[: number + 1]

    def write(target: Path) -> None:
        with target.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)

    write_atomically(path, write)
