"""The benchmark of merged adapters runs in its smallest form: merged, each is timm's model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.support import refused, written


def test_merged_adapters_cost_the_operations_of_the_bare_model(tmp_path: Path) -> None:
    record, printed = written(
        "merged", tmp_path, "--model", "vit_nano", "--batch", "2", "--repeats", "1"
    )
    gflop = {name: one["gflop"] for name, one in record["predictions"].items()}
    for name in ("LoRA", "DoRA", "SSF"):
        assert f"| {name}, merged |" in printed
        assert gflop[f"{name}, merged"] == pytest.approx(gflop["timm's model"], rel=1e-6)
    assert gflop["LoRA"] > 1.03 * gflop["timm's model"]


def test_a_wrong_model_is_one_clear_error() -> None:
    assert "--model: timm" in refused("merged", "--model", "vit_nanoo")
