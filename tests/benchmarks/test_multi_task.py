"""The benchmark of several tasks runs in its smallest form: one pass serves them all."""

from __future__ import annotations

from pathlib import Path

from tests.support.benchmarks import written


def test_a_further_task_adds_its_own_weights_alone(tmp_path: Path) -> None:
    record, printed = written(
        "multi_task", tmp_path, "--model", "vit_nano", "--batch", "1", "--tasks", "1", "3",
        "--repeats", "1",
    )  # fmt: skip
    mib = {name: one["weights_mib"] for name, one in record["answers"].items()}
    assert "| 3, one pass (KoRA-side) |" in printed
    assert mib["3, LoRA models"] > 2.9 * mib["1, LoRA models"]
    assert mib["3, one pass (KoRA-side)"] < 1.4 * mib["1, one pass (KoRA-side)"]
