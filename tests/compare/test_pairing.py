"""Runs are compared image by image where both kept what they said, and why not is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from kora.analysis.pooled import SCORES, mean_iou, pooled_difference
from kora.analysis.statistics import crossed_bootstrap
from kora.compare.command import Comparison, compare
from kora.compare.verdict import Difference
from kora.runs.outcomes import OUTCOMES_NAME, Outcomes, read_outcomes, write_outcomes
from kora.runs.results import Run
from tests.support.compare_factory import IMAGES, five_strategies, run_on_images
from tests.support.comparisons import depth, run
from tests.support.detections import detections, kept_of, measured, moved
from tests.support.segmentation import areas


def right(share: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(IMAGES) < share


def difference(result: Comparison, name: str) -> Difference:
    (found,) = (group.difference for group in result.groups if group.name == name)
    assert found is not None
    return found


def test_p_of_one_seed_is_mcnemars_and_its_interval_is_over_images_alone(tmp_path: Path) -> None:
    mine, theirs = right(0.7, 1), right(0.4, 2)
    runs = [
        run_on_images(tmp_path, "LoRA", 0, mine),
        run_on_images(tmp_path, "LinearProbe", 0, theirs),
    ]
    found = difference(compare(runs), "LoRA")
    gained, lost = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
    assert found.p == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
    assert found.half_width is None
    assert found.bootstrap is not None
    # The normal interval of a mean over 100 images, which the bootstrap comes near.
    each = mine.astype(float) - theirs
    half = 1.96 * each.std() / IMAGES**0.5
    assert found.bootstrap == pytest.approx((each.mean() - half, each.mean() + half), abs=0.02)
    assert found.images == IMAGES


def test_the_bootstrap_is_over_common_seeds_and_all_images(tmp_path: Path) -> None:
    probe = [right(0.4, 10 + k) for k in range(3)]
    lora = [right(0.7, 20 + k) for k in range(4)]
    runs = [run_on_images(tmp_path, "LinearProbe", k, r) for k, r in enumerate(probe)]
    runs += [run_on_images(tmp_path, "LoRA", k, r) for k, r in enumerate(lora)]
    found = difference(compare(runs), "LoRA")
    expected = np.stack(lora[:3]).astype(float) - np.stack(probe)
    assert found.n == 3
    assert found.bootstrap == crossed_bootstrap(expected)
    assert found.mean == pytest.approx(expected.mean())


def test_p_values_are_corrected_over_the_strategies_compared(tmp_path: Path) -> None:
    result = compare(five_strategies(tmp_path))
    found = [group.difference for group in result.groups if group.difference is not None]
    ordered = sorted((d.p, d.p_holm) for d in found if d.p is not None and d.p_holm is not None)
    assert len(ordered) == 4
    assert ordered[0][1] == pytest.approx(4 * ordered[0][0])
    assert all(holm >= p for p, holm in ordered)
    assert any("Holm for 4 comparisons" in note for note in result.notes)


def test_depth_is_paired_by_the_metric_of_each_image(tmp_path: Path) -> None:
    runs = []
    for strategy, shift in (("LinearProbe", 0.1), ("KoRA", 0.0)):
        for seed in range(2):
            values = np.random.default_rng(seed).random(40).astype(np.float32) + shift
            made = depth(strategy, seed, float(values.mean()))
            folder = tmp_path / made.folder
            write_outcomes(folder, Outcomes(np.arange(40), {"rmse_m": values}))
            runs.append(Run(folder, made.result))
    found = difference(compare(runs), "KoRA")
    assert found.p == pytest.approx(2**-39), "all 40 images say the same"
    assert found.bootstrap == pytest.approx((-0.1, -0.1), abs=1e-6)


def test_the_table_shows_interval_and_p(tmp_path: Path) -> None:
    heads, rows = compare(five_strategies(tmp_path)).cells()
    best = dict(zip(heads, rows[0], strict=True))
    assert best["bootstrap 95 %"].startswith("[+")
    assert best["p (Holm)"] == "< 0.001"


def without(file: Path) -> None:
    file.unlink()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def of_other_images(file: Path) -> None:
    kept = read_outcomes(file.parent)
    assert kept is not None
    write_outcomes(file.parent, replace(kept, index=kept.index + 1))


def of_another_test(file: Path) -> None:
    kept = read_outcomes(file.parent)
    assert kept is not None
    columns = {**kept.columns, "prediction": kept.columns["label"]}
    write_outcomes(file.parent, Outcomes(kept.index, columns))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (without, f"LoRA/seed0/version_0: no {OUTCOMES_NAME}"),
        (cut, "is damaged"),
        (of_other_images, "was tested on other images or labels than the other runs"),
        (of_another_test, "is of another test"),
    ],
)
def test_what_cannot_be_paired_by_image_is_told_and_the_rest_compared(
    harm: object, words: str, tmp_path: Path
) -> None:
    runs = five_strategies(tmp_path, seeds=2)
    assert callable(harm)
    harm(tmp_path / f"runs/fewshot/LoRA/seed0/version_0/{OUTCOMES_NAME}")
    result = compare(runs)
    assert any(words in note for note in result.notes), result.notes
    assert difference(result, "LoRA").p is None
    assert difference(result, "LoRA").half_width is not None, "seeds are compared all the same"
    assert difference(result, "KoRA").p is not None


def test_a_metric_that_is_no_mean_over_images_has_neither(tmp_path: Path) -> None:
    result = compare(five_strategies(tmp_path), metric="test/loss")
    assert [note for note in result.notes if "not a mean over the recorded outcomes" in note]
    assert difference(result, "LoRA").p is None
    assert "p (Holm)" not in result.cells()[0]


def test_runs_without_a_folder_are_compared_by_seed_alone() -> None:
    found = difference(compare([run("LoRA", 0, 0.5), run("LinearProbe", 0, 0.4)]), "LoRA")
    assert found == Difference(1, pytest.approx(0.1), None)


def test_runs_of_earlier_versions_get_one_word_together() -> None:
    runs = [run(strategy, k, 0.5) for strategy in ("LoRA", "KoRA", "LinearProbe") for k in (0, 1)]
    (note,) = (note for note in compare(runs).notes if OUTCOMES_NAME in note)
    assert " and 5 more: no test_outcomes" in note


def test_miou_is_compared_by_areas_summed_over_drawn_images(tmp_path: Path) -> None:
    shares = (("LinearProbe", 0.6), ("LoRA", 0.8))  # of the same true areas
    kept = {name: areas(np.random.default_rng(0), share) for name, share in shares}
    runs = []
    for name, of_seeds in kept.items():
        for seed, table in enumerate(of_seeds):
            one = run(name, seed, 0.5, metrics={"test/miou": float(mean_iou(table.sum(axis=0)))})
            folder = tmp_path / name / str(seed)
            folder.mkdir(parents=True)
            columns = dict(zip(("overlap", "predicted", "true"), table.swapaxes(0, 1), strict=True))
            write_outcomes(folder, Outcomes(np.arange(len(table)), columns))
            runs.append(Run(folder, one.result))
    result = compare(runs)
    assert result.metric == "test/miou"
    found = difference(result, "LoRA")
    expected = pooled_difference(kept["LoRA"], kept["LinearProbe"], SCORES["miou"])
    assert (found.bootstrap, found.p) == (expected.bootstrap, expected.p)
    assert any("exchanged on random images" in note for note in result.notes)


def with_boxes(tmp_path: Path, noise: Mapping[str, float]) -> list[Run]:
    """Runs of detection whose boxes are off by some pixels, on 40 images of the same truth."""
    runs = []
    for name, pixels in noise.items():
        for seed in range(2):
            predictions, truths = detections(7, images=40, noise=0)
            generator = torch.Generator().manual_seed(seed)
            for found in predictions:
                found["boxes"] = moved(found["boxes"], pixels, generator)
            metrics = measured(predictions, truths)
            value = float(metrics.compute()["map"])
            folder = tmp_path / name / str(seed)
            folder.mkdir(parents=True)
            write_outcomes(folder, kept_of(metrics))
            runs.append(Run(folder, run(name, seed, 0.5, metrics={"test/map": value}).result))
    return runs


def test_map_is_compared_by_the_boxes_of_drawn_images(tmp_path: Path) -> None:
    result = compare(with_boxes(tmp_path, {"LinearProbe": 8, "LoRA": 4}))
    assert result.metric == "test/map"
    found = difference(result, "LoRA")
    assert found.p == pytest.approx(1 / 2001), "no exchange of the two is as extreme"
    assert found.bootstrap is not None
    assert 0 < found.bootstrap[0] < found.mean < found.bootstrap[1]
    assert any("over 2,000 draws" in note for note in result.notes)
    assert result.groups[0].name == "LoRA", "more is better"


def test_boxes_of_another_truth_or_of_another_test_are_not_compared(tmp_path: Path) -> None:
    runs = with_boxes(tmp_path, {"LinearProbe": 8, "LoRA": 8})
    kept = read_outcomes(runs[0].folder)
    assert kept is not None
    for name, words in (("box_true", "on other images or labels"), ("box_hits", "of another test")):
        changed = {**kept.columns, name: kept.columns[name] // 2}
        write_outcomes(runs[0].folder, Outcomes(kept.index, changed))
        notes = compare(runs).notes
        assert any(words in note for note in notes), notes
