"""The benchmark of attention's backward pass, in its smallest form."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.support import refused, written


def test_both_are_measured_in_turn_on_attention_alone_and_on_a_step(tmp_path: Path) -> None:
    record, printed = written(
        "attention_backward", tmp_path, "--batch", "8", "--tokens", "65", "26", "--repeats", "3"
    )
    for name in ("26 tokens", "65 tokens", "a step of LoRA at 70 pixels"):
        own, plain = record[name]["torch's own"], record[name]["plain products"]
        assert len(own["cpu seconds"]) == len(plain["cpu seconds"]) == 3
        ratio = "cpu seconds / torch's own"
        assert own[ratio] == [1, 1, 1]
        ratios = [a / b for a, b in zip(plain["cpu seconds"], own["cpu seconds"], strict=True)]
        assert plain[ratio][1:] == pytest.approx([min(ratios), max(ratios)])
        assert f"| {name} |" in printed


def test_no_tokens_are_one_clear_error() -> None:
    assert "--tokens [0]: expected 1 or more" in refused("attention_backward", "--tokens", "0")
