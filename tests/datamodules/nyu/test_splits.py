"""Claims about the official split of NYU Depth V2, and about validation by whole scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io

from datamodules import NYUDepthV2, Subset
from datamodules.nyu.splits import choose_by_scene, read_official_split
from datamodules.splits import choose_subset
from tests.support.depth_factory import write_frame_folders, write_labelled, write_splits

SCENES = [f"s{scene}" for scene in range(60) for _ in range(1 + scene % 4)]  # 150 images


def choose(scenes: list[str] = SCENES, subset: Subset | None = None, **options: Any) -> Any:
    settings = {"val_fraction": 0.1, "val_images": None, "seed": 0, **options}
    return choose_by_scene(scenes, subset, class_names=["scene"], **settings)


@pytest.mark.parametrize("val_images", [0, 1, 7, 15, 100])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("subset", [None, Subset(fraction=0.05)])
def test_no_scene_trains_and_validates(val_images: int, seed: int, subset: Subset | None) -> None:
    train, val = choose(subset=subset, val_images=val_images, seed=seed)
    scenes = np.array(SCENES)
    assert len(val) == val_images
    assert not set(scenes[train]) & set(scenes[val])
    assert len(np.unique(val)) == len(val)
    # Whole scenes, but for one.
    partly = [s for s in set(scenes[val]) if (scenes[val] == s).sum() < (scenes == s).sum()]
    assert len(partly) <= 1
    if subset is None:
        assert len(train) + len(val) >= len(SCENES) - 3  # the rest of that scene


def test_scenes_are_drawn_by_the_seed() -> None:
    first, again, other = choose(seed=1)[1], choose(seed=1)[1], choose(seed=2)[1]
    assert first.tolist() == again.tolist() != other.tolist()
    assert len(first) == 15  # a tenth of 150


def test_the_subset_is_that_of_every_data_set_and_ignores_how_many_validate() -> None:
    subset = Subset(fraction=0.05)
    expected = choose_subset(np.zeros(150, dtype=np.int64), subset, class_names=["x"], seed=3)
    for val_images in (0, 5, 20):
        assert np.array_equal(choose(subset=subset, val_images=val_images, seed=3)[0], expected)


def test_the_last_scene_is_used_in_part_and_evenly() -> None:
    train, val = choose(["a"] * 10 + ["b"] * 10, val_images=4)
    assert (val % 10).tolist() == [0, 3, 6, 9]
    assert set(train // 10) == {1 - val[0] // 10}
    assert len(train) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_images": 150}, r"asks for 150 images, but only 14[6-9] of the 150 .*one scene is"),
        ({"scenes": ["a"] * 9, "val_images": 1}, r"only 0 of the 9 .*Use val_images: 0 for no"),
        (
            {"subset": Subset(fraction=0.9)},
            r"asks for 15 images, but only \d of .* Use val_images: \d or less, or a smaller",
        ),
        ({"val_fraction": 0.001}, r"0\.001 of 150 training images is less than one image"),
    ],
)
def test_validation_that_cannot_be_had_says_how_much_can(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose(**options)


def test_one_per_cent_of_795_is_8_images(tmp_path: Path) -> None:
    write_labelled(tmp_path / "nyu_depth_v2_labeled.mat", frames=1449, size=(2, 3))
    rng = np.random.default_rng(0).permutation(1449) + 1
    write_splits(tmp_path / "splits.mat", train=np.sort(rng[:795]), test=np.sort(rng[795:]))
    data = NYUDepthV2(str(tmp_path), subset=Subset(fraction=0.01), num_workers=0)
    protocol = data.protocol()
    assert protocol["sizes"] == {"train": 8, "val": 80, "test": 654}
    assert protocol["training_frames"] == 795
    assert protocol["training_share"] == "1 % of 795 labelled frames = 8 images"


@pytest.mark.parametrize(("frames", "images"), [(24_231, 242), (47_584, 476)])
def test_one_per_cent_of_the_per_frame_layouts(frames: int, images: int) -> None:
    scenes = [f"s{i % 249}" for i in range(frames)]
    train, _ = choose(scenes, subset=Subset(fraction=0.01), val_images=80)
    assert len(train) == images


def test_frames_of_the_per_frame_layout_are_kept_together(tmp_path: Path) -> None:
    write_frame_folders(tmp_path)
    for seed in range(4):
        data = NYUDepthV2(str(tmp_path), num_workers=0, val_images=3, seed=seed)
        data.setup_splits()
        scenes = np.array(data.layout.scenes("train"))
        train, val = scenes[data.indices("train")], scenes[data.indices("val")]
        assert len(set(val)) == 1
        assert set(train) == set(scenes) - set(val)
        assert len(val) == 3


def test_without_scenes_single_frames_validate_and_this_is_said(tmp_path: Path) -> None:
    write_labelled(tmp_path / "nyu_depth_v2_labeled.mat", change={"scenes": None})
    write_splits(tmp_path / "splits.mat")
    data = NYUDepthV2(str(tmp_path), num_workers=0, val_images=3)
    with pytest.warns(UserWarning, match="does not say which scene"):
        data.setup_splits()
    assert len(data.indices("val")) == 3
    assert len(data.indices("train")) == 5
    assert data.protocol()["scenes"] is None


def test_a_scene_in_both_official_parts_is_counted(tmp_path: Path) -> None:
    write_labelled(tmp_path / "nyu_depth_v2_labeled.mat", scenes=["a"] * 3 + ["b"] * 3 + ["a"] * 6)
    write_splits(tmp_path / "splits.mat")
    data = NYUDepthV2(str(tmp_path), num_workers=0, val_fraction=0)
    assert data.protocol()["scenes"]["train_and_test"] == 1


@pytest.mark.parametrize(
    "lists",
    [
        {"train": [1, 13]},
        {"test": [0, 4]},
        {"test": [8, 9, 10]},
        {"train": [2, 2, 3]},
        {"test": []},
        {"names": ("trainNdx", "testNdxs")},
    ],
)
def test_a_split_that_does_not_fit_is_explained(tmp_path: Path, lists: dict[str, Any]) -> None:
    write_labelled(tmp_path / "nyu_depth_v2_labeled.mat")
    write_splits(tmp_path / "splits.mat", **lists)
    expected = r"splits\.mat does not split the 12 frames of .*'trainNdxs' and 'testNdxs'.*1\.\.12"
    with pytest.raises(ValueError, match=expected) as caught:
        NYUDepthV2(str(tmp_path), val_images=2).setup()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("numbers", [[[1.5]], ["one"], [[np.nan]]])
def test_a_split_of_anything_but_whole_numbers_is_refused(tmp_path: Path, numbers: Any) -> None:
    scipy.io.savemat(tmp_path / "s.mat", {"trainNdxs": numbers, "testNdxs": [[2]]})
    with pytest.raises(ValueError, match=r"s\.mat does not split the 9 frames of x\.mat"):
        read_official_split(tmp_path / "s.mat", frames=9, source=Path("x.mat"))


@pytest.mark.parametrize("kind", ["text", "truncated", "hdf5"])
def test_an_unreadable_split_is_named(tmp_path: Path, kind: str) -> None:
    path = write_splits(tmp_path / "splits.mat")
    if kind == "text":
        path.write_bytes(b"no split " * 40)
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:150])
    else:
        with h5py.File(path, "w") as file:
            file["trainNdxs"] = [[1]]
    with pytest.raises((RuntimeError, ValueError), match=r"splits\.mat .*splits\.mat") as caught:
        read_official_split(path, frames=9, source=Path("x.mat"))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.shared_data
def test_the_official_split_has_795_and_654_of_1449_frames(shared_data: Path) -> None:
    parts = read_official_split(shared_data / "splits.mat", frames=1449, source=Path("x.mat"))
    assert (len(parts["train"]), len(parts["test"])) == (795, 654)
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(1449))
    assert parts["train"][:3].tolist() == [2, 3, 4]
    assert parts["test"][:3].tolist() == [0, 1, 8]
