"""Claims about folders of images and masks: layouts, parts, sizes, and what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import SegmentationFolder
from datamodules.base import Split
from datamodules.segmentation.masks import MaskError
from tests.support.segmentation import masked, write_pair, write_pairs


def opened(root: Path, **options: Any) -> SegmentationFolder:
    given = {"image_size": (16, 24), "num_workers": 0, "seed": 0, "batch_size": 4, **options}
    data = SegmentationFolder(str(root), **given)
    data.setup()
    return data


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    write_pairs(tmp_path / "train", [f"t{n}" for n in range(12)])
    write_pairs(tmp_path / "test", [f"e{n}" for n in range(5)], size=(30, 20))
    return tmp_path


def test_training_masks_have_the_size_of_the_images_and_test_masks_their_own(parts: Path) -> None:
    data = opened(parts, val_images=2)
    train = next(iter(data.train_dataloader()))
    assert train["image"].shape == (4, 3, 16, 24)
    assert train["mask"].shape == (4, 16, 24)
    assert "mask_size" not in train
    test = next(iter(data.test_dataloader()))
    assert test["image"].shape == (4, 3, 16, 24)
    assert test["mask"].shape == (4, 30, 20)
    assert test["mask_size"].tolist() == [[30, 20]] * 4


def test_an_image_and_its_mask_are_of_the_same_pair(parts: Path) -> None:
    data = opened(parts, image_size=(24, 32), val_images=2)
    for batch in data.train_dataloader():
        for image, mask in zip(batch["image"], batch["mask"], strict=True):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), masked(mask.numpy()))


def test_masks_of_several_sizes_are_padded_with_what_is_ignored(tmp_path: Path) -> None:
    write_pairs(tmp_path / "train", ["a", "b"])
    write_pair(tmp_path / "test", "low", np.ones((10, 40), np.uint8))
    write_pair(tmp_path / "test", "tall", np.full((30, 8), 2, np.uint8))
    batch = next(iter(opened(tmp_path, val_fraction=0).test_dataloader()))
    assert batch["mask"].shape == (2, 30, 40)
    assert batch["mask_size"].tolist() == [[10, 40], [30, 8]]
    assert (batch["mask"][0, :10] == 1).all()
    assert (batch["mask"][0, 10:] == 255).all()
    assert (batch["mask"][1, :, 8:] == 255).all()


def test_cover_keeps_the_proportions_and_pads_the_images(tmp_path: Path) -> None:
    write_pairs(tmp_path / "train", ["a", "b"], size=(20, 60))
    write_pairs(tmp_path / "train", ["c", "d"], size=(60, 20))
    write_pairs(tmp_path / "test", ["e"])
    data = opened(tmp_path, resize="cover", augment="flip_resize_crop", val_fraction=0)
    batch = next(iter(data.train_dataloader()))
    sizes = sorted(tuple(size) for size in batch["size"].tolist())
    assert sizes == [(16, 48), (16, 48), (72, 24), (72, 24)]
    assert batch["image"].shape == (4, 3, 72, 48)
    assert batch["mask"].shape == (4, 72, 48)


def test_cover_without_crops_of_one_size_is_refused(parts: Path) -> None:
    with pytest.raises(ValueError, match="augment: flip_resize_crop_color"):
        SegmentationFolder(str(parts), image_size=16, resize="cover")


def test_a_folder_without_parts_has_the_same_test_images_in_every_run(tmp_path: Path) -> None:
    write_pairs(tmp_path, [f"p{n}" for n in range(20)])
    first, other = opened(tmp_path, seed=1), opened(tmp_path, seed=2)
    assert first.protocol()["sizes"] == {"train": 14, "val": 2, "test": 4}
    assert first.image_names("test") == other.image_names("test")
    assert not set(first.image_names("test")) & set(first.image_names("train"))


def test_groups_stay_on_one_side_of_the_test_and_of_validation(tmp_path: Path) -> None:
    write_pairs(tmp_path, [f"scene{n // 4}_{n % 4}" for n in range(40)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no group is on both sides
        data = opened(tmp_path, groups="(scene[0-9]+)_", val_fraction=0.2)
    names = {
        split: {data.group_names("test" if split == "test" else "train")[i] for i in places}
        for split in ("train", "val", "test")
        for places in [data.indices(split)]
    }
    assert not names["train"] & names["val"]
    assert not (names["train"] | names["val"]) & names["test"]
    assert data.protocol()["sizes"]["test"] == 8


def test_a_part_of_its_own_can_validate(parts: Path) -> None:
    write_pairs(parts / "val", [f"v{n}" for n in range(3)])
    data = opened(parts, val_dir="val")
    assert data.protocol()["sizes"] == {"train": 12, "val": 3, "test": 5}
    names = data.image_names("train")
    assert {names[i] for i in data.indices("val")} == {"v0.png", "v1.png", "v2.png"}
    assert data.protocol()["official_split"]["val"] == "val"


def test_a_group_that_a_part_of_its_own_validates_is_warned_of(tmp_path: Path) -> None:
    for part, count in (("train", 8), ("val", 3), ("test", 2)):
        write_pairs(tmp_path / part, [f"drive1_{part}{n}" for n in range(count)])
    with pytest.warns(UserWarning, match="images belong to groups") as said:
        opened(tmp_path, val_dir="val", groups="(drive[0-9]+)_")
    told = " ".join(str(one.message) for one in said)
    assert "3 of 3 validation images belong to groups of the training part" in told
    assert "2 of 2 test images belong to groups of the training part" in told


def test_the_layout_of_voc_is_read_by_its_lists(tmp_path: Path) -> None:
    write_voc(tmp_path)
    data = opened(tmp_path, val_images=1)
    assert data.num_classes == 21
    assert data.class_names[20] == "tvmonitor"
    assert data.protocol()["sizes"] == {"train": 3, "val": 1, "test": 2}
    assert data.protocol()["official_split"] == {"train": "train", "val": "train", "test": "val"}
    assert data.samples("test", [0])["mask"].unique().tolist() == [10, 255]


def test_an_image_in_two_parts_is_refused(tmp_path: Path) -> None:
    lists = write_voc(tmp_path) / "ImageSets/Segmentation"
    (lists / "trainval.txt").write_text("i0\ni1\ni2\ni3\ni4\ni5\n")
    with pytest.raises(ValueError, match=r"2 images train and test, such as .*i4\.jpg"):
        opened(tmp_path, train_dir="trainval", val_images=1)
    with pytest.raises(ValueError, match=r"4 images train and validate"):
        opened(tmp_path, val_dir="trainval")


def test_a_list_is_read_with_a_byte_order_mark_and_told_if_it_is_no_utf8(tmp_path: Path) -> None:
    file = write_voc(tmp_path) / "ImageSets/Segmentation/train.txt"
    file.write_text("i0\ni1\n", encoding="utf-8-sig")
    assert opened(tmp_path, val_images=1).protocol()["sizes"]["train"] == 1
    file.write_bytes(b"i0\n\xe4\n")
    with pytest.raises(ValueError, match=r"train\.txt: .* UTF-8, from byte 3 on\. Save it"):
        opened(tmp_path, val_images=1)


def write_voc(folder: Path) -> Path:
    """VOC's own layout: four images train and two test."""
    root = folder / "VOCdevkit/VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    for number in range(6):
        mask = np.full((20, 30), 255, np.uint8)
        mask[2:, 2:] = number % 3 * 10
        palette = Image.fromarray(mask).convert("P")
        palette.putdata(mask.ravel().tolist())
        palette.save(root / "SegmentationClass" / f"i{number}.png")
        Image.fromarray(masked(mask)).save(root / "JPEGImages" / f"i{number}.jpg")
    lists = root / "ImageSets/Segmentation"
    (lists / "train.txt").write_text("i0\ni1\ni2\ni3\n")
    (lists / "val.txt").write_text("i4\ni5\n")
    return root


def test_the_layout_of_ade20k_has_no_class_0(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    for part, count in (("training", 4), ("validation", 2)):
        for kind in ("images", "annotations"):
            (root / kind / part).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros((20, 30), np.uint8)
            mask[5:] = 1
            mask[:, 15:] = 150
            Image.fromarray(mask).save(root / "annotations" / part / f"ADE_{number}.png")
            Image.fromarray(masked(mask)).save(root / "images" / part / f"ADE_{number}.jpg")
    lines = [f"{n}\t0.1\t1\t1\t1\tname {n}, other" for n in range(1, 151)]
    head = "Idx\tRatio\tTrain\tVal\tStuff\tName"
    (root / "objectInfo150.txt").write_text("\n".join([head, *lines]) + "\n")
    data = opened(tmp_path, val_images=1)
    assert data.num_classes == 150
    assert data.class_names[0] == "name 1"
    assert data.samples("test", [0])["mask"].unique().tolist() == [0, 149, 255]


def test_classes_are_counted_in_the_masks_if_nothing_names_them(parts: Path) -> None:
    assert opened(parts).class_names == ["class 0", "class 1", "class 2"]
    (parts / "classes.txt").write_text("wall\nfloor\ndoor\nroof\n")
    assert opened(parts).class_names == ["wall", "floor", "door", "roof"]


def test_statistics_count_pixels_and_the_usual_class_of_each_place(tmp_path: Path) -> None:
    mask = np.zeros((16, 24), np.uint8)
    mask[:, 12:] = 1
    other = mask.copy()
    other[:8] = 255
    for name in ("a", "b", "c"):
        write_pair(tmp_path / "train", name, mask)
    write_pair(tmp_path / "train", "d", other)
    write_pairs(tmp_path / "test", ["e"], classes=2)
    found = opened(tmp_path, val_fraction=0).mask_statistics("train")
    assert found.pixels.tolist() == [672, 672]
    assert found.images_with.tolist() == [4, 4]
    assert found.ignored_share == pytest.approx(192 / 1536)
    assert np.array_equal(found.mode_map, mask)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: (root / "train/masks/t1.png").unlink(), r"t1\.png has no mask t1 in"),
        (lambda root: (root / "train/images/t1.png").unlink(), r"t1\.png has no image t1 in"),
        (
            lambda root: Image.new("L", (9, 9)).save(root / "train/masks/t1.png"),
            r"masks.t1\.png is 9 x 9 pixels, and its image .* 24 x 32",
        ),
        (
            lambda root: Image.new("L", (32, 24), 7).save(root / "train/masks/t1.png"),
            "has the value 7, and there are 3 classes",
        ),
        (
            lambda root: (root / "train/images/t1.png").rename(root / "train/images/t0.jpg"),
            "have one name",
        ),
    ],
)
def test_a_fault_is_one_line_that_names_the_file(parts: Path, spoil: Any, said: str) -> None:
    spoil(parts)
    with pytest.raises((MaskError, FileNotFoundError, ValueError), match=said) as caught:
        list(opened(parts, class_names=["a", "b", "c"], val_images=2).train_dataloader())
    assert "\n" not in str(caught.value)


def test_a_validation_part_that_is_not_used_is_said(parts: Path) -> None:
    write_pairs(parts / "val", ["v"])
    with pytest.warns(UserWarning, match=r"val are not used.*data\.val_dir: val"):
        opened(parts)


def test_parts_below_images_are_not_mixed(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        for part in ("train", "test"):
            (tmp_path / kind / part).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"divided into test and train.*test/images"):
        opened(tmp_path)


def test_binary_masks_of_0_and_255_are_told_how_to_count_and_do(tmp_path: Path) -> None:
    for name in "abcdefgh":
        mask = np.zeros((8, 8), np.uint8)
        mask[:, 4:] = 255
        write_pair(tmp_path, name, mask)
    with pytest.raises(ValueError, match=r"background,0,0,0 and object,255,255,255"):
        opened(tmp_path)
    (tmp_path / "class_dict.csv").write_text("background,0,0,0\nobject,255,255,255\n")
    data = opened(tmp_path)
    assert data.class_names == ["background", "object"]
    assert data.samples("test", [0])["mask"].unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ignore_index": 1}, r"ignore_index is 1, and so is the class 'class 1'"),
        ({"ignore_index": 0}, r"reduce_zero_label: true"),
    ],
)
def test_a_class_that_is_ignored_is_refused(
    parts: Path, options: dict[str, Any], said: str
) -> None:
    names = ["class 0", "class 1", "class 2"]
    with pytest.raises(ValueError, match=said):
        next(iter(opened(parts, class_names=names, **options).train_dataloader()))


def test_options_that_a_table_of_colours_switches_off_are_refused(parts: Path) -> None:
    (parts / "class_dict.csv").write_text("a,0,0,0\nb,1,1,1\nc,2,2,2\n")
    with pytest.raises(ValueError, match="have no effect"):
        opened(parts, ignore_index=7)


def test_statistics_notice_a_mask_of_another_size_without_reading_the_image(parts: Path) -> None:
    Image.new("L", (20, 24), 1).save(parts / "test/masks/e1.png")
    with pytest.raises(MaskError, match=r"e1\.png is 24 x 20 pixels, and its image"):
        opened(parts, val_images=2).mask_statistics("test")


def test_an_image_that_its_tag_turns_away_from_its_mask_is_named(parts: Path) -> None:
    path = parts / "train/images/t1.png"
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
    with pytest.raises(MaskError, match="turned by its EXIF tag"):
        opened(parts, val_fraction=0).mask_statistics("train")


def test_a_folder_of_no_known_layout_says_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ValueError, match=r"folders in it: pictures.*Expected images/ and masks/"):
        opened(tmp_path)


def test_masks_of_one_class_only_are_refused(tmp_path: Path) -> None:
    for name in "abcdef":
        write_pair(tmp_path, name, np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match="one class only"):
        opened(tmp_path)


def test_reading_a_batch_does_not_depend_on_the_workers(parts: Path) -> None:
    alone = [b["image"] for b in opened(parts, val_images=2).test_dataloader()]
    shared = [b["image"] for b in opened(parts, val_images=2, num_workers=1).test_dataloader()]
    assert all(torch.equal(*pair) for pair in zip(alone, shared, strict=True))


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_a_cache_of_features_needs_besides_is_the_same_without_images(
    split: Split, parts: Path
) -> None:
    data = opened(parts)
    dataset, rows = data.loader_dataset(split), range(len(data.indices(split)))
    whole = dataset.__getitems__(rows)
    lean = dataset.without_images(
        labels=data.labels(split), indices=data.indices(split)
    ).__getitems__(rows)
    assert whole.keys() - lean.keys() == {"image"}
    assert all(torch.equal(lean[name], whole[name]) for name in lean)
