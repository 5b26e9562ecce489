"""Depth through the real command line: scenes that ship with the package, and NYU's two layouts."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from PIL import Image

from tests.support.cli import Outcome, depth_config, fit_in, kora, results, write_config
from tests.support.depth_factory import write_frame_folders, write_labelled, write_splits

pytestmark = pytest.mark.runs

Capture = pytest.CaptureFixture[str]


def nyu(root: Path, **options: Any) -> dict[str, Any]:
    arguments = {"root": str(root), "val_images": 2, "batch_size": 3, "num_workers": 0}
    return {"class_path": "datamodules.NYUDepthV2", "init_args": {**arguments, **options}}


@pytest.fixture
def depth(here: Path) -> Path:
    write_config(here / "depth.yaml", depth_config())
    return here


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two epochs, and what that printed."""
    folder = tmp_path_factory.mktemp("trained")
    write_config(folder / "depth.yaml", depth_config(pictures=True))
    return fit_in(folder, "--config", "depth.yaml", "--trainer.max_epochs", "2")


@pytest.fixture
def fitted(trained: Path, depth: Path) -> Path:
    """A copy of that run, in `depth`."""
    shutil.copytree(trained / "runs", depth / "runs")
    return depth


def fit(capfd: Capture, *args: str | Path) -> Outcome:
    outcome = kora(capfd, "fit", *args)
    assert outcome.code == 0, outcome.err
    return outcome


def the_run(folder: Path, strategy: str = "LoRA") -> Path:
    (run,) = folder.glob(f"runs/tiny_depth/{strategy}/seed0/version_*")
    return run


def test_fit_leaves_a_record_with_protocol_baselines_and_pictures(trained: Path) -> None:
    out, run = (trained / "out.txt").read_text(), the_run(trained)
    record = results(run)
    assert record["protocol"]["evaluation"] == {
        "split": "test",
        "crop": "none",
        "min_depth_m": 0.001,
        "max_depth_m": 10.0,
        "average": "image",
        "align": "none",
        "flip_tta": False,
    }
    assert set(record["baselines"]) == {"mean_depth", "mean_map"}
    for name in ("abs_rel", "sq_rel", "rmse_m", "rmse_log", "log10", "silog", "delta1", "delta3"):
        assert record["metrics"][f"test/{name}"] >= 0
        assert record["baselines"]["mean_map"][name] >= 0
    assert record["metrics"]["best_val/rmse_m"] > 0
    assert record["audit"]["splits"]["train"]["of_images"] == 36
    assert "Evaluation: split test, no crop, 0.001 to 10 m" in " ".join(out.split())
    assert "mean depth map" in out
    for name in ("test_depth.png", "learning_curves.png", "val_depth/epoch_000.png"):
        with Image.open(run / name) as picture:
            assert min(picture.size) > 200, name
    # Each epoch leaves a picture of its own, and training changes it.
    first, second = (run / f"val_depth/epoch_00{i}.png" for i in (0, 1))
    assert first.read_bytes() != second.read_bytes()
    assert len(list((run / "val_depth").iterdir())) == 2


def test_the_checkpoint_of_the_least_error_is_tested(fitted: Path, capfd: Capture) -> None:
    run = the_run(fitted)
    again = kora(
        capfd, "test", "--config", run / "config.yaml", "--ckpt_path", run / "checkpoints/best.ckpt"
    )
    assert again.code == 0, again.err
    tested = run.with_name("version_1")
    assert results(tested)["metrics"]["test/rmse_m"] == results(run)["metrics"]["test/rmse_m"]
    assert results(tested)["baselines"] == results(run)["baselines"]
    validated = kora(
        capfd,
        "validate",
        "--config",
        run / "config.yaml",
        "--ckpt_path",
        run / "checkpoints/best.ckpt",
    )
    assert validated.code == 0, validated.err
    record = results(run.with_name("version_2"))
    assert record["protocol"]["evaluation"]["split"] == "val"
    assert record["metrics"]["val/rmse_m"] == pytest.approx(
        results(run)["metrics"]["best_val/rmse_m"]
    )
    assert set(record["baselines"]) == {"mean_depth", "mean_map"}


def test_predict_writes_depth_in_metres_for_every_test_image(fitted: Path, capfd: Capture) -> None:
    run = the_run(fitted)
    ckpt = run / "checkpoints/best.ckpt"
    outcome = kora(capfd, "predict", "--config", run / "config.yaml", "--ckpt_path", ckpt)
    assert outcome.code == 0, outcome.err
    with h5py.File(run.with_name("version_1") / "predictions.h5") as file:
        assert file["depth_m"].shape == (24, 32, 32)
        assert file["depth_m"].attrs["unit"] == "m"
        assert np.array_equal(file["index"][:], np.arange(24))
        assert 0.001 <= file["depth_m"][:].min() <= file["depth_m"][:].max() <= 10


def test_what_the_head_cannot_see_is_said_and_the_dense_form_suggested(
    depth: Path, capfd: Capture
) -> None:
    config = depth_config()
    said = {}
    tokens = {"readout": {"class_path": "kora.adapters.TokenReadout"}}
    for name, pool, extra in (("KoRA", "mean", {}), ("KoRA-tokens", "tokens", tokens)):
        form = {"class_path": "kora.adapters.PaperForm", "init_args": {"rank": 2, "pool": pool}}
        config["model"]["init_args"]["adapter"] = {
            "class_path": "kora.adapters.KoRA",
            "init_args": {"node_form": form, "d_comp": 4, **extra},
        }
        write_config(depth / "kora.yaml", config)
        with warnings.catch_warnings(record=True) as caught:
            fit(capfd, "--config", "kora.yaml")
        said[name] = " ".join(str(warning.message) for warning in caught)
        assert the_run(depth, name).is_dir()
    assert "KoRA: 29,228 trainable numbers do not influence the loss" in said["KoRA"]
    assert "configs/adapters/kora_tokens.yaml" in said["KoRA"]
    assert "do not influence" not in said["KoRA-tokens"]


def test_an_adapter_of_a_classification_is_carried_over_to_depth(
    depth: Path, capfd: Capture
) -> None:
    """Table 3 in small: adapt to classes, then to depth, in one command."""
    fit_both = write_config(depth / "both.yaml", depth_config(source="tiny.yaml"))
    fit(capfd, "--config", fit_both)
    record = results(the_run(depth))
    assert record["source"]["experiment"] == "tiny"
    assert "runs/tiny/LoRA/seed0/version_0/adapter" in record["source"]["folder"]
    fit(capfd, "--config", fit_both, "--seed_everything", "0")
    assert not (depth / "runs/tiny/LoRA/seed0/version_1").exists()  # trained once, used twice


def test_describe_shows_range_share_histogram_and_protocol(depth: Path, capfd: Capture) -> None:
    outcome = kora(capfd, "data", "describe", "--config", "depth.yaml")
    assert outcome.code == 0, outcome.err
    for text in ("measured", "100.0%", "Measured pixels by depth", "evaluation"):
        assert text in outcome.out
    record = json.loads(kora(capfd, "data", "describe", "--config", "depth.yaml", "--json").out)
    assert record["audit"]["splits"]["test"]["valid_share"] == 1.0
    assert record["protocol"]["evaluation"]["crop"] == "none"
    assert sum(record["audit"]["splits"]["test"]["counts"]) == 24 * 32 * 32


def test_params_counts_head_and_adapter(depth: Path, capfd: Capture) -> None:
    counted = json.loads(kora(capfd, "params", "--config", "depth.yaml", "--json").out)
    assert counted["head"] == 2 * 128 * 16 + 16
    assert counted["trainable"] > counted["head"]


def test_compare_takes_the_error_in_metres_and_puts_the_least_first(
    fitted: Path, capfd: Capture
) -> None:
    probe = ["--model.adapter", "kora.adapters.LinearProbe", "--trainer.max_epochs", "2"]
    fit(capfd, "--config", "depth.yaml", *probe)
    outcome = kora(capfd, "compare", "runs/tiny_depth", "--out", "table")
    assert outcome.code == 0, outcome.err
    table = (fitted / "table/compare.md").read_text(encoding="utf-8")
    assert "test/rmse_m" in table
    assert "mean depth map" in table
    means = [float(m) for m in re.findall(r"\| (?:LoRA|LinearProbe) \| 1 \| ([\d.]+)", table)]
    assert len(means) == 2
    assert means == sorted(means)


def test_wandb_keeps_a_panel_of_every_epoch(
    depth: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    options = ["--wandb.mode", "offline", "--trainer.max_epochs", "2", "--pictures", "true"]
    fit(capfd, "--config", "depth.yaml", *options)
    images = [p.name for p in (the_run(depth) / "wandb").rglob("media/images/pictures/*.png")]
    assert len([name for name in images if name.startswith("val_depth_")]) == 2
    assert len([name for name in images if name.startswith("test_depth_")]) == 1


# -- NYU Depth V2 ---------------------------------------------------------------------------------


def test_the_labelled_file_trains_and_says_its_layout(here: Path, capfd: Capture) -> None:
    write_labelled(here / "nyu/nyu_depth_v2_labeled.mat")
    write_splits(here / "nyu/splits.mat")
    data = nyu(here / "nyu", augment="flip_crop_color")
    write_config(here / "nyu.yaml", depth_config(data=data))
    prepared = kora(capfd, "data", "prepare", "--config", "nyu.yaml")
    assert prepared.code == 0, prepared.err
    assert "12 frames are in" in prepared.out
    fit(capfd, "--config", "nyu.yaml")
    record = results(the_run(here))
    assert record["protocol"]["sizes"] == {"train": 6, "val": 2, "test": 4}
    assert "cache" in record["protocol"]["depth_rounding"]
    assert record["metrics"]["test/rmse_m"] > 0


def test_the_eigen_crop_is_that_of_full_sized_frames(here: Path, capfd: Capture) -> None:
    write_labelled(here / "nyu/nyu_depth_v2_labeled.mat", frames=6, size=(480, 640))
    write_splits(here / "nyu/splits.mat", train=range(1, 5), test=range(5, 7))
    write_config(
        here / "nyu.yaml",
        depth_config(
            data=nyu(here / "nyu", depth="raw", batch_size=2, val_fraction=0, val_images=None),
            protocol="eigen",
        ),
    )
    fit(capfd, "--config", "nyu.yaml")
    record = results(the_run(here))
    assert record["protocol"]["evaluation"]["crop"] == "eigen"
    assert record["protocol"]["depth"] == "raw"
    assert record["audit"]["splits"]["train"]["valid_share"] < 1


def test_the_eigen_crop_of_other_sizes_is_refused_before_training(
    here: Path, capfd: Capture
) -> None:
    write_labelled(here / "nyu/nyu_depth_v2_labeled.mat")
    write_splits(here / "nyu/splits.mat")
    write_config(here / "nyu.yaml", depth_config(data=nyu(here / "nyu"), protocol="eigen"))
    outcome = kora(capfd, "fit", "--config", "nyu.yaml")
    assert outcome.code == 2
    assert "480" in outcome.err
    assert "full" in outcome.err
    assert not list(here.glob("runs/**/results.json"))


def test_one_file_a_frame_trains_with_worker_processes(here: Path, capfd: Capture) -> None:
    write_frame_folders(here / "frames", train={f"room_{i:04d}": 2 for i in range(6)})
    data = nyu(here / "frames", num_workers=2, subset={"fraction": 0.5})
    write_config(here / "nyu.yaml", depth_config(data=data))
    fit(capfd, "--config", "nyu.yaml")
    protocol = results(the_run(here))["protocol"]
    assert protocol["training_frames"] == 12
    assert protocol["training_share"] == "50 % of 12 frames = 6 images"
    assert protocol["official_split"]["test"] == "val"
    assert protocol["evaluation"]["split"] == "val"


def test_millimetres_read_as_metres_stop_the_run(here: Path, capfd: Capture) -> None:
    path = write_labelled(here / "nyu/nyu_depth_v2_labeled.mat")
    with h5py.File(path, "r+") as file:
        file["depths"][...] = 1000 * file["depths"][...]
    write_splits(here / "nyu/splits.mat")
    write_config(here / "nyu.yaml", depth_config(data=nyu(here / "nyu", val_images=2)))
    outcome = kora(capfd, "fit", "--config", "nyu.yaml")
    assert outcome.code in (1, 2)
    assert "nyu_depth_v2_labeled.mat" in outcome.err
    assert "millimetres" in outcome.err
    assert "Traceback" not in outcome.err


def test_classification_data_is_told_what_depth_needs(here: Path, capfd: Capture) -> None:
    config = depth_config(data=yaml.safe_load((here / "tiny.yaml").read_text())["data"])
    write_config(here / "wrong.yaml", config)
    outcome = kora(capfd, "fit", "--config", "wrong.yaml")
    assert outcome.code == 2
    assert "depth_m" in outcome.err
    assert "maps" in outcome.err
    assert not (here / "runs/tiny_depth/LoRA/seed0/version_0/checkpoints").exists()
