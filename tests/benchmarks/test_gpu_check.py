"""The check of a card against the CPU, here with the CPU in its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check
from tests.support.benchmarks import refused
from tests.support.cli import REPOSITORY


def test_each_strategy_that_it_trains_has_a_config() -> None:
    for name in gpu_check.STRATEGIES:
        assert (REPOSITORY / f"configs/adapters/{name}.yaml").is_file(), name


@pytest.mark.slow
def test_losses_are_those_of_the_cpu_or_the_row_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = gpu_check.compared("linear_probe", "cpu", tmp_path)
    assert [row[1] for row in rows] == ["float32", "bfloat16"]
    assert rows[0][2] == "0.0e+00"
    assert 0 < float(rows[1][2]) < 0.1
    assert [row[-1] for row in rows] == ["yes", "yes"]
    monkeypatch.setattr(gpu_check, "WAYS", [("float32", ["--trainer.precision", "99"], 1.0)])
    assert gpu_check.compared("linear_probe", "cpu", tmp_path)[0][-1] == "no"


def test_without_a_card_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    assert "torch finds no GPU" in refused("gpu_check")
