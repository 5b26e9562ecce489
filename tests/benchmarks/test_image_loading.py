"""The benchmark of image loading runs in its smallest form."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.benchmarks import refused, written_alone


@pytest.fixture
def _on_every_core_again() -> Iterator[None]:
    """The benchmark keeps its process on one."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    yield
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("_on_every_core_again")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("workers", "repeats"), [("0", 2), ("1", 1)])
def test_all_paths_deliver_in_turn_and_the_ratios_are_those_of_a_round(
    tmp_path: Path, workers: str, repeats: int
) -> None:
    small = ["--images", "200", "--photos", "6", "--seconds", "0.02", "--workers", workers]
    record, printed = written_alone("image_loading", tmp_path, *small, "--repeats", str(repeats))
    peers = ["PIL per sample, resized to 224", "PIL per sample, native size"]
    assert {data: list(paths) for data, paths in record["data"].items()} == {
        "CIFAR-10": [*peers, "CIFAR"],
        "Tiny ImageNet": [*peers, "TinyImageNet, cache: false", "TinyImageNet"],
        "photographs of 375 x 500": [peers[0], "ImageFolder", "ImageFolder, cache: true"],
    }
    for data, paths in record["data"].items():
        for name, one in paths.items():
            assert f"| {data} | {name} |" in printed
            assert all(len(numbers) == repeats and min(numbers) > 0 for numbers in one.values())
            usual = paths[peers[0]]["images/s"]
            ratios = [a / b for a, b in zip(one["images/s"], usual, strict=True)]
            assert one["times the usual path"] == pytest.approx(ratios)


@pytest.mark.parametrize("args", [("--images", "10"), ("--repeats", "0"), ("--workers", "-1")])
def test_a_number_out_of_range_is_one_clear_error(args: tuple[str, str]) -> None:
    assert f"{args[0]} {args[1]}: expected" in refused("image_loading", *args)
