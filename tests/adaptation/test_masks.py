"""kora adapt for images with masks: from a folder to a model, a sentence and a page."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kora.adaptation import masks as module
from kora.adaptation.adapt import adapt
from kora.adaptation.layout import has_masks
from kora.adaptation.result import AdaptedMasks
from kora.analysis.pooled import mean_iou
from kora.runs.outcomes import read_outcomes
from kora.runs.results import read_results
from kora.training.batched_fit import Setting
from tests.support.segmentation import write_pair, write_pairs


def write_halves(folder: Path, count: int) -> None:
    """Images whose class changes at a column of their own."""
    for number in range(count):
        mask = np.zeros((48, 64), np.uint8)
        mask[:, 12 + 2 * number % 40 :] = 1
        write_pair(folder, f"p{number}", mask)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("masks")
    write_halves(place / "photos", 25)
    (place / "photos/classes.txt").write_text("left\nright\n")
    return place


@pytest.fixture(scope="module")
def result(work: Path) -> AdaptedMasks:
    with pytest.MonkeyPatch.context() as monkeypatch:
        cached = [one._replace(settings=(Setting(1e-2, 1e-2),)) for one in module.MASKS.cached]
        short = replace(module.MASKS, cached=cached, steps=(20, 20))
        monkeypatch.setattr(module, "MASKS", short)
        monkeypatch.setattr("kora.adaptation.call.USUAL_MINUTES", 0)
        found = adapt(work / "photos", out=work / "out", backbone="vit_nano")
    assert isinstance(found, AdaptedMasks)
    return found


@pytest.mark.runs
def test_the_best_by_validation_is_tested_once_beside_the_linear_probe(
    result: AdaptedMasks,
) -> None:
    trials = [read_results(p.parent) for p in result.folder.parent.glob("out_trials/*/*/*/r*.json")]
    best = max(trials, key=lambda run: run.metrics["best_val/miou"])
    assert result.strategy == best.strategy
    assert all(not any(k.startswith("test/") for k in run.metrics) for run in trials)
    tested = [read_results(p.parent) for p in result.folder.glob("*/seed0/*/results.json")]
    assert {run.strategy for run in tested} == {best.strategy, "LinearProbe"}
    outcomes = read_outcomes(result.run)
    assert outcomes is not None
    assert outcomes.areas is not None
    assert result.miou == pytest.approx(float(mean_iou(outcomes.areas.sum(axis=0))))
    assert result.interval[0] < result.miou < result.interval[1]


@pytest.mark.runs
def test_the_sentence_and_the_page_have_the_answer(result: AdaptedMasks) -> None:
    assert re.match(
        rf"{result.strategy} gives each pixel one of 2 classes with a mean IoU of [\d.]+ % on 5 "
        r"test images \(95 % interval [\d.]+ % to [\d.]+ %; the usual class of each place",
        result.sentence,
    )
    page = result.page.read_text(encoding="utf-8")
    assert result.sentence in page.replace("&#39;", "'")
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


@pytest.mark.runs
def test_the_model_runs_at_the_proportions_of_the_images(result: AdaptedMasks) -> None:
    assert result.model.backbone.size == (56, 72)  # 48 x 64, in whole patches of 8
    scores = result.model(torch.zeros(1, 3, 48, 64, dtype=torch.uint8))
    assert scores.shape == (1, 2, 48, 64)


@pytest.mark.runs
def test_a_dry_run_says_what_would_be_tried_and_trains_nothing(
    work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert adapt(work / "photos", out=work / "dry", backbone="vit_nano", dry_run=True) is None
    said = capfd.readouterr().out
    assert "16 images to train, 4 to validate, 5 to test (drawn here)" in said
    assert "LinearProbe-queries (a query for each class reads four levels), 3 fits" in said
    assert "LoRA (a linear head on four levels)" in said
    assert not list((work / "dry").glob("*/seed0"))


@pytest.mark.runs
def test_parts_by_any_of_their_names_train_validate_and_test(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("training", "validation", "testing")):
        write_halves(tmp_path / "photos" / name, 3 + number)
    assert adapt(tmp_path / "photos", out=tmp_path, backbone="vit_nano", dry_run=True) is None
    said = capfd.readouterr()
    assert "3 images to train, 4 to validate, 5 to test (of the folder)" in said.out
    assert "not used" not in said.err
    (tmp_path / "photos/testing").rename(tmp_path / "away")
    assert adapt(tmp_path / "photos", out=tmp_path, backbone="vit_nano", dry_run=True) is None
    assert "1 to validate, 4 to test (of the folder)" in capfd.readouterr().out


def test_masks_are_found_beside_images_and_in_parts(tmp_path: Path) -> None:
    write_pairs(tmp_path / "alone", ["a"])
    write_pairs(tmp_path / "parts/train", ["a"])
    (tmp_path / "classes/images").mkdir(parents=True)
    assert has_masks(tmp_path / "alone")
    assert has_masks(tmp_path / "parts")
    assert not has_masks(tmp_path / "classes")
