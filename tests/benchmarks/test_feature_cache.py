"""The benchmark of the feature cache runs in its smallest form, and what it counts is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks" / "feature_cache.py"), *args],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip


@pytest.mark.slow
def test_cached_epochs_have_the_losses_of_images_and_read_what_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "cache.json"
    small = ["--model", "vit_nano", "--images", "12", "--batch", "6", "--epochs", "3"]
    done = bench(*small, "--repeats", "2", "--json", str(file))
    assert done.returncode == 0, done.stderr
    record = json.loads(file.read_text())
    found = {(one["name"], one["reads"]): one for one in record["contenders"]}
    assert list(found) == [
        ("LoRA", "images"),
        ("linear probe", "images"),
        ("linear probe", "float32"),
        ("KoRA-side", "images"),
        ("KoRA-side", "float32"),
        ("KoRA-side", "bfloat16"),
    ]
    for (name, reads), one in found.items():
        assert f"| {name} | {reads} |" in done.stdout
        assert len(one["epoch_seconds"]) == len(one["lora / this"]) == 2
    nodes = 6 * (128 + 128 + 128 + 512)  # six blocks of qkv, proj, fc1, fc2
    assert found["linear probe", "float32"]["bytes_an_image"] == 4 * 128
    assert found["KoRA-side", "float32"]["bytes_an_image"] == 4 * (128 + nodes)
    assert found["KoRA-side", "bfloat16"]["bytes_an_image"] == 2 * (128 + nodes)
    for key in (("linear probe", "float32"), ("KoRA-side", "float32")):
        assert found[key]["largest loss difference"] <= 1e-4
        # No time is asserted but this one, which a busy machine does not turn round.
        assert found[key]["lora / this"][1] > 1
    assert record["machine"] in done.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--images", "11"], "expected 12, 1, 2 and 1 or more"),
        (["--model", "vit_nanoo"], "--model: timm"),
    ],
)
def test_a_wrong_option_is_one_clear_error(args: list[str], said: str) -> None:
    done = bench(*args)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
