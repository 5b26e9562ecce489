"""Claims about NYU Depth V2 in its two layouts, on tiny files of the real formats."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.cli import LightningArgumentParser
from torch.utils.data import DataLoader

from datamodules import ImageDataModule, NYUDepthV2, Subset
from datamodules.loading import as_is
from datamodules.nyu import labelled as labelled_file
from tests.support.depth_factory import (
    depth_frame,
    write_frame,
    write_frame_folders,
    write_labelled,
    write_splits,
)
from tests.support.forks import keep_a_process

MAT = "nyu_depth_v2_labeled.mat"


def labelled(tmp_path: Path, **options: Any) -> NYUDepthV2:
    """The labelled file: frames 0 to 7 train, 8 to 11 test; two frames a scene."""
    root = tmp_path / "nyu"
    if not root.exists():
        write_labelled(root / MAT)
        write_splits(root / "splits.mat")
    return NYUDepthV2(str(root), **{"num_workers": 0, "val_images": 2, **options})


def folders(tmp_path: Path, **options: Any) -> NYUDepthV2:
    """One file a frame: frames 0 to 11 train, 12 to 15 test; scenes of 4, 3 and 5 frames."""
    root = tmp_path / "frames"
    if not root.exists():
        write_frame_folders(root)
    return NYUDepthV2(str(root), **{"num_workers": 0, "val_images": 2, **options})


LAYOUTS = pytest.mark.parametrize(("make", "first_test"), [(labelled, 8), (folders, 12)])


@LAYOUTS
def test_batches_hold_upright_images_and_metres(tmp_path: Path, make: Any, first_test: int) -> None:
    data = make(tmp_path)
    data.prepare_data()
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
        "image": (torch.uint8, (4, 3, 24, 32)),
        "depth_m": (torch.float32, (4, 24, 32)),
        "label": (torch.int64, (4,)),
        "index": (torch.int64, (4,)),
    }
    for row in range(4):
        image, depth = depth_frame(first_test + row)
        assert np.array_equal(batch["image"][row].numpy(), image)
        assert np.array_equal(batch["depth_m"][row].numpy(), depth)
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert batch["label"].tolist() == [0] * 4


@LAYOUTS
def test_frames_come_in_the_order_asked_for(tmp_path: Path, make: Any, first_test: int) -> None:
    data = make(tmp_path)
    data.setup("test")
    (batch,) = data.test_dataloader()
    asked = [3, 0, 3, 1]
    for read in (data.read("test", np.array(asked)), data.samples("test", asked)):
        assert torch.equal(read["image"], batch["image"][asked])
        assert torch.equal(read["depth_m"], batch["depth_m"][asked])
    assert torch.equal(data.images("test", [2]), batch["image"][[2]])


@LAYOUTS
def test_summary_and_protocol_say_what_was_read(tmp_path: Path, make: Any, first_test: int) -> None:
    data = make(tmp_path)
    summary, protocol = data.summary(), data.protocol()
    assert summary["num_classes"] == 1
    assert summary["class_names"] == ["scene"]
    assert summary["image_size"] == [24, 32]
    assert protocol["training_frames"] == first_test
    assert protocol["depth_rounding"] == "none"
    if make is labelled:
        assert (protocol["layout"], protocol["depth"]) == ("labelled", "depths")
        assert protocol["official_split"]["test"] == "test"
        assert protocol["training_share"] == "75 % of 8 labelled frames = 6 images"
        assert protocol["scenes"] == {"train": 3, "val": 1, "test": 2, "train_and_test": 0}
    else:
        assert (protocol["layout"], protocol["depth"]) == ("frames", "depth")
        assert protocol["official_split"]["test"] == "val"
        assert protocol["scenes"] == {"train": 2, "val": 1, "test": None, "train_and_test": None}


@pytest.mark.parametrize("seed", range(4))
def test_recordings_of_one_room_stay_on_one_side(tmp_path: Path, seed: int) -> None:
    folders(tmp_path)
    rooms = sorted((tmp_path / "frames/train").iterdir())
    for room, name in zip(rooms, ("den_0001a", "den_0001b", "hall_0002"), strict=True):
        room.rename(room.with_name(name))
    data = folders(tmp_path, seed=seed)
    data.setup("fit")
    scenes = data.layout.scenes("train")
    assert scenes is not None
    train, val = ({scenes[n] for n in data.indices(split)} for split in ("train", "val"))
    assert train | val == {"den_0001", "hall_0002"}
    assert not train & val


def test_raw_depth_keeps_its_holes(tmp_path: Path) -> None:
    filled, raw = labelled(tmp_path), labelled(tmp_path, depth="raw")
    for data in (filled, raw):
        data.setup("test")
    (a,), (b,) = filled.test_dataloader(), raw.test_dataloader()
    assert (a["depth_m"] > 0).all()
    assert (b["depth_m"][..., :2] == 0).all()
    assert torch.equal(a["depth_m"][..., 2:], b["depth_m"][..., 2:])
    assert raw.protocol()["depth"] == "raw"


def test_per_frame_files_have_no_raw_depth(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'raw', but .*frames holds the per-frame layout"):
        folders(tmp_path, depth="raw").prepare_data()
    with pytest.raises(ValueError, match=r"data\.depth is 'metric'; use depths or raw"):
        NYUDepthV2("x", depth="metric")


def test_root_may_be_the_labelled_file_itself_and_splits_any_file(tmp_path: Path) -> None:
    write_labelled(tmp_path / "mine.mat")
    write_splits(tmp_path / "elsewhere" / "half.mat", train=[12, 1], test=[6])
    data = NYUDepthV2(
        str(tmp_path / "mine.mat"),
        splits=str(tmp_path / "elsewhere" / "half.mat"),
        val_fraction=0,
        num_workers=0,
    )
    data.prepare_data()
    data.setup()
    assert np.array_equal(data.images("test", [0])[0].numpy(), depth_frame(5)[0])
    assert np.array_equal(data.images("train", [1])[0].numpy(), depth_frame(11)[0])


@pytest.mark.parametrize(
    ("fill", "found"),
    [
        (lambda root: None, r"there is no folder .*nyu\. Expected"),
        (lambda root: write_labelled(root / "nyu_labelled.mat"), r"holds 'nyu_labelled\.mat'"),
        (lambda root: write_frame(root / "train" / "a" / "1.h5"), r"holds 'train'\. Expected"),
    ],
)
def test_where_neither_layout_is_both_are_explained(tmp_path: Path, fill: Any, found: str) -> None:
    fill(tmp_path / "nyu")
    data = NYUDepthV2(str(tmp_path / "nyu"), download=False)
    for step in (data.prepare_data, data.setup):
        with pytest.raises(FileNotFoundError, match=found) as caught:
            step()
    for part in (
        "http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/nyu_depth_v2_labeled.mat",
        "http://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat",
        "<scene>/<n>.h5",
    ):
        assert part in str(caught.value)


def test_two_layouts_in_one_folder_are_ambiguous(tmp_path: Path) -> None:
    data = labelled(tmp_path)
    write_frame_folders(data.root)
    with pytest.raises(ValueError, match=rf"holds both {MAT} and the folder train"):
        data.setup()
    one = NYUDepthV2(str(data.root / MAT), num_workers=0, val_images=2)
    assert one.summary()["splits"]["test"]["images"] == 4


def test_a_missing_split_says_where_to_get_it(tmp_path: Path) -> None:
    data = labelled(tmp_path)
    (data.root / "splits.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"splits\.mat is missing\. Download http://.*2\.6"):
        data.setup()


def test_folders_without_frames_are_named(tmp_path: Path) -> None:
    data = folders(tmp_path)
    shutil.rmtree(data.root / "val")
    (data.root / "val" / "official").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"frames/val holds no frames\. .*<scene>/<n>\.h5"):
        data.setup()


def test_an_archive_of_frames_is_extracted(tmp_path: Path) -> None:
    made = write_frame_folders(tmp_path / "nyudepthv2")
    archive = shutil.make_archive(str(tmp_path / "x"), "gztar", tmp_path, made.name)
    data = NYUDepthV2(str(tmp_path / "root"), archive=archive, num_workers=0, val_images=2)
    data.prepare_data()
    assert data.summary()["splits"]["test"]["images"] == 4


def test_the_fingerprint_follows_frames_and_split(tmp_path: Path) -> None:
    first = labelled(tmp_path).protocol()["data_sha256"]
    assert labelled(tmp_path).protocol()["data_sha256"] == first
    write_splits(tmp_path / "nyu" / "splits.mat", test=[9, 10])
    fewer = labelled(tmp_path).protocol()["data_sha256"]
    shade = np.full((12, 3, 32, 24), 7, dtype=np.uint8)
    write_labelled(tmp_path / "nyu" / MAT, change={"images": shade})
    assert len({first, fewer, labelled(tmp_path).protocol()["data_sha256"]}) == 3

    before = folders(tmp_path).protocol()["data_sha256"]
    (tmp_path / "frames" / "val" / "official" / "00004.h5").unlink()
    assert folders(tmp_path).protocol()["data_sha256"] != before


def loaded(dataset: Any, **options: Any) -> dict[str, torch.Tensor]:
    batches = list(DataLoader(dataset, batch_size=2, collate_fn=as_is, **options))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@LAYOUTS
def test_four_forked_workers_read_what_this_process_reads(
    tmp_path: Path, make: Any, first_test: int
) -> None:
    data = make(tmp_path, val_fraction=0, val_images=0)
    data.setup("fit")
    dataset = data.loader_datasets["train"].source
    alone = loaded(dataset)
    worked = loaded(dataset, num_workers=4, multiprocessing_context="fork")
    assert all(torch.equal(alone[name], worked[name]) for name in alone)


@LAYOUTS
def test_workers_that_are_no_copies_of_this_process_read_the_same(
    tmp_path: Path, make: Any, first_test: int
) -> None:
    data = make(tmp_path, val_fraction=0, val_images=0)
    data.setup("fit")
    dataset = data.loader_datasets["train"].source
    keep_a_process()  # their copies are of that one, and they get all else as `spawn` hands it over
    served = loaded(dataset, num_workers=1, multiprocessing_context="forkserver")
    alone = loaded(dataset)
    assert all(torch.equal(alone[name], served[name]) for name in alone)


def test_whole_training_epochs_see_each_frame_once(tmp_path: Path) -> None:
    data = labelled(tmp_path, batch_size=4, num_workers=2)
    data.setup("fit")
    seen = torch.cat([batch["index"] for batch in data.train_dataloader()])
    assert sorted(seen.tolist()) == data.indices("train").tolist()


def test_it_is_configured_from_yaml() -> None:
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(ImageDataModule, "data", subclass_mode=True)
    text = (
        "data: {class_path: datamodules.NYUDepthV2, init_args: {root: x, depth: raw, "
        "splits: s.mat, subset: {fraction: 0.01}, batch_size: 8, num_workers: 4}}"
    )
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    data = instantiate(parser.parse_string(text)).data
    assert isinstance(data, NYUDepthV2)
    assert (data.depth, data.splits, data.num_workers) == ("raw", Path("s.mat"), 4)
    assert data.subset == Subset(fraction=0.01)
    assert data.num_classes == 1
    assert NYUDepthV2().num_workers == 2


@pytest.mark.parametrize("place", [100, -100])
def test_a_large_file_is_fingerprinted_by_samples_that_hold_both_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    monkeypatch.setattr(labelled_file, "_SAMPLE_BLOCKS", 4)
    monkeypatch.setattr(labelled_file, "_SAMPLE_BYTES", 256)
    path = write_labelled(tmp_path / MAT)
    file = labelled_file.LabelledFile(path, depth="depths")
    before = file.fingerprint()
    assert file.fingerprint() == before
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert file.fingerprint() != before
