"""The benchmark of the composers, in its smallest form."""

from __future__ import annotations

from pathlib import Path

from tests.support.benchmarks import refused, written


def test_attention_over_depth_has_few_numbers_and_keeps_more_than_a_chain_of_mlps(
    tmp_path: Path,
) -> None:
    record, printed = written(
        "composers", tmp_path, "--nodes", "4", "--d_comp", "8", "--batch", "2", "--repeats", "1"
    )
    found = record["d_comp_widths"]["8"]
    assert found["ResidualSequential"]["numbers"] == 4 * 2 * (8 * 8 + 8)
    assert found["DepthAttention"]["numbers"] == 4 * 8
    assert found["Sum"]["numbers"] == found["Sum"]["mflop"] == 0
    assert found["DepthAttention"]["kept_mib"] > found["ResidualSequential"]["kept_mib"]
    assert "| DepthAttention | 32 |" in printed


def test_a_wrong_size_is_one_clear_error() -> None:
    assert "--d_comp [0]: expected 1 or more" in refused("composers", "--d_comp", "0")
