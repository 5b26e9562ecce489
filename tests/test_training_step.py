"""The benchmark of a training step runs in its smallest form, and what it counts is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks" / "training_step.py"), *args],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_all_contenders_step_in_turn_and_the_counts_hold(precision: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    file = tmp_path / "steps.json"
    small = ["--model", "vit_nano", "--batch", "2", "--repeats", "2", "--precision", precision]
    done = bench(*small, "--json", str(file))
    assert done.returncode == 0, done.stderr
    record = json.loads(file.read_text())
    steps = record["steps"]
    names = ["LoRA of peft", "LoRA", "KoRA", "KoRA-side", "linear probe", "frozen forward"]
    assert list(steps) == names
    assert all(f"| {name} |" in done.stdout for name in names)
    assert record["machine"] in done.stdout
    for one in steps.values():
        assert len(one["seconds"]) == 2
        middle, low, high = one["seconds / LoRA of peft"]
        assert 0 < low <= middle <= high
    gflop = {name: one["gflop"] for name, one in steps.items()}
    kept = {name: one["kept_mib"] for name, one in steps.items()}
    assert gflop["LoRA"] == pytest.approx(gflop["LoRA of peft"], rel=0.01)
    assert gflop["linear probe"] == pytest.approx(gflop["frozen forward"], rel=0.01)
    assert gflop["KoRA-side"] < 0.55 * gflop["LoRA"]
    # With so few tokens the casts of the weights are most of what bfloat16 keeps.
    most, more = (0.7, 1.03) if precision == "float32" else (0.85, 1.08)
    assert kept["LoRA"] <= most * kept["LoRA of peft"]
    assert kept["KoRA"] <= more * kept["LoRA"]
    assert kept["KoRA-side"] < 0.1 * kept["LoRA"]
    assert kept["frozen forward"] == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--batch", "0"], "expected 1 or more"),
        (["--model", "vit_nanoo"], "--model: timm"),
        (["--precision", "float8"], "invalid choice"),
    ],
)
def test_a_wrong_option_is_one_clear_error(args: list[str], said: str) -> None:
    done = bench(*args)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
