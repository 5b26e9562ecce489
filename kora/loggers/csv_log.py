"""metrics.csv of a run: written row by row, and continued when a run resumes."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from kora.lightning_internals import CsvLog, CsvWriter
from kora.runs.durable import write_atomically

__all__ = ["RowByRow", "count_rows", "keep_rows"]


class RowByRow(CsvLog):
    """A CSVLogger whose file is complete up to the current step, even if the process is killed.

    Lightning's own writes every hundred steps, empties the file whenever a new metric needs a new
    header, and deletes an existing file.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the file."""
        return self.written_by(self._writer)

    def _writer(self) -> _Writer:
        os.makedirs(self.root_dir, exist_ok=True)
        return _Writer(log_dir=self.log_dir)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Append a row."""
        super().log_metrics(metrics, step)
        self.save()


class _Writer(CsvWriter):
    def begin(self) -> None:
        """Continue an existing file."""
        path = Path(self.metrics_file_path)
        if path.is_file():
            self.metrics_keys = next(iter(_rows(path)), [])

    def new_header(self, names: list[str]) -> None:
        """Rewrite the file with these columns."""
        path = Path(self.metrics_file_path)
        head, *rows = _rows(path) or [[]]  # a power cut may leave nothing in it

        def write(target: Path) -> None:
            with target.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=names)
                writer.writeheader()
                writer.writerows(dict(zip(head, row, strict=False)) for row in rows)

        write_atomically(path, write)


def count_rows(path: Path) -> int:
    """Rows of a CSV file, its header not counted; 0 if there is none."""
    return max(0, len(_rows(path)) - 1) if path.is_file() else 0


def keep_rows(path: Path, number: int) -> None:
    """Keep only the first rows: those after a checkpoint are logged again."""
    rows = _rows(path) if path.is_file() else []
    if len(rows) <= number + 1:
        return

    def write(target: Path) -> None:
        with target.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows[: number + 1])

    write_atomically(path, write)


def _rows(path: Path) -> list[list[str]]:
    """The header and the rows of a file.

    Raises:
        RuntimeError: It is damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise RuntimeError(
            f"{path} is damaged: {error}. Move it away: the run then resumes, and logs into a new "
            "file."
        ) from error
