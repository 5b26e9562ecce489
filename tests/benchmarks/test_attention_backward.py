"""The benchmark of attention's backward pass, in its smallest form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.benchmarks.support import refused, written


@pytest.mark.skipif(
    not hasattr(torch.library, "get_kernel"), reason="this torch does not hand out its kernels"
)
def test_plain_products_are_faster_for_the_tokens_of_a_small_image(tmp_path: Path) -> None:
    record, printed = written(
        "attention_backward", tmp_path, "--batch", "8", "--tokens", "65", "--repeats", "5"
    )
    of_attention, of_step = record["65 tokens"], record["a step of LoRA at 70 pixels"]
    ratio, *_ = of_attention["plain products"]["cpu seconds / torch's own"]
    assert 0 < ratio < 1
    assert of_step["torch's own"]["cpu seconds / torch's own"] == [1, 1, 1]
    assert "| 65 tokens |" in printed


def test_no_tokens_are_one_clear_error() -> None:
    assert "--tokens [0]: expected 1 or more" in refused("attention_backward", "--tokens", "0")
