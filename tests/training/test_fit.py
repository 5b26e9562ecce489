"""kora fit, test, validate, predict: what a run leaves behind."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.support.armed import run_fresh
from tests.support.cli import fit_in, kora, results, started, tiny_config, wait_for, write_config
from tests.support.data_factory import (
    write_cifar_archive,
    write_class_folders,
    write_tiny_imagenet_zip,
)

pytestmark = [pytest.mark.runs, pytest.mark.fits]

Capture = pytest.CaptureFixture[str]
RUN = Path("runs/tiny/LoRA/seed0/version_0")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of tiny.yaml, and what that printed."""
    folder = tmp_path_factory.mktemp("finished")
    write_config(folder / "tiny.yaml", tiny_config(pictures=True))
    return fit_in(folder, "--config", "tiny.yaml")


@pytest.fixture
def run(finished: Path, here: Path) -> Path:
    """A copy of that run, in `here`."""
    shutil.copytree(finished / "runs", here / "runs")
    return here / RUN


def test_a_run_is_one_folder_with_everything(run: Path) -> None:
    expected = {
        "config.yaml", "metrics.csv", "splits.json", "results.json", "checkpoints/best.ckpt",
        "checkpoints/last.ckpt", "checkpoints/best.ckpt.sha256", "checkpoints/last.ckpt.sha256",
        "adapter/README.md", "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json", "learning_curves.png", "confusion_matrix.png",
        "test_samples.png", "test_outcomes.safetensors", "test_outcomes.safetensors.sha256",
    }  # fmt: skip
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert found == expected


def test_without_pictures_a_run_has_all_else(run: Path, here: Path, capfd: Capture) -> None:
    done = kora(capfd, "fit", "--config", "tiny.yaml", "--pictures", "false", "--experiment", "no")
    assert done.code == 0, done.err
    other = here / "runs/no/LoRA/seed0/version_0"
    names = [{path.name for path in one.iterdir()} for one in (run, other)]
    assert {Path(name).suffix for name in names[0] - names[1]} == {".png"}
    assert names[1] < names[0]
    assert results(other)["metrics"] == results(run)["metrics"]
    assert "Pictures:" not in done.out


def test_a_run_says_after_which_step_its_tested_weights_were_and_logs_training_accuracy(
    run: Path,
) -> None:
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    assert results(run)["tested_step"] == best["global_step"] > 0
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    both = [row for row in rows if row["val/accuracy"]]
    assert both
    assert all(0 <= float(row["train/accuracy"]) <= 1 for row in both)
    assert sum(bool(row["train/accuracy"]) for row in rows) == len(both)


def test_a_run_that_leaves_the_test_out_says_so_and_stands_beside_no_tested_one(
    run: Path, here: Path, capfd: Capture
) -> None:
    config = tiny_config(leave_out_test=True)
    config["trainer"]["callbacks"] = [{"class_path": "tests.support.slowly.NoTest"}]
    write_config(here / "untested.yaml", config)
    outcome = kora(capfd, "fit", "--config", "untested.yaml", "--seed_everything", "1")
    assert outcome.code == 0, outcome.err
    assert "best_val/accuracy" in outcome.out
    assert "0 of 24 test" in outcome.out
    untested = here / "runs/tiny/LoRA/seed1/version_0"
    assert results(untested)["metrics"].keys() == {"best_val/accuracy"}
    assert results(untested)["protocol"]["evaluated_images"] == {"test": 0}
    assert not (untested / "test_outcomes.safetensors").exists()
    compared = kora(capfd, "compare", "runs/tiny")
    assert compared.code == 2
    assert "protocol.evaluated_images.test: " in compared.err


def test_the_record_names_everything_that_the_result_depends_on(run: Path) -> None:
    record = results(run)
    assert record["strategy"] == "LoRA"
    assert record["seed"] == 0
    assert record["finished"] is True
    assert 0 <= record["metrics"]["test/accuracy"] <= 1
    assert record["baselines"]["chance"]["accuracy"] == pytest.approx(1 / 12)
    assert record["protocol"]["sizes"] == {"train": 36, "val": 12, "test": 24}
    assert record["parameters"]["trainable"] < record["parameters"]["total"]
    assert record["seconds"].keys() == {"fit", "test"}
    assert record["peak_memory_mib"] > 0
    assert record["backbone"]["name"] == "vit_nano"
    assert len(record["backbone"]["sha256"]) == 64
    assert {"torch", "lightning", "timm"} <= record["versions"].keys()


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_an_evaluation_of_some_images_says_so(run: Path, capfd: Capture, command: str) -> None:
    split, limit = ("test", 18) if command == "fit" else ("val", 6)
    args = ["--config", str(run / "config.yaml"), "--data.eval_batch_size", "6"]
    args += [f"--trainer.limit_{split}_batches", str(limit // 6)]
    if command == "validate":
        args += ["--ckpt_path", str(run / "checkpoints/best.ckpt")]
    outcome = kora(capfd, command, *args)
    assert outcome.code == 0, outcome.err
    assert f"{limit} of {2 * 12 if split == 'test' else 12} {split}" in outcome.out
    other = run.with_name("version_1")
    assert results(other)["protocol"]["evaluated_images"] == {split: limit}
    assert "evaluated_images" not in results(run)["protocol"]
    shown = kora(capfd, "compare", other, "--metric", f"{split}/accuracy")
    assert f"{limit} of " in shown.out


def test_checkpoint_and_adapter_leave_the_frozen_backbone_out(run: Path) -> None:
    checkpoint = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    keys = set(checkpoint["state_dict"])
    assert keys == set(load_file(run / "adapter/adapter_model.safetensors"))
    assert all(key.startswith(("adapter.", "head.")) for key in keys)
    assert (run / "checkpoints/best.ckpt").stat().st_size < 1.5e6  # the backbone alone has 4.8 MB
    assert checkpoint["kora"]["sha256"] == results(run)["backbone"]["sha256"]


def test_the_saved_config_runs_again_as_it_is_in_a_folder_of_its_own(
    run: Path, capfd: Capture
) -> None:
    before = (run / "results.json").read_bytes()
    assert kora(capfd, "fit", "--config", run / "config.yaml").code == 0
    assert (run / "results.json").read_bytes() == before
    again = run.with_name("version_1")
    assert results(again)["metrics"] == results(run)["metrics"]
    first, second = (yaml.safe_load((r / "config.yaml").read_text()) for r in (run, again))
    assert first == second


def test_the_summary_stands_beside_chance_and_majority(finished: Path) -> None:
    out = (finished / "out.txt").read_text()
    assert "chance" in out
    assert "majority" in out
    assert "test/accuracy" in out
    assert "parameters train" in out
    assert out.index("Audit of the splits") < out.index("parameters train")


def test_kora_test_repeats_the_test_of_the_best_checkpoint(run: Path, capfd: Capture) -> None:
    outcome = kora(
        capfd, "test", "--config", "tiny.yaml", "--ckpt_path", run / "checkpoints/best.ckpt"
    )
    assert outcome.code == 0, outcome.err
    record = results(run.with_name("version_1"))
    assert record["stage"] == "test"
    wanted = {k: v for k, v in results(run)["metrics"].items() if k.startswith("test/")}
    assert record["metrics"] == wanted


def test_validate_records_the_validation_metrics(run: Path, capfd: Capture) -> None:
    best = run / "checkpoints/best.ckpt"
    assert kora(capfd, "validate", "--config", "tiny.yaml", "--ckpt_path", best).code == 0
    record = results(run.with_name("version_1"))
    assert record["metrics"]["val/accuracy"] == results(run)["metrics"]["best_val/accuracy"]


def test_predict_writes_one_row_an_image_that_agrees_with_the_accuracy(
    run: Path, capfd: Capture
) -> None:
    best = run / "checkpoints/best.ckpt"
    assert kora(capfd, "predict", "--config", "tiny.yaml", "--ckpt_path", best).code == 0
    with (run.with_name("version_1") / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(24))
    right = sum(row["label"] == row["prediction"] for row in rows) / len(rows)
    assert right == pytest.approx(results(run)["metrics"]["test/accuracy"], abs=1e-6)


def test_a_checkpoint_of_other_arguments_is_refused_and_leaves_no_folder(
    run: Path, capfd: Capture
) -> None:
    best = run / "checkpoints/best.ckpt"
    other = ("--model.adapter.alpha", "4")
    outcome = kora(capfd, "test", "--config", "tiny.yaml", *other, "--ckpt_path", best)
    assert outcome.code == 2
    assert "alpha=1.0 there, 4.0 here" in outcome.err
    assert [folder.name for folder in run.parent.iterdir()] == ["version_0"]


@pytest.mark.parametrize("untested", [False, True])
def test_best_checkpoint_is_chosen_by_validation_and_tested(
    here: Path, capfd: Capture, untested: bool
) -> None:
    config = tiny_config(leave_out_test=untested)
    config["trainer"]["max_epochs"] = 3
    own = {"filename": "own", "every_n_epochs": 2, "save_top_k": -1}  # of the second epoch
    config["trainer"]["callbacks"] = [{"class_path": "ModelCheckpoint", "init_args": own}]
    write_config(here / "three.yaml", config)
    assert kora(capfd, "fit", "--config", "three.yaml").code == 0
    run = here / RUN
    with (run / "metrics.csv").open() as file:
        seen = [float(row["val/accuracy"]) for row in csv.DictReader(file) if row["val/accuracy"]]
    assert len(seen) == 3
    assert results(run)["metrics"]["best_val/accuracy"] == pytest.approx(max(seen))
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] == seen.index(max(seen))
    assert results(run).get("tested_step") == (None if untested else best["global_step"])
    stored = load_file(run / "adapter/adapter_model.safetensors")
    assert all(torch.equal(stored[k], v) for k, v in best["state_dict"].items())


def test_without_validation_the_last_state_is_tested(here: Path, capfd: Capture) -> None:
    config = tiny_config()
    config["data"]["init_args"] |= {"val_images": 0}
    write_config(here / "no_val.yaml", config)
    outcome = kora(capfd, "fit", "--config", "no_val.yaml")
    assert outcome.code == 0, outcome.err
    assert "no model selection" in outcome.out
    record = results(here / RUN)
    assert "test/accuracy" in record["metrics"]
    last = torch.load(here / RUN / "checkpoints/last.ckpt", weights_only=True)
    assert record["tested_step"] == last["global_step"]


def test_fast_dev_run_leaves_nothing_behind(here: Path, capfd: Capture) -> None:
    assert kora(capfd, "fit", "--config", "tiny.yaml", "--trainer.fast_dev_run", "true").code == 0
    assert not (here / "runs").exists()


def test_a_degenerate_split_stops_the_run_before_training(here: Path, capfd: Capture) -> None:
    config = tiny_config()
    config["data"]["init_args"]["subset"] = {"fraction": 0.1, "how": "first"}
    write_config(here / "degenerate.yaml", config)
    outcome = kora(capfd, "fit", "--config", "degenerate.yaml")
    assert outcome.code == 2
    assert "Training covers only" in outcome.err
    assert "allow_degenerate" in outcome.err
    assert not list(here.rglob("results.json"))
    allowed = kora(capfd, "fit", "--config", "degenerate.yaml", "--allow_degenerate", "true")
    assert allowed.code == 0, allowed.err


def test_a_new_strategy_is_one_file_and_no_edit_elsewhere(here: Path, capfd: Capture) -> None:
    outcome = kora(
        capfd, "fit", "--config", "tiny.yaml", "--model.adapter", "tests.support.toy.ScalePooled"
    )
    assert outcome.code == 0, outcome.err
    record = results(here / "runs/tiny/ScalePooled/seed0/version_0")
    assert record["parameters"]["trainable"] - record["parameters"]["head"] == 128
    stored = load_file(
        here / "runs/tiny/ScalePooled/seed0/version_0/adapter/adapter_model.safetensors"
    )
    assert not torch.equal(stored["adapter.scale_D"], torch.ones(128))


@pytest.mark.parametrize("optimizer", ["torch.optim.SGD", "timm.optim.LaProp"])
def test_any_torch_or_timm_optimiser_trains(here: Path, capfd: Capture, optimizer: str) -> None:
    args = ("--model.optimizer", optimizer, "--model.optimizer.lr", "0.01")
    outcome = kora(capfd, "fit", "--config", "tiny.yaml", *args)
    assert outcome.code == 0, outcome.err
    saved = yaml.safe_load((here / RUN / "config.yaml").read_text())
    assert optimizer.rpartition(".")[2] in saved["model"]["init_args"]["optimizer"]["class_path"]


@pytest.mark.parametrize("val_images", [12, 0])
def test_the_last_checkpoint_is_of_the_last_epoch_also_where_nothing_got_better(
    here: Path, capfd: Capture, val_images: int
) -> None:
    still = ("--model.optimizer", "AdamW", "--model.optimizer.lr", "0")
    args = (*still, "--trainer.max_epochs", "3", "--data.val_images", str(val_images))
    assert kora(capfd, "fit", "--config", "tiny.yaml", *args).code == 0
    checkpoints = here / RUN / "checkpoints"
    epoch = {
        path.stem: torch.load(path, weights_only=True)["epoch"]
        for path in checkpoints.glob("*.ckpt")
    }
    assert epoch == {"best": 0 if val_images else 2, "last": 2}


def test_an_interrupted_run_says_where_it_lies_and_how_to_go_on(here: Path, capfd: Capture) -> None:
    args = ("--trainer.max_epochs", "100000", "--model.schedule", "constant")
    last = here / RUN / "checkpoints/last.ckpt"
    with started("fit", "--config", "tiny.yaml", *args, log=here / "out.txt") as process:
        wait_for(last, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 128 + signal.SIGINT
    text = (here / "out.txt").read_text()
    assert "Traceback" not in text
    told = next(line for line in text.splitlines() if line.startswith("kora: interrupted"))
    assert str(RUN) in told
    command = shlex.split(text[text.index("kora fit ") :].splitlines()[0])
    assert command[-1] == str(last.relative_to(here))
    reached = torch.load(last, weights_only=True)["resume"]["epoch"]
    resumed = kora(capfd, *command[1:], "--trainer.max_epochs", str(reached + 1))
    assert resumed.code == 0, resumed.err
    assert torch.load(last, weights_only=True)["epoch"] == reached  # in the same folder


@pytest.mark.parametrize("adapter", ["LinearProbe", "FullFineTune", "KoRA"])
def test_every_strategy_runs_through_the_command_line(
    here: Path, capfd: Capture, adapter: str
) -> None:
    outcome = kora(capfd, "fit", "--config", "tiny.yaml", "--model.adapter", adapter)
    assert outcome.code == 0, outcome.err
    assert results(here / f"runs/tiny/{adapter}/seed0/version_0")["strategy"] == adapter


def test_mixed_image_sizes_train_in_bfloat16(here: Path, capfd: Capture) -> None:
    write_class_folders(here / "photos")
    config = tiny_config()
    config["trainer"]["precision"] = "bf16-mixed"
    config["data"] = {
        "class_path": "datamodules.ImageFolder",
        "init_args": {
            "root": "photos", "image_size": [40, 56], "num_workers": 2, "val_images": 6,
            "augment": "flip_crop",
        },
    }  # fmt: skip
    write_config(here / "photos.yaml", config)
    outcome = kora(capfd, "fit", "--config", "photos.yaml")
    assert outcome.code == 0, outcome.err
    assert results(here / RUN)["protocol"]["dataset"] == "ImageFolder"


def test_a_test_split_of_one_class_runs_where_f1_is_left_out(here: Path, capfd: Capture) -> None:
    config = tiny_config()
    config["data"]["class_path"] = "tests.support.toy.OneTestClass"
    write_config(here / "one.yaml", config)
    refused = kora(capfd, "fit", "--config", "one.yaml")
    assert refused.code == 2
    assert "model.leave_out: [macro_f1, weighted_f1]" in refused.err
    without = ("--model.leave_out", "[macro_f1, weighted_f1]")
    outcome = kora(capfd, "fit", "--config", "one.yaml", *without)
    assert outcome.code == 0, outcome.err
    assert "F1 is left out" in " ".join(outcome.out.split())
    (record,) = (json.loads(path.read_text()) for path in here.rglob("results.json"))
    measured = {name for name in record["metrics"] if name.startswith("test/")}
    assert measured == {"test/accuracy", "test/loss", "test/top5_accuracy"}
    assert set(record["baselines"]["majority"]) == {"accuracy"}
    mistyped = kora(capfd, "fit", "--config", "one.yaml", "--model.leave_out", "[f1]")
    assert mistyped.code == 2
    assert "leave_out has 'f1'" in mistyped.err


def test_official_archives_run_end_to_end(here: Path, capfd: Capture) -> None:
    cifar, config = write_cifar_archive(here / "c.tar.gz", variant=100), tiny_config()
    config["data"] = {
        "class_path": "datamodules.CIFAR",
        "init_args": {"variant": 100, "archive": str(cifar), "val_images": 100},
    }
    config["experiment"] = "source"
    write_config(here / "cifar.yaml", config)
    archive, config = write_tiny_imagenet_zip(here / "t.zip", classes=6), tiny_config()
    config["data"] = {
        "class_path": "datamodules.TinyImageNet",
        "init_args": {
            "archive": str(archive), "classes": "0:6", "subset": {"per_class": 5}, "val_images": 6,
        },
    }  # fmt: skip
    write_config(here / "tiny_imagenet.yaml", {**config, "source": "cifar.yaml"})
    outcome = kora(capfd, "fit", "--config", "tiny_imagenet.yaml")
    assert outcome.code == 0, outcome.err
    record = results(here / RUN)
    assert record["protocol"]["sizes"] == {"train": 30, "val": 6, "test": 18}
    assert record["protocol"]["official_split"]["test"] == "val"
    assert record["source"]["experiment"] == "source"


@pytest.mark.slow
def test_two_processes_train_as_one_run(here: Path) -> None:
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--pictures", "true")
    code, said = run_fresh(here, "fit", "--config", "tiny.yaml", *two)
    assert code == 0, said
    assert [folder.name for folder in (here / RUN).parent.iterdir()] == ["version_0"]
    record = results(here / RUN)
    assert record["protocol"]["sizes"]["test"] == 24
    assert (here / RUN / "confusion_matrix.png").is_file()


def test_a_name_in_brackets_is_printed_as_it_is(here: Path, capfd: Capture) -> None:
    done = kora(capfd, "fit", "--config", "tiny.yaml", "--experiment", "[x]")
    assert "Run folder: runs/[x]/LoRA/seed0/version_0" in done.out
    write_class_folders(here / "photos", classes=("[b]cat", "[red]dog"), sizes=((32, 32),))
    config = tiny_config()
    config["data"] = {
        "class_path": "datamodules.ImageFolder",
        "init_args": {"root": "photos", "image_size": 32, "num_workers": 0, "val_images": 3},
    }
    told = kora(capfd, "data", "describe", "--config", write_config(here / "photos.yaml", config))
    assert "classes: [b]cat, [red]dog" in told.out
    assert "[red]dog'" in told.out
