"""The benchmark of image loading runs in its smallest form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.benchmarks import refused

REPOSITORY = Path(__file__).resolve().parents[2]


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks" / "image_loading.py"), *args],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_all_paths_deliver_in_turn_and_the_ratios_are_those_of_a_round(
    tmp_path: Path, workers: str
) -> None:
    file = tmp_path / "loading.json"
    small = ["--images", "200", "--photos", "6", "--repeats", "2", "--seconds", "0.02"]
    done = bench(*small, "--workers", workers, "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    record = json.loads(file.read_text())
    peers = ["PIL per sample, resized to 224", "PIL per sample, native size"]
    assert {data: list(paths) for data, paths in record["data"].items()} == {
        "CIFAR-10": [*peers, "CIFAR"],
        "Tiny ImageNet": [*peers, "TinyImageNet, cache: false", "TinyImageNet"],
        "photographs of 375 x 500": [peers[0], "ImageFolder", "ImageFolder, cache: true"],
    }
    assert record["machine"] in done.stdout
    for data, paths in record["data"].items():
        for name, one in paths.items():
            assert f"| {data} | {name} |" in done.stdout
            assert all(len(numbers) == 2 and min(numbers) > 0 for numbers in one.values())
            usual = paths[peers[0]]["images/s"]
            ratios = [a / b for a, b in zip(one["images/s"], usual, strict=True)]
            assert one["times the usual path"] == pytest.approx(ratios)


@pytest.mark.parametrize("args", [("--images", "10"), ("--repeats", "0"), ("--workers", "-1")])
def test_a_number_out_of_range_is_one_clear_error(args: tuple[str, str]) -> None:
    assert f"{args[0]} {args[1]}: expected" in refused("image_loading", *args)
