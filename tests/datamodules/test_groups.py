"""Images that belong together are on one side of a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import CamVid, ImageFolder, ImageTable, NYUDepthV2, Subset, Synthetic
from datamodules.base import ImageDataModule
from datamodules.splits import choose_train_and_validation


def write_drives(root: Path, *, test_drive: str = "z") -> Path:
    """Ten drives of four frames in each of two classes; the test is another drive."""
    for name in ("car", "bike"):
        for part, drives in (("train", "abcdefghij"), ("test", test_drive)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for drive in drives:
                for frame in range(4):
                    picture = Image.fromarray(np.full((8, 8, 3), 7 * frame, dtype=np.uint8))
                    picture.save(folder / f"{drive}_{frame}.png")
    return root


def drives(data: ImageFolder | ImageTable, split: Any) -> set[str]:
    data.setup_splits()
    names = data.image_names("train")
    return {Path(names[k]).name.split("_")[0] for k in data.indices(split)}


def folder(root: Path, **options: Any) -> ImageFolder:
    return ImageFolder(str(root), image_size=8, val_fraction=0.3, **options)


def test_no_drive_trains_and_validates(tmp_path: Path) -> None:
    root = write_drives(tmp_path / "photos")
    mixed = folder(root)
    assert drives(mixed, "train") & drives(mixed, "val"), "frames alone are mixed"
    data = folder(root, groups="([a-z])_")
    assert not drives(data, "train") & drives(data, "val")
    assert len(data.indices("val")) == 24
    assert len(data.indices("train")) == 56
    assert set(data.labels("val").tolist()) == {0, 1}
    assert data.protocol()["groups"] == "([a-z])_"
    assert "groups" not in mixed.protocol()


def test_a_few_shot_subset_shares_no_drive_with_validation(tmp_path: Path) -> None:
    root = write_drives(tmp_path / "photos")
    data = folder(root, groups="([a-z])_", subset=Subset(per_class=2))
    assert not drives(data, "train") & drives(data, "val")


def test_a_test_image_of_a_training_drive_is_warned_of(tmp_path: Path) -> None:
    data = folder(write_drives(tmp_path / "photos", test_drive="a"), groups="([a-z])_")
    with pytest.warns(UserWarning, match=r"8 of 8 test images belong to groups .*such as 'a'"):
        data.setup_splits()


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("([a-z]", "is not a regular expression"),
        ("([k-z])|b", r"is not found in bike/a_0.png"),  # that alternative names no group
        ("drive(.)_", r"'drive\(.\)_' is not found in bike/a_0.png"),
    ],
)
def test_a_pattern_that_names_no_group_is_refused(pattern: str, said: str, tmp_path: Path) -> None:
    root = write_drives(tmp_path / "photos")
    with pytest.raises(ValueError, match=f"data.groups.*{said}"):
        folder(root, groups=pattern).setup_splits()


@pytest.mark.parametrize("kind", [CamVid, NYUDepthV2])
def test_data_that_knows_its_groups_takes_no_others(kind: type[ImageDataModule]) -> None:
    with pytest.raises(ValueError, match=rf"data\.groups is 'x'.*{kind.dataset_name}.*Leave it"):
        kind(groups="x")


def test_data_without_paths_has_no_groups() -> None:
    with pytest.raises(ValueError, match=r"images of \w+ have no paths"):
        Synthetic(groups="x", maps=[]).setup_splits()


def test_a_table_has_them_in_a_column(tmp_path: Path) -> None:
    root = write_drives(tmp_path / "photos")
    lines = ["path,label,part,group"]
    for file in sorted(root.rglob("*.png")):
        part, label, name = file.relative_to(root).parts
        lines.append(f"{part}/{label}/{name},{label},{part},{name[0]}")
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    data = ImageTable(str(root / "table.csv"), image_size=8, val_fraction=0.3)
    assert not drives(data, "train") & drives(data, "val")
    assert len(data.indices("val")) == 24


def choose(labels: list[int], groups: list[int], **options: Any) -> tuple[Any, Any]:
    return choose_train_and_validation(
        np.array(labels), None, class_names=["a", "b"], val_images=None, seed=0,
        groups=np.array(groups), **options,
    )  # fmt: skip


def test_every_class_keeps_an_image_to_train_on() -> None:
    for seed_groups in ([0, 0, 1, 1, 2, 2], [2, 2, 0, 0, 1, 1]):
        train, val = choose([0, 0, 1, 1, 1, 1], seed_groups, val_fraction=0.4)
        assert sorted([*train, *val]) == list(range(6))
        assert {0, 1} == {[0, 0, 1, 1, 1, 1][k] for k in train}


def test_where_no_group_can_validate_it_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no group can validate: there are 1 of 4 to 4 images"):
        choose([0, 0, 1, 1], [5, 5, 5, 5], val_fraction=0.25)
