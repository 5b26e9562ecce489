"""Claims about folders of images with boxes: layouts, parts, batches, and what is refused."""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import DetectionFolder
from datamodules.base import Split
from datamodules.recipe import UnreadableImageError
from tests.support.detection import (
    NAMES,
    SIZE,
    WRITERS,
    coco,
    objects,
    write_coco,
    write_images,
    write_voc,
    write_yolo,
)


def opened(root: Path, **options: Any) -> DetectionFolder:
    given = {"image_size": (32, 64), "num_workers": 0, "seed": 0, "batch_size": 4, **options}
    data = DetectionFolder(str(root), **given)
    data.setup()
    return data


def write_voc_lists(root: Path, lists: dict[str, str]) -> None:
    """Eight pictures in VOC's own layout, and the names of those in each part."""
    write_voc(root, objects(8))
    (root / "images").rename(root / "JPEGImages")
    (root / "annotations").rename(root / "Annotations")
    (root / "ImageSets/Main").mkdir(parents=True)
    for part, names in lists.items():
        (root / f"ImageSets/Main/{part}.txt").write_text("\n".join(names.split()))


@pytest.mark.parametrize("layout", WRITERS)
def test_every_format_gives_the_same_objects(tmp_path: Path, layout: str) -> None:
    parts = {"train": objects(9), "test": objects(5, prefix="e")}
    for part, truth in parts.items():
        WRITERS[layout](tmp_path / part, truth)
    data = opened(tmp_path, val_images=2)
    assert data.layout.name == layout
    assert data.class_names == data.box_names == NAMES
    assert data.protocol()["sizes"] == {"train": 7, "val": 2, "test": 5}
    found = data.boxes_at("test", np.arange(5))
    for name, boxes in zip(data.image_names("test"), found, strict=True):
        rows = [[*map(float, row)] for row in parts["test"][Path(name).stem]]
        got = np.column_stack([boxes.labels, boxes.corners])
        assert np.allclose(got[got[:, 0].argsort()], np.reshape(rows, (-1, 5)), atol=1e-3), name
        assert boxes.size == SIZE


def test_boxes_lie_on_their_objects_in_the_image_of_the_batch(tmp_path: Path) -> None:
    write_coco(tmp_path, objects(12))
    data = opened(tmp_path, val_fraction=0)
    batch = data.samples("train", range(len(data.indices("train"))))
    assert batch["image"].shape == (10, 3, 32, 64)
    pairs = [
        (image, box.tolist(), label)
        for image, boxes, labels in zip(
            batch["image"], batch["boxes"], batch["box_label"].tolist(), strict=True
        )
        for box, label in zip(boxes, labels, strict=True)
    ]
    assert {label for _, _, label in pairs} == {-1, 0, 1}
    for image, box, label in pairs:
        if label < 0:
            assert box == [0, 0, 0, 0]
            continue
        coloured = (image[2 * label] > 190) & (image[1] < 60)
        rows, columns = torch.nonzero(coloured, as_tuple=True)
        found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        assert box == pytest.approx([float(side) for side in found], abs=1)


def test_own_size_leads_back_to_the_pixels_of_the_picture(tmp_path: Path) -> None:
    truth = objects(8)
    write_voc(tmp_path, truth)
    data = opened(tmp_path, val_fraction=0)
    batch = data.samples("train", range(len(data.indices("train"))))
    names = data.image_names("train")
    for row, own in enumerate(batch["own_size"].tolist()):
        assert own == list(SIZE)
        shown = data.recipe.fitted_content((own[0], own[1]))
        assert batch["size"][row].tolist() == list(shown)
        scale = torch.tensor([shown[1] / own[1], shown[0] / own[0]]).repeat(2)
        has = batch["box_label"][row] >= 0
        expected = torch.tensor([r[1:] for r in truth[Path(names[row]).stem]]).view(-1, 4)
        torch.testing.assert_close((batch["boxes"][row] / scale)[has], expected.float())
        filled = batch["image"][row][:, shown[0] :, : shown[1]].flatten(1)
        right = batch["image"][row][:, :, shown[1] :].flatten(1)
        outside = torch.cat((filled, right), dim=1)
        assert (outside == torch.tensor([[124], [116], [104]])).all()
        assert outside.numel()


def test_images_without_objects_are_kept(tmp_path: Path) -> None:
    write_yolo(tmp_path / "train", objects(8))
    write_yolo(tmp_path / "test", {"e": [], **objects(2, prefix="f")})
    data = opened(tmp_path, val_fraction=0)
    empty = data.samples("test", [0])
    assert empty["boxes"].shape == (1, 0, 4)
    assert empty["box_label"].shape == (1, 0)
    assert data.box_statistics("train").empty == 2


def test_a_folder_without_parts_has_the_same_test_images_in_every_run(tmp_path: Path) -> None:
    write_coco(tmp_path, objects(20))
    first, other = opened(tmp_path, seed=1), opened(tmp_path, seed=2)
    assert first.protocol()["sizes"] == {"train": 14, "val": 2, "test": 4}
    assert first.image_names("test") == other.image_names("test")
    assert not set(first.image_names("test")) & set(first.image_names("train"))


def test_groups_stay_on_one_side_of_the_test_and_of_validation(tmp_path: Path) -> None:
    truth = objects(40)
    named = {f"scene{n // 4}_{n % 4}": rows for n, rows in enumerate(truth.values())}
    write_coco(tmp_path, named)
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


def test_a_part_of_its_own_can_validate_and_is_mentioned_if_it_does_not(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("valid", 3), ("test", 2)):
        write_yolo(tmp_path / part, objects(count, prefix=part))
    data = opened(tmp_path, val_dir="valid")
    assert data.protocol()["sizes"] == {"train": 6, "val": 3, "test": 2}
    names = data.image_names("train")
    assert {names[i] for i in data.indices("val")} == {"valid0.png", "valid1.png", "valid2.png"}
    with pytest.warns(UserWarning, match=r"part valid.*data\.val_dir: valid"):
        opened(tmp_path)


def test_a_group_that_a_part_of_its_own_validates_is_warned_of(tmp_path: Path) -> None:
    for part, count in (("train", 8), ("val", 3), ("test", 2)):
        write_yolo(tmp_path / part, objects(count, prefix=f"drive1_{part}"))
    with pytest.warns(UserWarning, match="images belong to groups") as said:
        opened(tmp_path, val_dir="val", groups="(drive[0-9]+)_")
    told = " ".join(str(one.message) for one in said)
    assert "3 of 3 validation images belong to groups of the training part" in told
    assert "2 of 2 test images belong to groups of the training part" in told


def test_coco_in_its_own_layout(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for part, truth in (("train2017", objects(8)), ("val2017", objects(4, prefix="v"))):
        write_images(tmp_path / part, truth)
        file = tmp_path / "annotations" / f"instances_{part}.json"
        file.write_text(json.dumps(coco(truth)))
    data = opened(tmp_path, val_images=1)
    assert data.official_parts == {"train": "train2017", "test": "val2017"}
    assert data.protocol()["sizes"] == {"train": 7, "val": 1, "test": 4}


def test_coco_as_roboflow_writes_it_has_no_class_for_the_group(tmp_path: Path) -> None:
    for part, count in (("train", 8), ("test", 4)):
        truth = objects(count, prefix=part)
        write_images(tmp_path / part, truth)
        content = coco(truth)
        for entry in content["categories"]:
            entry["supercategory"] = "pets"
        content["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"})
        (tmp_path / part / "_annotations.coco.json").write_text(json.dumps(content))
    assert opened(tmp_path, val_images=1).class_names == NAMES


def test_coco_whose_classes_are_groups_of_themselves_has_all_of_them_in_each_part(
    tmp_path: Path,
) -> None:
    for part, count in (("train", 8), ("test", 4)):
        truth = objects(count, prefix=part)
        write_images(tmp_path / part, truth)
        content = coco(truth)
        for entry in content["categories"]:
            entry["supercategory"] = entry["name"]
        if part == "test":
            first = content["categories"][0]["id"]
            content["annotations"] = [
                row for row in content["annotations"] if row["category_id"] != first
            ]
        (tmp_path / part / "_annotations.coco.json").write_text(json.dumps(content))
    assert opened(tmp_path, val_images=1).class_names == NAMES


def test_voc_in_its_own_layout_is_read_by_its_lists(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit/VOC2007"
    write_voc_lists(root, {"train": "p1 p2 p3 p4", "test": "p5 p6"})
    (root / "ImageSets/Main/cat_train.txt").write_text("p1 -1\n")
    data = opened(tmp_path, val_images=1)
    assert data.layout.parts == ("test", "train")
    assert data.image_names("test") == ["p5.png", "p6.png"]


def test_yolo_with_parts_below_images(tmp_path: Path) -> None:
    for part, count in (("train", 8), ("val", 3)):
        write_yolo(tmp_path / part, objects(count, prefix=part))
        for kind in ("images", "labels"):
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / part / kind).rename(tmp_path / kind / part)
        (tmp_path / part).rmdir()
    (tmp_path / "data.yaml").write_text("train: ../x\nnames: {0: kitten, 1: puppy}\n")
    data = opened(tmp_path, val_images=1)
    assert data.official_parts == {"train": "train", "test": "val"}
    assert data.class_names == ["kitten", "puppy"]


def test_parts_below_images_may_have_capitals(tmp_path: Path) -> None:
    for part, count in (("Train", 8), ("Test", 3)):
        write_yolo(tmp_path / part, objects(count, prefix=part))
        for kind in ("images", "labels"):
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / part / kind).rename(tmp_path / kind / part)
        (tmp_path / part).rmdir()
    data = opened(tmp_path, val_images=1, class_names=NAMES)
    assert data.official_parts == {"train": "Train", "test": "Test"}


@pytest.mark.parametrize("option", ["train_dir", "test_dir", "val_dir"])
def test_a_part_of_a_folder_without_parts_is_refused(tmp_path: Path, option: str) -> None:
    write_yolo(tmp_path, objects(8))
    with pytest.raises(ValueError, match=rf"data\.{option} is 'b', and .* has no parts"):
        opened(tmp_path, **{option: "b"})


def test_given_names_put_the_classes_in_their_order(tmp_path: Path) -> None:
    write_coco(tmp_path, objects(8))
    plain = opened(tmp_path, val_fraction=0)
    turned = opened(tmp_path, val_fraction=0, class_names=["dog", "horse", "cat"])
    for one, other in zip(
        plain.boxes_at("train", np.arange(4)), turned.boxes_at("train", np.arange(4)), strict=True
    ):
        assert (np.array([2, 0])[one.labels] == other.labels).all()


def test_crowds_are_marked_and_not_counted(tmp_path: Path) -> None:
    content = coco(objects(8))
    content["annotations"][0]["iscrowd"] = 1
    write_coco(tmp_path, objects(8))
    assert "box_crowd" not in opened(tmp_path).samples("train", [0])
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    data = opened(tmp_path, test_fraction=0.1, val_fraction=0)
    batch = data.samples("train", range(len(data.indices("train"))))
    assert batch["box_crowd"].shape == batch["box_label"].shape
    assert batch["box_crowd"].sum() == data.box_statistics("train").crowd
    assert data.box_statistics("train").crowd + data.box_statistics("test").crowd == 1


def test_every_change_of_a_box_changes_the_fingerprint(tmp_path: Path) -> None:
    write_coco(tmp_path, objects(8))
    before = opened(tmp_path).fingerprint()
    assert opened(tmp_path).fingerprint() == before
    content = coco(objects(8))
    content["annotations"][3]["bbox"][0] += 0.5
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    assert opened(tmp_path).fingerprint() != before


def test_a_batch_does_not_depend_on_the_workers(tmp_path: Path) -> None:
    write_coco(tmp_path, objects(12))
    alone = list(opened(tmp_path, val_images=2).test_dataloader())
    shared = list(opened(tmp_path, val_images=2, num_workers=1).test_dataloader())
    for one, other in zip(alone, shared, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("augment", ["flip_crop", "flip_crop_color"])
def test_an_augmentation_that_reflects_is_refused_at_once(tmp_path: Path, augment: str) -> None:
    with pytest.raises(ValueError, match=r"reflects images.*flip_resize_crop"):
        DetectionFolder(str(tmp_path), image_size=32, augment=augment)


def test_class_names_that_differ_between_parts_are_named(tmp_path: Path) -> None:
    write_yolo(tmp_path / "train", objects(8))
    write_yolo(tmp_path / "test", objects(4, prefix="e"))
    (tmp_path / "test/labels/classes.txt").write_text("cat\nhorse\n")
    with pytest.raises(ValueError, match=r"test/labels: the class 'horse' is none of cat, dog"):
        opened(tmp_path)
    (tmp_path / "test/labels/classes.txt").write_text("dog\ncat\n")  # in another order
    data = opened(tmp_path, val_fraction=0)
    labels = [boxes.labels.tolist() for boxes in data.boxes_at("test", np.arange(4))]
    assert labels == [[], [1], [1, 0], [1, 0]]


@pytest.mark.parametrize("layout", ["coco", "voc", "yolo"])
def test_a_part_of_empty_images_only_is_refused(tmp_path: Path, layout: str) -> None:
    WRITERS[layout](tmp_path / "train", objects(4))
    WRITERS[layout](tmp_path / "test", {"a": [], "b": []})
    with pytest.raises(ValueError, match="holds no box of the 2 images in"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("val_dir", "said"),
    [
        (None, r"1 images train and test, such as .*p2\.png"),
        ("val", r"2 images train and validate"),
    ],
)
def test_an_image_in_two_parts_is_refused(tmp_path: Path, val_dir: str | None, said: str) -> None:
    write_voc_lists(tmp_path, {"train": "p1 p2 p4", "val": "p1 p4 p5", "test": "p2 p3"})
    with pytest.raises(ValueError, match=said):
        opened(tmp_path, val_dir=val_dir)


def test_two_years_of_voc_are_not_read_as_one(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        write_voc_lists(tmp_path / year, {"train": "p1 p2 p4", "test": "p5 p6"})
    with pytest.raises(ValueError, match=r"VOC2007 and .*VOC2012.*data\.root"):
        opened(tmp_path)
    assert opened(tmp_path / "VOC2012", val_images=1).image_names("test") == ["p5.png", "p6.png"]


def test_an_image_of_another_size_than_its_boxes_is_named(tmp_path: Path) -> None:
    write_coco(tmp_path, objects(8))
    for path in (tmp_path / "images").iterdir():
        with Image.open(path) as image:
            image.resize((20, 12)).save(path)
    data = opened(tmp_path)
    with pytest.raises(UnreadableImageError, match=r"is 12 x 20 pixels, .* for 24 x 40"):
        data.box_statistics("train")
    with pytest.raises(UnreadableImageError, match=r"is 12 x 20 pixels, .* for 24 x 40"):
        next(iter(data.test_dataloader()))


def test_a_folder_of_no_known_layout_says_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ValueError, match=r"found there: pictures.*Expected COCO"):
        opened(tmp_path)


def test_a_part_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    for part in ("train", "holdout"):
        write_coco(tmp_path / part, objects(4))
    with pytest.raises(FileNotFoundError, match=r"no part 'test' in .* \(parts: holdout, train\)"):
        opened(tmp_path)


def test_of_a_training_part_alone_a_share_tests(tmp_path: Path) -> None:
    write_coco(tmp_path / "as_roboflow/train", objects(10))
    write_images(tmp_path / "as_cvat/images/default", objects(10))
    (tmp_path / "as_cvat/annotations").mkdir()
    file = tmp_path / "as_cvat/annotations/instances_default.json"
    file.write_text(json.dumps(coco(objects(10))))
    for root in ("as_roboflow", "as_cvat"):
        data = opened(tmp_path / root, val_images=1)
        assert data.protocol()["sizes"] == {"train": 7, "val": 1, "test": 2}
        assert data.official_parts["test"] == "test (drawn, 0.2)"


def test_a_root_may_lead_upwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(tmp_path / "photos", objects(8))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert opened(Path("../photos"), val_images=1).class_names == NAMES


def test_all_boxes_count_however_few_images_are_opened(tmp_path: Path) -> None:
    write_coco(tmp_path, objects(16))
    data = opened(tmp_path, val_fraction=0)
    found, few = (data.box_statistics("train", most_images=n) for n in (1000, 2))
    assert few.images == few.of_images == found.images
    assert few.boxes.tolist() == found.boxes.tolist()


def test_xml_files_lie_beside_pictures_of_any_ending(tmp_path: Path) -> None:
    write_voc(tmp_path, objects(8))
    for folder in ("images", "annotations"):
        for path in (tmp_path / folder).iterdir():
            path.rename(tmp_path / path.name.replace(".png", ".PNG"))
        (tmp_path / folder).rmdir()
    assert opened(tmp_path, val_images=1).class_names == NAMES


@pytest.mark.shared_data
@pytest.mark.filterwarnings("ignore:304 of 600", "ignore:Boxes without area")
@pytest.mark.parametrize(
    ("archive", "options", "sizes", "names", "boxes"),
    [
        # 4,888 boxes by the README of the archives; two of them have no area.
        ("bccd", {"train_dir": "trainval"}, (292, 72), ["Platelets", "RBC", "WBC"], 4886),
        ("raccoon-small", {}, (160, 40), ["raccoon"], 217),
        ("pets-small", {}, (237, 59), ["cat", "dog"], 297),
    ],
)
def test_public_sets_are_read_as_they_come(
    shared_data: Path,
    tmp_path: Path,
    archive: str,
    options: dict[str, Any],
    sizes: tuple[int, int],
    names: list[str],
    boxes: int,
) -> None:
    with zipfile.ZipFile(shared_data / f"{archive}.zip") as packed:
        packed.extractall(tmp_path)
    data = opened(next(tmp_path.iterdir()), val_fraction=0, **options)
    found = [data.box_statistics(split) for split in ("train", "test")]
    assert tuple(some.of_images for some in found) == sizes
    assert data.class_names == names
    assert sum(int(some.boxes.sum()) for some in found) == boxes
    assert [some.outside for some in found] == [0, 0]


def test_a_stretched_image_has_stretched_boxes(tmp_path: Path) -> None:
    truth = objects(8)
    write_voc(tmp_path, truth)
    data = opened(tmp_path, val_fraction=0, resize="stretch")
    batch = data.samples("train", range(len(data.indices("train"))))
    height, width = data.image_size
    scale = torch.tensor([width / SIZE[1], height / SIZE[0]]).repeat(2)
    for row, name in enumerate(data.image_names("train")):
        assert batch["size"][row].tolist() == [height, width]
        expected = torch.tensor([r[1:] for r in truth[Path(name).stem]]).view(-1, 4)
        has = batch["box_label"][row] >= 0
        torch.testing.assert_close((batch["boxes"][row] / scale)[has], expected.float())


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_a_cache_of_features_needs_besides_is_read_without_images(
    split: Split, tmp_path: Path
) -> None:
    write_coco(tmp_path, objects(8))
    data = opened(tmp_path, val_fraction=0)
    dataset, rows = data.loader_dataset(split), range(len(data.indices(split)))
    whole = dataset.__getitems__(rows)
    rest = dataset.without_images(labels=data.labels(split), indices=data.indices(split))
    for image in (tmp_path / "images").glob("*.png"):
        image.unlink()
    lean = rest.__getitems__(rows)
    assert whole.keys() - lean.keys() == {"image"}
    assert all(torch.equal(lean[name], whole[name]) for name in lean)


def test_parts_of_any_name_can_test(tmp_path: Path) -> None:
    parts = {"train": objects(8), "holdout": objects(4, prefix="h")}
    for part, truth in parts.items():
        write_images(tmp_path / "images" / part, truth)
        write_yolo(tmp_path / part, truth)
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / part / "labels").rename(tmp_path / "labels" / part)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    for part in parts:
        shutil.rmtree(tmp_path / part)
    data = opened(tmp_path, test_dir="holdout", val_images=2)
    assert data.protocol()["sizes"] == {"train": 6, "val": 2, "test": 4}
