"""The benchmark of a training step runs in its smallest form, and what it counts is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.contenders import CONTENDERS, DEFAULT, FLOOR, FORWARD

REPOSITORY = Path(__file__).resolve().parents[2]


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks" / "training_step.py"), *args],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_all_contenders_step_in_turn_and_the_counts_hold(precision: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    small = ["--model", "vit_nano", "--batch", "2", "--repeats", "2", "--precision", precision]
    done = bench(*small, "--json", str(tmp_path / "steps.json"), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "steps.json").read_text()
    assert (tmp_path / "out" / "training_step.json").read_text() == text
    assert (tmp_path / "out" / "training_step.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads(text)
    steps = record["steps"]
    assert list(steps) == [*DEFAULT, FORWARD]
    assert all(f"| {name} |" in done.stdout for name in steps)
    assert record["machine"] in done.stdout
    for one in steps.values():
        assert len(one["seconds"]) == 2
        middle, low, high = one["seconds / LoRA of peft"]
        assert 0 < low <= middle <= high
    gflop = {name: one["gflop"] for name, one in steps.items()}
    kept = {name: one["kept_mib"] for name, one in steps.items()}
    forward = gflop["frozen forward"]
    assert gflop["LoRA"] == pytest.approx(gflop["LoRA of peft"], rel=0.01)
    assert gflop["linear probe"] == pytest.approx(forward, rel=0.01)
    assert gflop[FLOOR] == pytest.approx(2 * forward, rel=0.03)
    assert gflop["full fine-tuning"] == pytest.approx(3 * forward, rel=0.03)
    assert gflop["KoRA-side"] < 0.55 * gflop["LoRA"]
    # With so few tokens the casts of the weights are most of what bfloat16 keeps.
    most, more = (0.7, 1.03) if precision == "float32" else (0.85, 1.08)
    assert kept["LoRA"] <= most * kept["LoRA of peft"]
    assert kept["KoRA"] <= more * kept["LoRA"]
    assert kept["KoRA-side"] < 0.1 * min(kept["LoRA"], kept["KoRA as published"])
    assert kept["frozen forward"] == 0


@pytest.mark.slow
def test_every_other_contender_makes_a_step_when_it_is_named(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    others = [name for name in CONTENDERS if name not in DEFAULT]
    small = ["--model", "vit_nano", "--batch", "2", "--repeats", "1", "--steps", *others]
    done = bench(*small, "--json", str(tmp_path / "steps.json"))
    assert done.returncode == 0, done.stderr
    steps = json.loads((tmp_path / "steps.json").read_text())["steps"]
    assert list(steps) == [*others, FORWARD]
    assert steps["DoRA"]["kept_mib"] < steps["DoRA of peft"]["kept_mib"]
    for name in others:  # no adapter trains at less than the forward pass
        assert steps[name]["gflop"] > 1.5 * steps[FORWARD]["gflop"], name


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--batch", "0"], "expected 1 or more"),
        (["--model", "vit_nanoo"], "--model: timm"),
        (["--precision", "float8"], "invalid choice"),
        (["--steps", "lora"], "invalid choice: 'lora'"),
        (["--out", __file__], "is a file; expected a folder"),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], "torch finds no GPU")]),
    ],
)
def test_a_wrong_option_is_one_clear_error(args: list[str], said: str) -> None:
    done = bench(*args)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
