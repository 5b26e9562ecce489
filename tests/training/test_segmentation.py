"""Segmentation through the real command line: a small set in VOC's layout by DINOv2's protocol."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.cli import Outcome, fit_in, kora, results, write_config
from tests.support.segmentation import masked

pytestmark = pytest.mark.runs

Capture = pytest.CaptureFixture[str]
REPOSITORY = Path(__file__).parents[2]


def write_voc(root: Path) -> None:
    """14 training and 6 test images of several sizes: bird, cat and background, with a border."""
    here = root / "VOCdevkit/VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (here / name).mkdir(parents=True)
    names = [f"2012_{number:06d}" for number in range(20)]
    for number, name in enumerate(names):
        height, width = 60 + 10 * (number % 3), 80 + 6 * (number % 4)
        mask = np.zeros((height, width), np.uint8)
        mask[10:40, 20 : 40 + number] = 255
        mask[12:38, 22 : 38 + number] = (3, 8)[number % 2]
        truth = Image.fromarray(mask).convert("P")
        truth.putdata(mask.ravel().tolist())
        truth.save(here / "SegmentationClass" / f"{name}.png")
        Image.fromarray(masked(mask)).save(here / "JPEGImages" / f"{name}.jpg")
    lists = here / "ImageSets/Segmentation"
    (lists / "train.txt").write_text("\n".join(names[:14]))
    (lists / "val.txt").write_text("\n".join(names[14:]))


def by_voc_protocol(folder: Path, **changes: Any) -> None:
    """configs/voc2012.yaml for the embedded backbone and four steps."""
    import yaml

    config = yaml.safe_load((REPOSITORY / "configs/voc2012.yaml").read_text(encoding="utf-8"))
    config["model"]["init_args"]["backbone"] = {"name": "vit_nano"}
    own = {"root": "voc", "val_images": 3, "batch_size": 5, "num_workers": 0}
    config["data"]["init_args"] |= own
    config["trainer"] = {"max_epochs": 2, "logger": False, **changes}
    write_config(folder / "voc.yaml", config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voc")
    write_voc(folder / "voc")
    by_voc_protocol(folder)
    return fit_in(folder, "--config", "voc.yaml")


def the_run(folder: Path) -> Path:
    (run,) = folder.glob("runs/voc2012/LinearProbe-one-level/seed0/version_0")
    return run


def test_a_run_has_protocol_baselines_audit_and_pictures(trained: Path) -> None:
    out, run = (trained / "out.txt").read_text(), the_run(trained)
    record = results(run)
    assert record["protocol"]["evaluation"] == {
        "split": "val", "window": "slide", "stride": 0.667, "scales": [1.0], "flip_tta": False,
    }  # fmt: skip
    assert record["protocol"]["sizes"] == {"train": 11, "val": 3, "test": 6}
    assert set(record["baselines"]) == {"majority", "mode_map"}
    for name in ("miou", "pixel_accuracy", "boundary_miou"):
        assert 0 <= record["metrics"][f"test/{name}"] <= 1
        assert record["baselines"]["mode_map"][name] > 0
    assert record["audit"]["class_names"][3] == "bird"
    assert "Neither training nor test masks show 'aeroplane'" in " ".join(out.split())
    assert "sliding window with a stride of 0.67 windows" in " ".join(out.split())
    for name in ("test_masks.png", "iou_by_class.png", "val_masks/epoch_001.png"):
        with Image.open(run / name) as picture:
            assert min(picture.size) > 200, name
    with (run / "iou_by_class.csv").open() as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert len(rows) == 21
    assert float(rows["background"]["share_of_pixels"]) > 0.5
    mean = np.mean([float(row["iou"]) for row in rows.values() if row["iou"]])
    assert mean == pytest.approx(record["metrics"]["test/miou"], abs=1e-5)


def test_it_is_tested_and_predicted_again_with_the_same_masks(
    trained: Path, here: Path, capfd: Capture
) -> None:
    for name in ("runs", "voc"):
        shutil.copytree(trained / name, here / name)
    run = the_run(here)
    again = run_again(capfd, "test", run)
    assert again.code == 0, again.err
    mine, theirs = results(run.with_name("version_1")), results(run)
    assert mine["metrics"]["test/miou"] == theirs["metrics"]["test/miou"]
    predicted = run_again(capfd, "predict", run)
    assert predicted.code == 0, predicted.err
    out = run.with_name("version_2") / "predictions"
    masks = sorted(out.glob("0*.png"))
    assert len(masks) == 6
    for mask, image in zip(masks, sorted(Path("voc").rglob("*.jpg"))[14:], strict=True):
        with Image.open(mask) as one, Image.open(image) as other:
            assert one.size == other.size
            assert one.mode == "P"
    assert (out / "legend.png").is_file()


def run_again(capfd: Capture, command: str, run: Path) -> Outcome:
    best = run / "checkpoints/best.ckpt"
    return kora(capfd, command, "--config", run / "config.yaml", "--ckpt_path", best)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda voc: (voc / "SegmentationClass/2012_000002.png").unlink(), "2012_000002.png"),
        (
            lambda voc: Image.new("L", (8, 8)).save(voc / "SegmentationClass/2012_000002.png"),
            "is 8 x 8 pixels, and its image",
        ),
        (
            lambda voc: Image.new("RGB", (92, 80)).save(voc / "SegmentationClass/2012_000002.png"),
            "has colours",
        ),
    ],
)
def test_a_bad_mask_is_one_line_that_names_the_file(
    spoil: Any, said: str, here: Path, capfd: Capture
) -> None:
    write_voc(here / "voc")
    by_voc_protocol(here)
    spoil(here / "voc/VOCdevkit/VOC2012")
    done = kora(capfd, "fit", "--config", "voc.yaml")
    assert done.code == 1, done.err
    last = done.err.strip().splitlines()[-1]
    assert said in last
    assert "2012_000002" in last
    assert "Traceback" not in done.err
