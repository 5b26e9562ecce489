"""kora paper, over runs of the published protocol and honest ones that really ran."""

from __future__ import annotations

import csv
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from kora.analysis.one_class import f1_of_one_class
from kora.cli import main
from tests.support.cli import REPOSITORY, Outcome, kora, results
from tests.support.data_factory import write_cifar_archive, write_tiny_imagenet_zip

Capture = pytest.CaptureFixture[str]

SMALL = (
    *("--model.backbone.name", "vit_nano", "--model.backbone.image_size", "32"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
)
#: vit_nano has no classifier to keep.
PUBLISHED = (*SMALL, "--model.backbone.keep_classifier", "false", "--data.batch_size", "4")
AS_PUBLISHED = "configs/paper/as_published"
STAGE_1, STAGE_2 = (
    Path(f"runs/paper_table{n}_kora_dcomp4/KoRA-side/seed0/version_0") for n in (1, 2)
)
HONEST = Path("runs/tinyimagenet_transfer/KoRA-side/seed0/version_0")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with both data sets in their real layouts, and a run of each protocol on them."""
    folder = tmp_path_factory.mktemp("paper")
    shutil.copytree(REPOSITORY / "configs", folder / "configs")
    tiny = write_tiny_imagenet_zip(
        folder / "tiny.zip", classes=200, train_per_class=10, val_per_class=2
    )
    cifar = write_cifar_archive(
        folder / "cifar-100-python.tar.gz", variant=100, train_per_class=2, test_per_class=1
    )
    shutil.unpack_archive(tiny, folder / "data")
    shutil.unpack_archive(cifar, folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PL_GLOBAL_SEED", os.environ.get("PL_GLOBAL_SEED", "0"))
        main(["fit", "--config", f"{AS_PUBLISHED}/table2_kora_dcomp4.yaml", *PUBLISHED])
        main(
            ["fit", "--config", "configs/tinyimagenet_transfer.yaml", "--config",
             "configs/adapters/kora_side.yaml", *SMALL, "--source", "null",
             "--data.subset.fraction", "0.5", "--data.val_images", "200", "--model.head_lr", "0.01"]
        )  # fmt: skip
        yield folder


@pytest.fixture
def there(ran: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In that folder."""
    monkeypatch.chdir(ran)
    return ran


def paper(capfd: Capture, *args: str) -> Outcome:
    """What the command prints, each run of blanks as one."""
    found = kora(capfd, "paper", *args)
    return Outcome(found.code, " ".join(found.out.split()), found.err)


def test_before_any_run_it_prints_what_was_published_and_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    for table, words in (
        ("table1", "1.45 %"),
        ("table2", "71.04 %"),
        ("table3", "cannot both be in metres"),
        ("figure4", "0.76"),
    ):
        done = paper(capfd, table)
        assert done.code == 0, done.err
        assert words in done.out
        assert f"] kora grid --config configs/paper/{table}.yaml" in done.out
        assert "There is no folder runs here yet." in done.out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("table5",), "invalid choice: 'table5'"),
        (("table2", "--runs", "nowhere"), "--runs nowhere: no such folder"),
        (("table2", "--out", "file"), "--out file is a file; name a folder"),
    ],
)
def test_a_mistake_is_told(
    args: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    done = kora(capfd, "paper", *args)
    assert done.code == 2
    assert words in done.err


@pytest.mark.slow
def test_as_published_f1_follows_from_accuracy_and_the_audit_names_the_cause(there: Path) -> None:
    found = results(STAGE_2)
    accuracy, f1 = (found["metrics"][f"test/{name}"] for name in ("accuracy", "weighted_f1"))
    assert 0 < accuracy < 1, "else there is nothing to see"
    assert f"{f1:.6f}" == f"{f1_of_one_class(accuracy):.6f}"
    problems = " ".join(found["audit"]["problems"])
    assert "Training covers only 2 of 200 classes" in problems
    assert "The test split holds one class only" in problems
    assert "weighted F1 = 2a/(1+a)" in problems
    assert found["protocol"]["allow_degenerate"] is True
    assert found["protocol"]["subset"]["how"] == "first"
    assert found["audit"]["majority"]["accuracy"] == 1, "a predictor that sees nothing is right"


@pytest.mark.slow
def test_the_slips_of_the_notebook_are_repeated_and_recorded(there: Path) -> None:
    first, second = results(STAGE_1), results(STAGE_2)
    assert first["backbone"]["mean"] == [0.5071, 0.4867, 0.4408]  # CIFAR's
    assert second["backbone"]["mean"] == [0.485, 0.456, 0.406]  # ImageNet's
    assert first["backbone"]["sha256"] == second["backbone"]["sha256"]
    before, after = (
        load_file(run / "adapter/adapter_model.safetensors") for run in (STAGE_1, STAGE_2)
    )
    assert (before["adapter.readout.weight_DC"] == after["adapter.readout.weight_DC"]).all()
    assert second["parameters"]["trainable"] == second["parameters"]["head"] == 128 * 200 + 200
    assert results(HONEST)["backbone"].keys() == {"name", "weights", "sha256", "image_size"}


@pytest.mark.slow
def test_an_honest_run_on_the_same_data_has_no_such_identity(there: Path) -> None:
    found = results(HONEST)
    accuracy, f1 = (found["metrics"][f"test/{name}"] for name in ("accuracy", "weighted_f1"))
    assert accuracy > 0.03, "chance is 0.005"
    assert abs(f1 - f1_of_one_class(accuracy)) > 0.01
    assert found["audit"]["problems"] == []
    assert found["audit"]["splits"]["test"]["classes"] == 200
    assert found["protocol"]["data_sha256"] == results(STAGE_2)["protocol"]["data_sha256"]


@pytest.mark.slow
def test_without_allow_degenerate_the_published_protocol_is_refused(
    there: Path, capfd: Capture
) -> None:
    config = f"{AS_PUBLISHED}/table2_kora_dcomp4.yaml"
    refused = kora(
        capfd, "fit", "--config", config, *PUBLISHED, "--allow_degenerate", "false"
    )  # fmt: skip
    assert refused.code == 2
    assert "Training covers only 2 of 200 classes" in refused.err
    assert "set allow_degenerate: true" in " ".join(refused.err.split())


@pytest.mark.slow
def test_table_2_shows_published_measured_and_honest_side_by_side(
    there: Path, capfd: Capture
) -> None:
    done = paper(capfd, "table2", "--runs", "runs", "--out", "out")
    assert done.code == 0, done.err
    for words in (
        "to the digit, in 4 of 4 rows",
        "As published, here: F1 is 2a/(1+a) in 1 of 1 runs",
        "Honest runs: F1 is 2a/(1+a) in 0 of 1 runs",
        "always names the most frequent class of training, has an accuracy of 100.00 %",
        "The audit of 1 of 1 runs as published: Training covers only 2 of 200 classes",
        "kora fit --config configs/paper/as_published/table2_lora.yaml",
    ):
        assert words in done.out
    with Path("out/paper_table2.csv").open(encoding="utf-8") as file:
        rows = {(row["method"], row["metric"]): row for row in csv.DictReader(file)}
    row = rows["KoRA d_comp 4", "test/weighted_f1"]
    assert row["published"] == "0.9867"
    assert row["source"] == "KoRA paper (2025), table 2"
    assert float(row["as_published_mean"]) == results(STAGE_2)["metrics"]["test/weighted_f1"]
    honest = rows["KoRA-side d_comp 8", "test/accuracy"]
    assert float(honest["honest_mean"]) == results(HONEST)["metrics"]["test/accuracy"]
    assert honest["honest_runs"] == str(HONEST)
    markdown, latex = (
        Path(f"out/paper_table2.{kind}").read_text("utf-8") for kind in ("md", "tex")
    )
    assert "| KoRA d_comp 4 | accuracy | 97.37 % |" in markdown
    assert r"\toprule" in latex
    assert r"97.37 \%" in latex


@pytest.mark.slow
def test_figure_4_shows_that_the_side_network_is_the_frozen_backbone(
    there: Path, capfd: Capture
) -> None:
    missing = paper(capfd, "figure4")
    assert f"kora cka {STAGE_1} --features cls" in missing.out
    read = kora(capfd, "cka", STAGE_1, "--features", "cls", "--batch_size", "10")
    assert read.code == 0, read.err
    done = paper(capfd, "figure4")
    assert done.code == 0, done.err
    assert "is that of the frozen backbone in 1 of 1 runs" in done.out
    assert f"kora cka {STAGE_1}" not in done.out
    assert "KoRA d_comp 4 biased 32 0.76 0." in done.out


def a_part_of(archive: Path, part: Path) -> Path:
    """Every fourth image of each class for training, and of all for validation."""
    annotations = "tiny-imagenet-200/val/val_annotations.txt"
    with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(part, "w") as some:
        seen: Counter[str] = Counter()
        kept = set()
        for name in sorted(whole.namelist()):
            folder, _, file = name.rpartition("/")
            if not name.endswith(".JPEG") or seen[folder] % 4 == 0:
                kept.add(file)
                if name not in (annotations, f"{folder}/"):
                    some.writestr(name, whole.read(name))
            seen[folder] += 1
        rows = whole.read(annotations).decode().splitlines(keepends=True)
        some.writestr(annotations, "".join(row for row in rows if row.split("\t")[0] in kept))
    return part


def figures(run: dict[str, Any]) -> tuple[float, float]:
    return run["metrics"]["test/accuracy"], run["metrics"]["test/weighted_f1"]


@pytest.mark.slow
@pytest.mark.shared_data
def test_on_the_real_images_it_is_the_same(
    there: Path, shared_data: Path, tmp_path: Path, capfd: Capture
) -> None:
    part = a_part_of(shared_data / "tiny-imagenet-200-small.zip", tmp_path / "part.zip")
    real = (
        *("--data.archive", str(part)),
        *("--data.root", str(tmp_path / "real"), "--runs_dir", str(tmp_path / "runs")),
    )
    # 25 of 3,800 images, 13 a class in the first classes.
    done = kora(
        capfd, "fit", "--config", f"{AS_PUBLISHED}/table2_kora_dcomp4.yaml", *PUBLISHED, *real,
        "--source", "null", "--model.adapter_trainable", "true", "--data.subset.fraction", "0.0066",
    )  # fmt: skip
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "runs").glob("paper_table2_kora_dcomp4/*/seed0/version_0")
    found = results(folder)
    accuracy, f1 = figures(found)
    assert 0 < accuracy < 1
    assert f"{f1:.6f}" == f"{f1_of_one_class(accuracy):.6f}"
    assert found["audit"]["splits"]["train"]["classes"] == 2
    assert "Training covers only 2 of 200 classes" in " ".join(found["audit"]["problems"])
    honest = kora(
        capfd, "fit", "--config", "configs/tinyimagenet_transfer.yaml", *SMALL, *real,
        "--source", "null", "--data.subset.fraction", "0.1", "--model.adapter", "LinearProbe",
        "--model.head_lr", "0.01", "--data.batch_size", "50",
    )  # fmt: skip
    assert honest.code == 0, honest.err
    (folder,) = (tmp_path / "runs").glob("tinyimagenet_transfer/*/seed0/version_0")
    accuracy, f1 = figures(results(folder))
    assert accuracy > 0.01, "chance is 0.005"
    assert abs(f1 - f1_of_one_class(accuracy)) > 0.005
