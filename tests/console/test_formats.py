"""How metrics and baselines are shown."""

import pytest

from kora.console.formats import (
    baseline_name,
    duration,
    format_metric,
    is_better_higher,
    is_rate,
    named_metric,
    short_name,
)

ERRORS = ("abs_rel", "sq_rel", "rmse_m", "rmse_log", "log10", "silog", "loss", "skipped_images")


def test_rates_are_shown_in_per_cent_and_the_rest_with_four_digits() -> None:
    assert format_metric("test/accuracy", 0.7104) == "71.04 %"
    assert format_metric("test/top5_accuracy", 1.0) == "100.00 %"
    assert format_metric("test/rmse_m", 0.44912) == "0.4491"
    assert format_metric("test/rmse_m", 0.42) == "0.4200"  # of the same length as its neighbours
    assert format_metric("test/silog", 1234.4) == "1234"
    assert format_metric("test/skipped_images", 2.0) == "2"
    assert format_metric("test/loss", float("nan")) == "nan"
    assert format_metric("test/loss", None) == "–"
    assert all(is_rate(f"test/{name}") for name in ("delta1", "delta2", "delta3"))
    assert not any(is_rate(f"test/{name}") for name in ERRORS)
    assert all(is_rate(f"test/{name}") for name in ("map", "map_50", "map_small", "mar_100"))
    assert not is_rate("baseline/mean_map/rmse_m"), "the mean depth map"
    assert format_metric("val/delta3", 0.98765) == "98.77 %"


def test_which_way_is_better_is_told_by_the_name() -> None:
    assert all(is_better_higher(f"val/{name}") for name in ("auroc", "dice", "kappa", "psnr", "r2"))
    assert not any(is_better_higher(f"test/{name}") for name in ERRORS)
    assert named_metric("val/mcc") == "val/mcc"
    assert named_metric("val/rmse_m") == "val/rmse_m (lower is better)"


def test_a_baseline_has_a_name_for_readers() -> None:
    names = [baseline_name(kind) for kind in ("majority", "mean_map", "some_other")]
    assert names == ["majority class", "mean depth map", "some other"]


def test_a_long_name_is_cut_where_it_is_too_long() -> None:
    assert short_name("construction--barrier--fence", 18) == "construction--bar…"
    assert short_name("goldfish, Carassius auratus", 18) == "goldfish"
    assert short_name("a cat", 5) == "a cat"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "1 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (7200, "2.0 h")],
)
def test_durations_are_told_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
