"""The benchmark of the feature cache runs in its smallest form, and what it counts is asserted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.benchmarks import refused, written_alone


@pytest.mark.slow
def test_cached_epochs_have_the_losses_of_images_and_read_what_is_counted(tmp_path: Path) -> None:
    small = ["--model", "vit_nano", "--images", "12", "--batch", "6", "--epochs", "3"]
    record, printed = written_alone("feature_cache", tmp_path, *small, "--repeats", "2")
    found = {(one["name"], one["reads"]): one for one in record["contenders"]}
    assert list(found) == [
        ("LoRA", "images"),
        ("LoRA, last 2 blocks", "images"),
        ("LoRA, last 2 blocks", "float32"),
        ("linear probe", "images"),
        ("linear probe", "float32"),
        ("KoRA-side", "images"),
        ("KoRA-side", "float32"),
        ("KoRA-side", "bfloat16"),
    ]
    for (name, reads), one in found.items():
        assert f"| {name} | {reads} |" in printed
        assert len(one["epoch_seconds"]) == len(one["lora / this"]) == 2
    nodes = 6 * (128 + 128 + 128 + 512)  # six blocks of qkv, proj, fc1, fc2
    assert found["linear probe", "float32"]["bytes_an_image"] == 4 * 128
    assert found["KoRA-side", "float32"]["bytes_an_image"] == 4 * (128 + nodes)
    assert found["KoRA-side", "bfloat16"]["bytes_an_image"] == 2 * (128 + nodes)
    assert found["LoRA, last 2 blocks", "float32"]["bytes_an_image"] == 4 * 128 * 65
    for key in (
        ("LoRA, last 2 blocks", "float32"),
        ("linear probe", "float32"),
        ("KoRA-side", "float32"),
    ):
        assert found[key]["largest loss difference"] <= 1e-4
        # No time is asserted but this one, which a busy machine does not turn round.
        assert found[key]["lora / this"][1] > 1
    assert record["machine"] in printed


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--images", "11"], "expected 12, 1, 2 and 1 or more"),
        (["--model", "vit_nanoo"], "--model: timm"),
    ],
)
def test_a_wrong_option_is_one_clear_error(args: list[str], said: str) -> None:
    assert said in refused("feature_cache", *args)
