"""What a finished run leaves in W&B, read back from the files of real offline runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kora.loggers.wandb_record import columns, confusion_rows
from kora.loggers.wandb_runs import RESULTS_KEY
from kora.runs.results import read_results
from tests.support.cli import depth_config, started, tiny_config, write_config
from tests.support.comparisons import run
from tests.support.wandb_files import (
    completed,
    config_of,
    history_of,
    offline_folder,
    records,
    summary_of,
    without_login,
)

RUN = Path("runs/tiny/LoRA/seed0/version_0")
SOURCE = Path("runs/tiny_source/LoRA/seed0/version_0")


def ran(folder: Path, config: dict[str, Any]) -> Path:
    """`kora fit` of a config with W&B offline; the folder that it ran in."""
    write_config(folder / "tiny.yaml", config)
    args, environment = ("fit", "--config", "tiny.yaml"), without_login(folder)
    log = folder.with_name(f"{folder.name}.log")
    with started(*args, log=log, folder=folder, environment=environment) as process:
        assert process.wait() == 0, log.read_text()
    said = log.read_text()
    assert "not everything could be logged" not in said
    assert "WARNING" not in said
    return folder


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a source stage, three epochs long."""
    folder = tmp_path_factory.mktemp("classified")
    config = tiny_config(pictures=True)
    config["trainer"]["max_epochs"] = 3
    source = tiny_config(experiment="tiny_source")
    write_config(folder / "source.yaml", source)
    return ran(folder, {**config, "source": "source.yaml"})


def of_kind(folder: Path, kind: str) -> list[Any]:
    found = (record for record in records(folder) if record.WhichOneof("record_type") == kind)
    return [getattr(record, kind) for record in found]


def logged_table(folder: Path, key: str) -> tuple[dict[str, Any], dict[str, Path]]:
    """A table as W&B shows it, and the files of the artifact that it and its pictures lie in."""
    (artifact,) = [it for it in of_kind(folder, "artifact") if it.name.endswith(f"-{key}")]
    files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    return json.loads(files[f"{key}.table.json"].read_text(encoding="utf-8")), files


# -- columns and cells ---------------------------------------------------------------------------


def test_columns_hold_numbers_only_and_leave_out_what_was_not_measured() -> None:
    result = run("LoRA", 0, 0.5, peak_memory_mib=None).result
    found = columns(result, {"train": 12.34567})
    assert found["speed/train_images_per_second"] == 12.346
    assert found["parameters/trainable"] == result.parameters["trainable"]
    assert found["speed/fit_seconds"] == result.seconds["fit"]
    assert not {"speed/peak_memory_mib", "test/accuracy"} & found.keys()
    assert all(isinstance(value, int | float) for value in found.values())


def test_all_cells_of_a_small_confusion_matrix_are_drawn() -> None:
    assert confusion_rows(np.array([[3, 0], [1, 2]]), ["a", "b"]) == [
        ("a", "a", 3),
        ("a", "b", 0),
        ("b", "a", 1),
        ("b", "b", 2),
    ]


def test_a_large_confusion_matrix_keeps_its_largest_cells() -> None:
    names = [f"class {k}" for k in range(200)]
    counts = np.zeros((200, 200), np.int64)
    np.fill_diagonal(counts, 50)
    counts[3, 7] = 4
    rows = confusion_rows(counts, names)
    assert len(rows) == 201
    assert ("class 3", "class 7", 4) in rows
    crowded = confusion_rows(counts + 1, names)
    assert len(crowded) == 10_000
    assert ("class 3", "class 7", 5) in crowded
    assert sum(number > 5 for _, _, number in crowded) == 200


# -- a classification ----------------------------------------------------------------------------


@pytest.mark.slow
def test_runs_are_grouped_by_experiment_and_strategy_and_told_apart_by_stage(
    classified: Path,
) -> None:
    (own,) = of_kind(offline_folder(classified / RUN), "run")
    assert (own.run_group, own.job_type) == ("tiny/LoRA", "fit")
    assert (own.display_name, list(own.tags)) == ("LoRA-seed0", ["LoRA"])
    (before,) = of_kind(offline_folder(classified / SOURCE), "run")
    assert (before.run_group, before.job_type) == ("tiny_source/LoRA", "source")
    config = config_of(offline_folder(classified / RUN))
    assert (config["experiment"], config["strategy"], config["seed"]) == ("tiny", "LoRA", 0)


@pytest.mark.slow
def test_validation_has_epochs_and_extremes_and_a_test_has_no_best(classified: Path) -> None:
    folder = offline_folder(classified / RUN)
    defined = {metric.name: metric for metric in of_kind(folder, "metric") if metric.name}
    logged = {name for row in history_of(folder) for name in row}
    of_stage = {name for name in logged if name.startswith(("train/", "val/", "test/"))}
    assert {"train/loss", "val/accuracy", "val/loss", "test/accuracy"} <= of_stage
    assert of_stage <= defined.keys()
    for name in of_stage:
        metric, stage = defined[name], name.partition("/")[0]
        axis = "trainer/global_step" if stage == "train" else "epoch"
        assert metric.step_metric == axis
        extremes = metric.summary.min, metric.summary.max, metric.summary.last
        assert extremes == (stage == "val",) * 3
    rows = [row for row in history_of(folder) if "val/accuracy" in row]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    summary = summary_of(folder)
    values = [row["val/loss"] for row in rows]
    assert summary["val/loss"] == {"min": min(values), "max": max(values), "last": values[-1]}
    assert isinstance(summary["test/accuracy"], float)


@pytest.mark.slow
def test_the_summary_has_the_columns_of_parameters_and_speed(classified: Path) -> None:
    result = read_results(classified / RUN)
    summary = summary_of(offline_folder(classified / RUN))
    for key in ("trainable", "total", "percent", "head"):
        assert summary[f"parameters/{key}"] == result.parameters[key]
    for phase in ("fit", "test"):
        assert summary[f"speed/{phase}_seconds"] == result.seconds[phase]
    assert summary["speed/peak_memory_mib"] == result.peak_memory_mib
    assert summary["best_val/accuracy"] == result.metrics["best_val/accuracy"]
    # 48 images less 12 for validation, in three epochs, within the time of fit.
    assert summary["speed/train_images_per_second"] > 3 * 36 / result.seconds["fit"]
    assert summary["speed/test_images_per_second"] > 24 / result.seconds["test"] / 2


@pytest.mark.slow
def test_the_adapter_is_one_artifact_with_what_it_is_and_how_good(classified: Path) -> None:
    models = [
        artifact
        for artifact in of_kind(offline_folder(classified / RUN), "artifact")
        if artifact.type == "model"
    ]
    (model,) = models
    result = read_results(classified / RUN)
    assert model.name == "tiny-LoRA-seed0"
    metadata = json.loads(model.metadata)
    assert metadata["strategy"] == "LoRA"
    assert metadata["backbone"] == "vit_nano"
    assert metadata["backbone_sha256"] == result.backbone["sha256"]
    assert metadata["metrics"] == result.metrics
    adapter = classified / RUN / "adapter"
    there = {path.name: path for path in adapter.iterdir()}
    assert {entry.path for entry in model.manifest.contents} == there.keys()
    for entry in model.manifest.contents:  # as they lie there, not copies in the home folder
        assert Path(entry.local_path) == there[entry.path].resolve()
        assert entry.size == there[entry.path].stat().st_size


@pytest.mark.slow
def test_confusions_and_samples_are_panels(classified: Path) -> None:
    folder = offline_folder(classified / RUN)
    logged = {name.partition("/")[0] for row in history_of(folder) for name in row}
    assert {"confusion_matrix_table", "test_samples", "pictures"} <= logged
    cells, _ = logged_table(folder, "confusion_matrix_table")
    assert cells["columns"] == ["Actual", "Predicted", "nPredictions"]
    assert len(cells["data"]) == 12 * 12
    assert sum(row[2] for row in cells["data"]) == 24
    right = sum(row[2] for row in cells["data"] if row[0] == row[1])
    accuracy = read_results(classified / RUN).metrics["test/accuracy"]
    assert right / 24 == pytest.approx(accuracy)
    samples, files = logged_table(folder, "test_samples")
    assert samples["columns"] == ["image", "label", "prediction", "confidence", "right"]
    assert len(samples["data"]) == 16
    for image, label, prediction, confidence, was_right in samples["data"]:
        with Image.open(files[image["path"]]) as picture:
            assert picture.size == (32, 32)
        assert was_right == (label == prediction)
        assert 1 / 12 <= confidence <= 1
    shown = list(folder.glob("files/media/images/pictures/*.png"))
    assert {path.name.rsplit("_", 2)[0] for path in shown} == {
        "learning_curves", "confusion_matrix", "test_samples",
    }  # fmt: skip


@pytest.mark.slow
def test_the_whole_record_is_in_the_config_and_its_files_go_along(classified: Path) -> None:
    folder = offline_folder(classified / RUN)
    text = config_of(folder)[RESULTS_KEY]
    record = json.loads((classified / RUN / "results.json").read_text())
    assert record.pop("record_sha256")  # of the file alone
    assert json.loads(text) == record
    named = {item.path for files in of_kind(folder, "files") for item in files.files}
    for name in ("results.json", "metrics.csv", "test_outcomes.safetensors"):
        assert name in named
        copy, original = folder / "files" / name, classified / RUN / name
        assert not copy.is_symlink()
        assert hashlib.sha256(copy.read_bytes()).digest() == (
            hashlib.sha256(original.read_bytes()).digest()
        )


@pytest.mark.slow
def test_the_adapter_stays_here_where_that_is_asked_for(tmp_path: Path) -> None:
    ran(tmp_path, tiny_config(wandb={"upload_adapter": False}))
    folder = offline_folder(tmp_path / RUN)
    assert not [it for it in of_kind(folder, "artifact") if it.type == "model"]
    assert RESULTS_KEY in config_of(folder)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["test", "validate"])
def test_a_test_or_validation_alone_has_its_own_job_type_and_record(
    classified: Path, stage: str
) -> None:
    options = {
        "--config": RUN / "config.yaml",
        "--ckpt_path": RUN / "checkpoints/best.ckpt",
        "--experiment": f"alone_{stage}",
    }
    words = [str(word) for option in options.items() for word in option]
    done = completed([stage, *words], classified, without_login(classified))
    assert done.returncode == 0, done.stdout
    made = classified / f"runs/alone_{stage}/LoRA/seed0/version_0"
    folder = offline_folder(made)
    (own,) = of_kind(folder, "run")
    assert own.job_type == stage
    assert json.loads(config_of(folder)[RESULTS_KEY])["stage"] == stage
    assert not [it for it in of_kind(folder, "artifact") if it.type == "model"]


# -- depth ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_depth_run_has_its_columns_its_adapter_and_samples_in_metres(tmp_path: Path) -> None:
    ran(tmp_path, depth_config())
    made = tmp_path / "runs/tiny_depth/LoRA/seed0/version_0"
    folder = offline_folder(made)
    result = read_results(made)
    (own,) = of_kind(folder, "run")
    assert own.run_group == "tiny_depth/LoRA"
    summary = summary_of(folder)
    assert summary["best_val/rmse_m"] == result.metrics["best_val/rmse_m"]
    assert summary["val/rmse_m"]["min"] <= summary["val/rmse_m"]["max"]
    assert summary["speed/test_images_per_second"] > 0
    (model,) = [it for it in of_kind(folder, "artifact") if it.type == "model"]
    assert json.loads(model.metadata)["metrics"] == result.metrics
    samples, files = logged_table(folder, "test_samples")
    assert samples["columns"] == ["image", "truth", "prediction", "rmse_m"]
    assert len(samples["data"]) == 4
    for *pictures, rmse_m in samples["data"]:
        assert 0 < rmse_m < 20
        assert all(files[picture["path"]].is_file() for picture in pictures)
    assert json.loads(config_of(folder)[RESULTS_KEY])["metrics"] == result.metrics
