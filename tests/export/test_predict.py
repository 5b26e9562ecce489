"""Claims about `kora predict RUN --images FOLDER`: a row for every image, whatever it is like."""

from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO
from numpy.typing import NDArray
from PIL import Image

import kora as package
from datamodules.recipe import ImageRecipe
from kora.adapters import LoRA
from kora.export import box_files
from kora.export import predict as predict_cli
from kora.heads.depth import LinearDepth
from kora.tasks import DepthTask, SegmentationTask
from tests.support.adapter_factory import edit_record, kicked, write_fitted, write_folder
from tests.support.cli import kora, started
from tests.support.detectors import NAMES, detector
from tests.support.factory import kick
from tests.support.picture_factory import bad_files, write_photos

Capture = pytest.CaptureFixture[str]


def picture(number: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Seeded noise (H, W, 3) with a block of one colour."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels[: size[0] // 2] = rng.integers(0, 256, 3)
    return pixels


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five images of different sizes and formats in two folders, and a text file."""
    folder = tmp_path / "photos"
    (folder / "deep er").mkdir(parents=True)
    for number, size in enumerate([(40, 60), (64, 64), (90, 30)]):
        Image.fromarray(picture(number, size)).save(folder / f"{number}.png")
    Image.fromarray(picture(3, (50, 50))).convert("L").save(folder / "deep er" / "grey.png")
    Image.fromarray(picture(4, (70, 80))).save(folder / "deep er" / "photo.JPG")
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("not looked at")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_folder(tmp_path / "run" / "adapter", kicked(LoRA(2)))
    return tmp_path / "run"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_has_class_and_probability_of_the_model_itself(
    workers: int, run: Path, photos: Path, capfd: Capture
) -> None:
    out = run.parent / "out/predictions.csv"
    options = ("--batch_size", "2", "--num_workers", str(workers))
    done = kora(capfd, "predict", run, "--images", photos, "--out", out.parent, *options)
    assert done.code == 0, done.err
    assert "5 of 5 images" in done.out
    assert "1 other files" in done.out
    found = rows(out)
    assert [row["file"] for row in found] == [
        *("0.png", "1.png", "2.png", "deep er/grey.png", "deep er/photo.JPG"),
    ]
    model = package.load_adapter(run)
    for row in found:
        pixels = np.asarray(Image.open(photos / row["file"]).convert("RGB")).transpose(2, 0, 1)
        (expected,) = model.predict(torch.from_numpy(pixels.copy())[None])
        assert row["class_name"] == expected.name
        assert float(row["probability"]) == pytest.approx(expected.probability, abs=2e-6)
        assert row["error"] == ""


def test_unreadable_images_are_named_counted_and_keep_a_row(
    run: Path, photos: Path, capfd: Capture
) -> None:
    whole = (photos / "deep er" / "photo.JPG").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").touch()
    out = run.parent / "out/predictions.csv"
    done = kora(capfd, "predict", run, "--images", photos, "--out", out.parent, "--batch_size", "2")
    assert done.code == 0, done.err
    assert "5 of 7 images" in done.out
    assert "2 could not be read" in done.out
    for name in ("cut.jpg", "empty.png"):
        assert f"Cannot read the image {photos / name}" in done.err
    bad = {row["file"]: row for row in rows(out) if row["error"]}
    assert set(bad) == {"cut.jpg", "empty.png"}
    assert all(row["class_name"] == row["probability"] == "" for row in bad.values())


def test_a_file_is_no_folder_to_write_to_and_a_link_leads_to_its_target(
    run: Path, photos: Path, capfd: Capture
) -> None:
    (run.parent / "file").touch()
    for name in ("file", "new.csv"):
        done = kora(capfd, "predict", run, "--images", photos, "--out", run.parent / name)
        assert done.code == 2
        assert f"{name} is a file; name a folder" in done.err
    link, target = run.parent / "out/predictions.csv", run.parent / "target.csv"
    link.parent.mkdir()
    link.symlink_to(target)
    done = kora(
        capfd, "predict", run, "--images", photos, "--out", link.parent, "--num_workers", "0"
    )
    assert done.code == 0, done.err
    assert link.is_symlink()
    assert len(rows(target)) == 5


def test_two_that_write_one_file_are_told_apart(run: Path, photos: Path, capfd: Capture) -> None:
    out = run.parent / "out/predictions.csv"
    with predict_cli._Table(out, ["file"], 5) as table:
        done = kora(capfd, "predict", run, "--images", photos, "--out", out.parent)
        assert done.code == 1
        assert f"Another kora predict is writing {out}.part" in done.err
        table.add([["a.png"]])
    assert [row["file"] for row in rows(out)] == ["a.png"]


def test_a_folder_where_nothing_can_be_read_is_an_error_that_leaves_the_reasons(
    run: Path, capfd: Capture
) -> None:
    bad = run.parent / "bad"
    bad.mkdir()
    (bad / "a.png").write_bytes(b"none")
    out = run.parent / "out/predictions.csv"
    done = kora(capfd, "predict", run, "--images", bad, "--out", out.parent, "--num_workers", "0")
    assert done.code == 1
    assert "None of the 1 images" in done.err
    assert "Cannot read" in rows(out)[0]["error"]


def test_images_are_cut_as_in_training_and_top_k_is_that_of_the_model(
    tmp_path: Path, capfd: Capture
) -> None:
    files = write_photos(tmp_path / "photos")
    run = write_fitted(tmp_path / "adapter", kicked(LoRA(2)), ImageRecipe("crop", (48, 64)))
    out = tmp_path / "out/predictions.csv"
    done = kora(capfd, "predict", run, "--images", tmp_path / "photos", "--out", out.parent,
                "--top_k", "3", "--batch_size", "5")  # fmt: skip
    assert done.code == 0, done.err
    expected = package.load_adapter(run).predict(files, top_k=3)
    heads = [
        ("class_name", "probability"),
        *((f"class_name_{k}", f"probability_{k}") for k in (2, 3)),
    ]
    for row, prediction in zip(rows(out), expected, strict=True):
        for (name, probability), choice in zip(heads, prediction.top, strict=True):
            assert row[name] == choice.name
            assert float(row[probability]) == pytest.approx(choice.probability, abs=2e-6)


def test_bad_images_keep_a_row_with_the_line_that_every_way_of_prediction_gives(
    run: Path, photos: Path, capfd: Capture
) -> None:
    bad = bad_files(photos)
    out = run.parent / "out/predictions.csv"
    assert kora(capfd, "predict", run, "--images", photos, "--out", out.parent).code == 0
    found = {row["file"]: row["error"] for row in rows(out) if row["error"]}
    assert set(found) == set(bad)
    for name, text in found.items():
        with pytest.raises(RuntimeError) as caught:
            package.load_adapter(run).predict(photos / name)
        assert text == str(caught.value)


def test_a_name_that_is_not_utf8_and_one_that_is_a_formula_are_written_so_that_all_can_be_read(
    run: Path, photos: Path, capfd: Capture
) -> None:
    for name in (b"caf\xe9.png", b"=1+1.png", b"-x.png", b"@x.png", b"+x.png"):
        os.link(photos / "0.png", photos / os.fsdecode(name))
    out = run.parent / "out/predictions.csv"
    done = kora(capfd, "predict", run, "--images", photos, "--out", out.parent)
    assert done.code == 0, done.err
    names = {row["file"] for row in rows(out)}
    assert {r"caf\udce9.png", "'=1+1.png", "'-x.png", "'@x.png", "'+x.png", "1.png"} <= names


@pytest.mark.slow
def test_a_killed_prediction_leaves_the_rows_that_are_done(run: Path, photos: Path) -> None:
    for number in range(3000):
        os.link(photos / "0.png", photos / f"z{number:04}.png")
    out, part = run.parent / "out/predictions.csv", run.parent / "out/predictions.csv.part"
    options = ("--out", out.parent, "--batch_size", "4", "--num_workers", "0")
    with started("predict", run, "--images", photos, *options, log=run / "log") as process:
        end = time.monotonic() + 240
        while not part.is_file() or part.read_bytes().count(b"\n") < 9:
            assert process.poll() is None
            assert time.monotonic() < end
        process.kill()
        process.wait()
    assert not out.exists()
    expected = package.load_adapter(run).predict(photos / "1.png")
    found = rows(part)
    assert 8 <= len(found) < 3000
    assert [row["file"] for row in found[:3]] == ["0.png", "1.png", "2.png"]
    assert found[1]["class_name"] == expected.name
    assert all(row["probability"] for row in found)


def test_a_prediction_that_is_stopped_says_where_its_rows_are(
    run: Path, photos: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run.parent / "out/predictions.csv"
    out.parent.mkdir()
    out.write_text("of before")

    def batches(*args: Any) -> Any:
        yield next(predict_cli_batches(*args))
        raise KeyboardInterrupt

    predict_cli_batches = predict_cli._batches
    monkeypatch.setattr(predict_cli, "_batches", batches)
    options = ("--out", out.parent, "--batch_size", "2", "--num_workers", "0")
    done = kora(capfd, "predict", run, "--images", photos, *options)
    assert done.code == 130
    assert f"the rows of 2 of 5 images are in {out}.part" in done.err
    assert out.read_text() == "of before"
    assert len(rows(Path(f"{out}.part"))) == 2
    monkeypatch.undo()
    assert kora(capfd, "predict", run, "--images", photos, *options).code == 0
    assert len(rows(out)) == 5
    assert not Path(f"{out}.part").exists()


def test_predictions_that_cannot_be_written_are_told_before_the_work(
    run: Path, photos: Path, capfd: Capture
) -> None:
    (run.parent / "file").touch()
    out = run.parent / "file" / "out/predictions.csv"
    done = kora(capfd, "predict", run, "--images", photos, "--out", out.parent)
    assert done.code == 1
    assert f"{out}.part cannot be written: Not a directory" in done.err
    assert "Traceback" not in done.err


def test_one_file_is_taken_as_well(run: Path, photos: Path, capfd: Capture) -> None:
    out = run.parent / "out/predictions.csv"
    assert kora(capfd, "predict", run, "--images", photos / "2.png", "--out", out.parent).code == 0
    (row,) = rows(out)
    assert row["file"] == "2.png"
    assert row["class_name"] == package.load_adapter(run).predict(photos / "2.png").name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "nowhere"], "nowhere: there is no such folder"),
        (["--images", "adapter"], "holds no image, by the names of its 2 files"),
        ([], "--images"),
        (["--images", "adapter", "--device", "cuda:7"], "--device cuda:7 cannot be used here"),
        (["--images", "adapter", "--out", "mine.csv"], "mine.csv is a file; name a folder"),
        (["--images", "adapter", "--device", "meta"], "--device meta cannot be used here"),
        (["--images", "adapter", "--batch_size", "0"], "expected 1 or more"),
        (["--images", "adapter", "--num_workers", "-1"], "expected 0 or more"),
        (["--images", ""], "--images is empty"),
    ],
)
def test_mistakes_are_told(
    options: list[str], message: str, run: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    done = kora(capfd, "predict", ".", *options)
    assert done.code != 0
    assert message in done.err
    assert "Traceback" not in done.err


@pytest.fixture
def depth_run(tmp_path: Path) -> Path:
    task = DepthTask(kicked(None).backbone, LoRA(2), head=LinearDepth(bins=16), protocol="full")
    task.build()
    write_folder(tmp_path / "depth" / "adapter", kick(task), class_names=[])
    return tmp_path / "depth"


@pytest.mark.parametrize("form", ["png", "npy"])
def test_depth_is_one_map_an_image_at_its_own_size(
    form: str, depth_run: Path, photos: Path, capfd: Capture
) -> None:
    (photos / "cut.jpg").write_bytes(b"no image")
    out = depth_run.parent / "maps"
    options = ("--depth_format", form, "--batch_size", "3")
    done = kora(capfd, "predict", depth_run, "--images", photos, "--out", out, *options)
    assert done.code == 0, done.err
    model = package.load_adapter(depth_run)
    found = rows(out / "predictions.csv")
    assert [row["file"] for row in found if row["error"]] == ["cut.jpg"]
    for row in found:
        if row["error"]:
            continue
        pixels = np.asarray(Image.open(photos / row["file"]).convert("RGB")).transpose(2, 0, 1)
        expected = model(torch.from_numpy(pixels.copy())[None])[0].numpy()
        path = out / row["depth_file"]
        if form == "png":
            with Image.open(path) as image:
                assert image.mode.startswith("I;16")
                metres = np.asarray(image).astype(np.float64) / 1000
        else:
            metres = np.load(path)
        assert metres.shape == expected.shape
        assert np.abs(metres - expected).max() < (6e-4 if form == "png" else 1e-5)
    assert not list(out.rglob("*.tmp"))

    again = ("predict", depth_run, "--images", photos, "--out", out)
    refused = kora(capfd, *again)
    assert refused.code == 2
    assert "is there already" in refused.err
    (out / "predictions.csv").rename(out / "predictions.csv.part")  # as a stop leaves it
    assert kora(capfd, *again).code == 0


@pytest.mark.parametrize("window", ["whole", "slide"])
def test_a_mask_is_a_palette_image_at_the_size_of_its_photo_with_a_legend(
    window: str, tmp_path: Path, photos: Path, capfd: Capture
) -> None:
    names = ["road", "sky", "tree"]
    task = SegmentationTask(kicked(None).backbone, LoRA(2), num_classes=3, protocol=window)
    task.build()
    write_folder(tmp_path / "run" / "adapter", kick(task, scale=0.5), class_names=names)
    out = tmp_path / "masks"
    done = kora(capfd, "predict", tmp_path / "run", "--images", photos, "--out", out)
    assert done.code == 0, done.err
    model = package.load_adapter(tmp_path / "run")
    for row in rows(out / "predictions.csv"):
        pixels = np.asarray(Image.open(photos / row["file"]).convert("RGB")).transpose(2, 0, 1)
        expected = model(torch.from_numpy(pixels.copy())[None])[0].argmax(0).numpy()
        with Image.open(out / row["mask_file"]) as image:
            assert image.mode == "P"
            mask = np.asarray(image)
        assert mask.shape == expected.shape
        assert (mask == expected).mean() > 0.999
        largest = int(np.bincount(expected.ravel()).argmax())
        assert row["largest_class"] == names[largest]
        assert float(row["share"]) == pytest.approx((expected == largest).mean(), abs=1e-3)
    assert (out / "legend.png").is_file()


def test_boxes_are_written_as_coco_reads_them_and_drawn_on_the_first_photos(
    tmp_path: Path, photos: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_fitted(tmp_path / "run/adapter", detector(), ImageRecipe("contain", (24, 40)))
    edit_record(folder, class_names=NAMES)
    (photos / "cut.jpg").write_bytes(b"no image")
    monkeypatch.setattr(box_files, "_MOST_PICTURES", 2)
    out = tmp_path / "boxes"
    done = kora(capfd, "predict", tmp_path / "run", "--images", photos, "--out", out)
    assert done.code == 0, done.err
    assert str(out / "predictions.json") in done.out
    known = COCO(str(out / "images.json"))
    found = known.loadRes(str(out / "predictions.json"))
    assert [known.cats[k]["name"] for k in sorted(known.cats)] == NAMES
    model = package.load_adapter(folder)
    files = {row["file"]: row for row in rows(out / "predictions.csv")}
    assert len(known.imgs) == len(files) - 1
    for number, image in known.imgs.items():
        expected = model.detect(photos / image["file_name"])
        mine = found.imgToAnns[number]
        assert [one["category"] for one in mine] == [one.name for one in expected]
        for one, other in zip(mine, expected, strict=True):
            left, top, wide, high = one["bbox"]
            assert (left, top, left + wide, top + high) == pytest.approx(other.box, abs=0.02)
            assert one["score"] == pytest.approx(other.score, abs=1e-4)
            assert left + wide <= image["width"] + 0.01
            assert top + high <= image["height"] + 0.01
        row = files[image["file_name"]]
        assert (row["boxes"], row["best_class"]) == (str(len(expected)), expected[0].name)
    drawn = [name for name, row in files.items() if row["picture_file"]]
    assert drawn == ["0.png", "1.png"]
    with Image.open(out / "0.png.jpg") as image:
        assert image.size == (60, 40)
    again = kora(capfd, "predict", tmp_path / "run", "--images", photos, "--out", out)
    assert "is there already. Name a new folder for the pictures" in again.err


def test_without_a_box_the_files_are_there_and_empty(
    tmp_path: Path, photos: Path, capfd: Capture
) -> None:
    write_folder(tmp_path / "run/adapter", detector(surer=-20), class_names=[])
    out = tmp_path / "boxes"
    done = kora(capfd, "predict", tmp_path / "run", "--images", photos, "--out", out)
    assert done.code == 0, done.err
    assert json.loads((out / "predictions.json").read_text()) == []
    found = rows(out / "predictions.csv")
    assert {(row["boxes"], row["best_class"]) for row in found} == {("0", "")}


def test_depth_beyond_16_bits_of_millimetres_is_not_cut_off_silently(
    tmp_path: Path, photos: Path, capfd: Capture
) -> None:
    head = LinearDepth(bins=16, max_depth_m=80.0)
    task = DepthTask(
        kicked(None).backbone, LoRA(2), head=head, protocol={"preset": "full", "max_depth_m": 80.0}
    )
    task.build()
    write_folder(tmp_path / "far" / "adapter", task, class_names=[])
    out = ("--out", tmp_path / "maps")
    done = kora(capfd, "predict", tmp_path / "far", "--images", photos, *out)
    assert done.code == 2
    assert "up to 80 m" in done.err
    assert "--depth_format npy" in done.err
