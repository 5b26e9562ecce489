"""What a run records when it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from kora.training.record import _has_curves


@pytest.mark.parametrize(
    ("logged", "drawn"),
    [
        ("epoch,step,train/redundancy,test/accuracy", False),
        ("epoch,step,train/loss", True),
        ("epoch,step,val/rmse_m", True),
    ],
)
def test_a_run_too_short_for_a_curve_ends_without_its_picture(
    logged: str, drawn: bool, tmp_path: Path
) -> None:
    """KoRA logs the redundancy of its nodes at the first step, where nothing else is logged yet."""
    (tmp_path / "metrics.csv").write_text(f"{logged}\n0,1,0.5\n")
    assert _has_curves(tmp_path / "metrics.csv") == drawn
    assert not _has_curves(tmp_path / "none.csv")
