"""The benchmark of growth runs in its smallest form: what is counted grows as it must."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.benchmarks import refused, written

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    small = ["--model", "vit_nano", "--points", "3", "--repeats", "1"]
    return written("growth", tmp_path_factory.mktemp("growth"), *small)[0]


@pytest.fixture(scope="module")
def lines(record: dict[str, Any]) -> Any:
    return record["lines"]


NAMES = ("LoRA", "KoRA", "KoRA-side")


def test_every_line_has_its_points_and_a_slope(record: dict[str, Any]) -> None:
    assert list(record["lines"]) == ["images", "sites", "rank", "d_comp", "patches a side"]
    for grows, steps in record["lines"].items():
        assert list(steps) == list(NAMES)
        for name, line in steps.items():
            assert {len(values) for values in line.values()} == {3}
            assert min(line["time"]) > 0
            assert record["slopes"][grows][name].keys() == {"time", "kept_mib", "gflop"}


@pytest.mark.parametrize("name", NAMES)
def test_kept_bytes_and_operations_are_linear_in_images(name: str, lines: Any) -> None:
    line = lines["images"][name]
    assert line["size"] == [1, 2, 4]
    for what in ("kept_mib", "gflop"):
        one, two, four = line[what]
        # What does not grow with images: an update of each weight, and a norm of each parameter.
        assert four - two == pytest.approx(2 * (two - one), rel=0.02), what


@pytest.mark.parametrize("name", NAMES)
def test_nothing_grows_with_the_square_of_the_number_of_sites(name: str, lines: Any) -> None:
    line = lines["sites"][name]
    assert line["size"] == [8, 16, 24]
    for what in ("kept_mib", "gflop"):
        few, more, most = line[what]
        assert few <= more <= most
        assert most - more <= 1.02 * (more - few) + 1e-3 * few, what


def test_kora_with_its_chain_is_linear_in_sites_too(lines: Any) -> None:
    for what in ("kept_mib", "gflop"):
        few, more, most = lines["sites"]["KoRA"][what]
        assert most - more == pytest.approx(more - few, rel=0.05, abs=1e-4)


def test_a_side_network_keeps_no_token_of_the_image(lines: Any) -> None:
    few, _, many = lines["patches a side"]["KoRA-side"]["kept_mib"]
    assert many == pytest.approx(few, rel=0.01)


def test_lora_keeps_nothing_for_the_width_of_a_composition_that_it_has_not(lines: Any) -> None:
    kept = lines["d_comp"]["LoRA"]["kept_mib"]
    assert max(kept) == pytest.approx(min(kept))
    assert lines["d_comp"]["KoRA"]["kept_mib"][-1] < 1.2 * kept[0]


def test_a_wrong_option_is_one_clear_error() -> None:
    assert "--model: timm" in refused("growth", "--model", "vit_nanoo")
    assert "invalid choice" in refused("growth", "--points", "1")
