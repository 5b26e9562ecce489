"""Claims about the README.md of an adapter folder: every number in it is that of the run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from datamodules.recipe import ImageRecipe
from kora.adapters import FullFineTune, KoRA, LoRA, PaperForm
from kora.console.formats import format_metric
from kora.export.model_card import CARD, write_card
from tests.support.adapter_factory import (
    CLASSES,
    edit_record,
    kicked,
    tiny_in_file,
    write_fitted,
    write_folder,
)
from tests.support.cli import REPOSITORY, fit_in, here, kora, results, tiny_config, write_config
from tests.support.detectors import NAMES, detector
from tests.support.documents import blocks, run_bash
from tests.support.kept import kept
from tests.support.picture_factory import scene

pytestmark = pytest.mark.runs

__all__ = ["here"]

Capture = pytest.CaptureFixture[str]


def shipped_config() -> dict[str, object]:
    """A tiny run on the weights that ship with the package."""
    config = tiny_config()
    config["model"]["init_args"]["backbone"] = {"name": "vit_nano", "image_size": 32}
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a run of it."""
    folder = tmp_path_factory.mktemp("trained")
    return fit_in(folder, "--config", write_config(folder / "own.yaml", shipped_config()))


@pytest.fixture
def run(trained: Path, here: Path) -> Path:
    """A copy of that run, in the working directory."""
    shutil.copytree(trained, here, dirs_exist_ok=True)
    return here / "runs/tiny/LoRA/seed0/version_0"


def test_a_run_leaves_a_card_with_its_own_numbers(run: Path, here: Path) -> None:
    record, card = results(run), (run / "adapter" / CARD).read_text()
    accuracy = format_metric("test/accuracy", record["metrics"]["test/accuracy"])
    (row,) = [line for line in card.splitlines() if line.startswith("| test/accuracy ")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "test/accuracy",
        accuracy,
        *(format_metric("a/accuracy", b["accuracy"]) for b in record["baselines"].values()),
    ]
    assert "| chance | majority class |" in card
    assert record["backbone"]["sha256"] in card
    assert record["protocol"]["data_sha256"] in card
    assert f"{record['protocol']['sizes']['train']} train" in card
    assert "One seed (n = 1)" in card
    assert f"{record['parameters']['trainable']:,} numbers were trained" in card
    assert "apache-2.0 (as timm has it)" in card

    (python,) = [block.text for block in blocks(card) if block.language == "python"]
    assert len(python.strip().splitlines()) == 4
    (here / "lines.py").write_text(f"{python}print(type(model).__name__)\n")
    scene(1, (80, 60)).save(here / "photo.jpg")
    (here / "kora").symlink_to(Path(__file__).parents[2] / "kora")
    (here / "datamodules").symlink_to(Path(__file__).parents[2] / "datamodules")
    with kept(REPOSITORY, here / "tools"):
        printed = run_bash("python lines.py", here, code=REPOSITORY, tools=here / "tools")
    assert re.search(r"^.+: \d+%\nAdaptedModel$", printed, re.MULTILINE)


def test_the_card_counts_the_seeds_that_are_finished(run: Path, here: Path, capfd: Capture) -> None:
    assert kora(capfd, "fit", "--config", here / "own.yaml", "--seed_everything", "1").code == 0
    card = (here / "runs/tiny/LoRA/seed1/version_0/adapter" / CARD).read_text()
    values = [
        results(here / f"runs/tiny/LoRA/seed{s}/version_0")["metrics"]["test/accuracy"]
        for s in (0, 1)
    ]
    assert "those of seed 1. Over the 2 seeds" in card
    assert f"mean of test/accuracy is {format_metric('accuracy', sum(values) / 2)}" in card
    other = here / "runs/tiny/LoRA/seed1/version_0"
    shutil.copytree(other / "adapter", here / "copy")  # as for the hub
    assert "Over the 2 seeds" in write_card(here / "copy", run=other).read_text()


def test_an_export_leaves_the_card_as_it_is(run: Path, capfd: Capture) -> None:
    (run / "adapter" / CARD).write_text("my own words")
    assert kora(capfd, "export", run, "--format", "timm").code == 0
    assert (run / "adapter" / CARD).read_text() == "my own words"


def test_a_run_that_is_killed_before_its_results_has_its_card(
    here: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path, result: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kora.training.record.write_results", killed)
    config = write_config(here / "own.yaml", shipped_config())
    assert kora(capfd, "fit", "--config", config).code == 130
    run = here / "runs/tiny/LoRA/seed0/version_0"
    assert not (run / "results.json").exists()
    assert "| test/accuracy |" in (run / "adapter" / CARD).read_text()


def test_a_folder_without_its_run_says_what_it_knows(tmp_path: Path) -> None:
    task = kicked(LoRA(2), tiny_in_file("tiny_vit", tmp_path))
    folder = write_folder(tmp_path / "adapter", task, metrics={"test/accuracy": 0.5})
    card = write_card(folder).read_text()
    assert "| test/accuracy | 50.00 % |" in card
    assert "licence of the weights | unknown" in card
    assert ", ".join(CLASSES) in card
    assert "Data and protocol" not in card
    assert "Other weights are refused" in card


def test_the_card_of_a_detector_says_how_to_get_boxes(tmp_path: Path) -> None:
    recipe = ImageRecipe("contain", (24, 40))
    folder = write_fitted(tmp_path / "adapter", detector(), recipe)
    edit_record(folder, class_names=NAMES, metrics={"test/map": 0.25, "test/map_50": 0.5})
    card = write_card(folder).read_text()
    head = card.partition("\n---")[0]
    assert "pipeline_tag: object-detection" in head
    assert "- map\n- map_50\n" in head
    assert 'for found in model.detect("photo.jpg"):' in card
    assert "scaled to fit inside, and filled up with grey, at 24x40 pixels" in card
    assert f"| test/map | {format_metric('test/map', 0.25)} |" in card


def test_a_name_in_a_card_is_a_name(tmp_path: Path) -> None:
    task = kicked(LoRA(2), tiny_in_file("tiny_vit", tmp_path))
    names = ["<script>alert(1)</script>", "a\n# b", *CLASSES[2:]]
    card = write_card(write_folder(tmp_path / 'say "a"', task, class_names=names)).read_text()
    assert "&lt;script>alert(1)&lt;/script>, a # b, cat" in card
    assert "<script" not in card
    assert 'say \\"a\\"")' in card


def test_a_card_of_full_fine_tuning_does_not_speak_of_frozen_weights(tmp_path: Path) -> None:
    card = write_card(write_folder(tmp_path / "adapter", kicked(FullFineTune()))).read_text()
    assert "holds all weights as they were afterwards" in card
    assert "frozen" not in card
    assert "refused" not in card


def test_the_record_of_a_run_holds_what_the_model_needs(run: Path, capfd: Capture) -> None:
    record = json.loads((run / "adapter/adapter_config.json").read_text())
    assert record["adapter"]["class_path"] == "kora.adapters.LoRA"
    assert record["adapter"]["init_args"]["rank"] == 2
    assert len(record["backbone"]["sha256"]) == 64
    assert len(record["class_names"]) == 12
    resizes = [s for s in record["preprocessing"]["steps"] if s["step"] == "resize"]
    assert [(s["fit"], s["size"]) for s in resizes] == [("crop", [32, 32])]
    assert record["metrics"]["test/accuracy"] == results(run)["metrics"]["test/accuracy"]
    assert record["kora_version"]
    for form in ("timm", "peft"):
        done = kora(capfd, "export", run, "--format", form)
        assert done.code == 0, done.err
        assert "Largest difference of outputs on the probe images" in done.out
        assert (run / "export" / form / "export.json").is_file()
    refused = kora(capfd, "export", run, "--format", "timm", "--tolerance", "0")
    assert refused.code == 2
    assert "expected a share above 0" in refused.err


def test_what_cannot_be_exported_is_told_in_one_line(tmp_path: Path, capfd: Capture) -> None:
    folder = write_folder(tmp_path / "run" / "adapter", kicked(KoRA(PaperForm(2), 4)))
    for form in ("timm", "peft"):
        done = kora(capfd, "export", folder, "--format", form)
        assert done.code == 2
        assert "kora: error: " in done.err
        assert "Traceback" not in done.err
        assert not (tmp_path / "run" / "export" / form).exists()
