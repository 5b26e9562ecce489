"""The check of a card against the CPU, here with the CPU in its place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check
from tests.support.benchmarks import refused
from tests.support.kept import REPOSITORY, kept


def test_each_strategy_that_it_trains_has_a_config() -> None:
    for name in gpu_check.STRATEGIES:
        assert (REPOSITORY / f"configs/adapters/{name}.yaml").is_file(), name


def test_losses_that_are_not_all_there_are_infinitely_far() -> None:
    assert gpu_check.furthest([1.0, 2.0], [1.5, 2.0]) == 0.5
    assert gpu_check.furthest([1.0, 2.0], [1.0]) == float("inf")
    assert gpu_check.furthest([], []) == float("inf")


@pytest.mark.slow
def test_a_row_says_how_far_the_losses_are_and_whether_that_is_too_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    as_it_is = ["--trainer.precision", "32-true"]
    other = [*as_it_is, "--model.head_lr", "0.0021"]
    monkeypatch.setattr(gpu_check, "WAYS", [("equal", as_it_is, 0.0), ("other", other, 1e-9)])
    with kept(REPOSITORY, tmp_path / "tools"):
        monkeypatch.setattr(sys, "executable", str(tmp_path / "tools" / "python"))
        equal, far = gpu_check.compared("linear_probe", "cpu", tmp_path)
    assert [equal[i] for i in (0, 1, 2, 5)] == ["linear_probe", "equal", "0.0e+00", "yes"]
    assert [far[i] for i in (0, 1, 5)] == ["linear_probe", "other", "no"]
    assert float(far[2]) > 0


@pytest.mark.slow
def test_what_a_benchmark_prints_is_on_the_page_and_its_progress_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["merged.py", "--model", "vit_nano", "--batch", "2", "--repeats", "1"]
    monkeypatch.setattr(gpu_check, "BENCHMARKS", [small])
    (tmp_path / "logs").mkdir()
    with kept(REPOSITORY, tmp_path / "tools"):
        monkeypatch.setattr(sys, "executable", str(tmp_path / "tools" / "python"))
        (said,) = gpu_check.benchmarks("cpu", tmp_path)
    assert said.startswith("## merged.py --model vit_nano")
    assert "| LoRA, merged |" in said
    assert "round" not in said.replace("medians of 1 rounds", "")
    (log,) = (tmp_path / "logs").iterdir()
    assert "round 1 of 1" in log.read_text()


def test_without_a_card_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    assert "torch finds no GPU" in refused("gpu_check")
