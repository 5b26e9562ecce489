"""The benchmark of merged adapters runs in its smallest form: merged, each is timm's model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.benchmarks import refused, written


def test_merged_adapters_cost_the_bare_model_less_the_tokens_that_nobody_reads(
    tmp_path: Path,
) -> None:
    record, printed = written(
        "merged", tmp_path, "--model", "vit_nano", "--batch", "2", "--repeats", "1"
    )
    gflop = {name: one["gflop"] for name, one in record["predictions"].items()}
    # proj, fc1 and fc2 of the last block for 64 patches of 2 images;
    # see tests/backbone/test_last_block.py.
    unread = 2 * 2 * 64 * 9 * 128**2 / 1e9
    for name in ("LoRA", "DoRA", "SSF"):
        assert f"| {name}, merged |" in printed
        assert gflop[f"{name}, merged"] == pytest.approx(gflop["timm's model"] - unread, rel=1e-6)
    assert gflop["LoRA"] > 1.03 * gflop["LoRA, merged"]


def test_a_wrong_model_is_one_clear_error() -> None:
    assert "--model: timm" in refused("merged", "--model", "vit_nanoo")
