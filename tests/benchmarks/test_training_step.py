"""The benchmark of a training step runs in its smallest form, and what it counts is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.contenders import CONTENDERS, DEFAULT, FLOOR, FORWARD
from benchmarks.measuring import PRODUCT
from tests.support.benchmarks import refused, written


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_all_contenders_step_in_turn_and_the_counts_hold(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    monkeypatch.setitem(PRODUCT, "cpu", 128)  # a CPU may need seconds for a large one in bfloat16
    small = ["--model", "vit_nano", "--batch", "2", "--repeats", "2", "--precision", precision]
    json_file = tmp_path / "steps.json"
    record, printed = written("training_step", tmp_path / "out", *small, "--json", str(json_file))
    assert json.loads(json_file.read_text()) == record
    steps = record["steps"]
    assert list(steps) == [*DEFAULT, FORWARD]
    assert all(f"| {name} |" in printed for name in steps)
    for one in steps.values():
        assert len(one["seconds"]) == 2
        middle, low, high = one["seconds / LoRA of peft"]
        assert 0 < low <= middle <= high
    gflop = {name: one["gflop"] for name, one in steps.items()}
    kept = {name: one["kept_mib"] for name, one in steps.items()}
    forward = gflop["frozen forward"]
    spared = 1 - 9 / 12 / 6  # of one of six blocks all behind its attention, but for CLS
    assert gflop["LoRA"] == pytest.approx(spared * gflop["LoRA of peft"], rel=0.02)
    assert gflop["linear probe"] == pytest.approx(spared * forward, rel=0.02)
    assert gflop[FLOOR] == pytest.approx(2 * forward, rel=0.03)
    assert gflop["full fine-tuning"] == pytest.approx(3 * spared * forward, rel=0.03)
    assert gflop["KoRA"] == pytest.approx(gflop["LoRA of peft"], rel=0.02)
    assert gflop["KoRA on CLS"] <= 1.01 * gflop["LoRA"]  # it needs no mean of the last block
    assert gflop["KoRA-side"] < 0.55 * gflop["KoRA"]
    # With so few tokens the casts of the weights are most of what bfloat16 keeps.
    most, more = (0.7, 1.03) if precision == "float32" else (0.85, 1.15)
    assert kept["LoRA"] <= most * kept["LoRA of peft"]
    assert kept["KoRA"] <= more * kept[FLOOR]
    assert kept["KoRA on CLS"] <= more * kept["LoRA"]
    assert kept["KoRA-side"] < 0.1 * min(kept["LoRA"], kept["KoRA as published"])
    assert kept["frozen forward"] == 0


@pytest.mark.slow
def test_every_other_contender_makes_a_step_when_it_is_named(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    others = [name for name in CONTENDERS if name not in DEFAULT]
    small = ["--model", "vit_nano", "--batch", "2", "--repeats", "1", "--steps", *others]
    steps = written("training_step", tmp_path, *small)[0]["steps"]
    assert list(steps) == [*others, FORWARD]
    for name in ("DoRA", "LoRA with dropout"):
        assert steps[name]["kept_mib"] < steps[f"{name} of peft"]["kept_mib"]
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
    assert said in refused("training_step", *args)
