"""Claims about damaged and foreign depth files: one sentence that names file, frame and remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from datamodules import NYUDepthV2
from datamodules.recipe import UnreadableImageError
from tests.support.depth_factory import (
    depth_frame,
    write_frame,
    write_frame_folders,
    write_labelled,
)
from tests.support.depth_factory import write_splits as write_official_splits

MAT = "nyu_depth_v2_labeled.mat"
Change = Callable[[np.ndarray], None]


def labelled(root: Path, change: dict[str, Any] | None = None, **options: Any) -> NYUDepthV2:
    write_labelled(root / MAT, change=change)
    write_official_splits(root / "splits.mat")
    return NYUDepthV2(str(root), **{"num_workers": 0, "val_images": 2, **options})


def changed_depth(change: Change, *, number: int = 9) -> np.ndarray:
    """`depths` (12, 32, 24) as the file holds it, one frame changed."""
    depths = np.stack([depth_frame(frame)[1].T for frame in range(12)])
    change(depths[number])
    return depths


def hole(value: float) -> Change:
    def fill(depth: np.ndarray) -> None:
        depth[5, 3] = value

    return fill


def times(factor: float) -> Change:
    def scale(depth: np.ndarray) -> None:
        depth *= factor

    return scale


def read_all(data: NYUDepthV2) -> None:
    data.setup("test")
    batches = iter(data.test_dataloader())
    try:
        list(batches)
    finally:
        if data.num_workers:  # left to the garbage collector, each takes five seconds
            batches._shutdown_workers()


def told(data: NYUDepthV2) -> str:
    """The one sentence that reading all of the data ends in."""
    with pytest.raises((RuntimeError, OSError)) as caught:
        read_all(data)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert isinstance(caught.value, UnreadableImageError)
    return message


ROTATED = np.zeros((12, 3, 24, 32), dtype=np.uint8)
ZEROS = np.zeros((12, 32, 24), dtype=np.float32)


def test_filled_in_depth_is_not_to_be_renamed_to_raw(tmp_path: Path) -> None:
    message = told(labelled(tmp_path, {"rawDepths": None}, depth="raw"))
    assert "has no array 'rawDepths'" in message
    assert message.endswith("Use data.depth: depths, or the official file, which has both.")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            {"depths": None, "depth": ZEROS},
            ["has no array 'depths'", "'rawDepths'", "float32 (N, W, H)", "Did you mean 'depth'?"],
        ),
        ({"images": None}, ["has no array 'images'", "uint8 (N, 3, W, H)"]),
        ({"images": ROTATED}, ["'images'", "(12, 3, 24, 32)", "(1449, 3, 640, 480)", "transpose"]),
        (
            {"images": np.zeros((12, 32, 24, 3), np.uint8)},
            ["'images'", "(12, 32, 24, 3)", "expected (N, 3, W, H)"],
        ),
        (
            {"depths": np.zeros((12, 24, 32), np.float32)},
            ["'depths'", "(12, 24, 32)", "(12, 32, 24)", "last two axes", "Transpose"],
        ),
        ({"depths": np.zeros((12, 16, 12), np.float32)}, ["'depths'", "(12, 16, 12)", "same"]),
        ({"depths": np.zeros((11, 32, 24), np.float32)}, ["(11, 32, 24)", "same frames and size"]),
        ({"depths": np.zeros((32, 24), np.float32)}, ["shape (32, 24), expected (N, W, H)"]),
        ({"depths": ZEROS.astype(np.uint16)}, ["is uint16", "float32", "millimetres: divide"]),
        ({"depths": ZEROS.astype(np.float64)}, ["is float64", "Convert the array to float32"]),
        ({"images": np.zeros((12, 3, 32, 24), np.float32)}, ["is float32", "expected uint8"]),
        ({"scenes": np.zeros((1, 12))}, ["'scenes' is float64 (1, 12)", "references"]),
    ],
)
def test_an_array_that_is_not_in_the_format_is_explained(
    tmp_path: Path, change: dict[str, Any], parts: list[str]
) -> None:
    message = told(labelled(tmp_path, change))
    for part in (str(tmp_path / MAT), *parts):
        assert part in message


BAD_DEPTH = pytest.mark.parametrize(
    ("change", "parts"),
    [
        (hole(np.nan), ["is nan at row 3, column 5 (1 such pixels)", "0 where nothing was"]),
        (hole(np.inf), ["is inf at row 3, column 5"]),
        (hole(-np.inf), ["is -inf at row 3, column 5"]),
        (hole(-0.5), ["is -0.5 at row 3, column 5"]),
        (times(0), ["is 0 everywhere", "no pixel was measured"]),
        (times(1000), ["median of", "expected metres", "millimetres: divide the depth by 1000"]),
    ],
)


@BAD_DEPTH
@pytest.mark.parametrize("workers", [0, 1])
def test_depth_that_cannot_be_metres_names_the_frame_of_the_file(
    tmp_path: Path, change: Change, parts: list[str], workers: int
) -> None:
    data = labelled(tmp_path, {"depths": changed_depth(change)}, num_workers=workers)
    message = told(data)
    assert message.startswith(f"{tmp_path / MAT}, frame 9: ")
    for part in ("'depths'", *parts):
        assert part in message


@BAD_DEPTH
def test_depth_that_cannot_be_metres_names_the_file_of_the_frame(
    tmp_path: Path, change: Change, parts: list[str]
) -> None:
    write_frame_folders(tmp_path)
    depth = depth_frame(3)[1].copy()
    change(depth.T)
    bad = write_frame(tmp_path / "val" / "official" / "00003.h5", change={"depth": depth})
    message = told(NYUDepthV2(str(tmp_path), num_workers=0, val_images=2))
    assert message.startswith(f"{bad}: ")
    for part in ("'depth'", *parts):
        assert part in message


def test_one_far_outlier_is_no_millimetres(tmp_path: Path) -> None:
    data = labelled(tmp_path, {"depths": changed_depth(hole(60))})
    data.setup("test")
    assert data.read("test", np.array([1]))["depth_m"].max() == 60


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"rgb": None}, ["has no array 'rgb'", "it holds 'depth'"]),
        ({"rgb": None, "rbg": ROTATED[0]}, ["Did you mean 'rbg'?"]),
        ({"rgb": np.zeros((24, 32, 3), np.uint8)}, ["(24, 32, 3), expected (3, H, W)"]),
        ({"rgb": np.zeros((3, 32, 24), np.uint8)}, ["(3, 32, 24), expected (3, H, W)"]),
        ({"depth": np.zeros((12, 16), np.float32)}, ["24 x 32 pixels", "(12, 16)", "(24, 32)"]),
        ({"depth": np.zeros((24, 32), np.uint16)}, ["is uint16 (24, 32)", "millimetres"]),
        (
            {"rgb": np.zeros((3, 12, 16), np.uint8), "depth": np.ones((12, 16), np.float32)},
            ["has 12 x 16 pixels, expected 24 x 32", "00001.h5", "one size"],
        ),
    ],
)
def test_a_frame_that_is_not_in_the_format_is_explained(
    tmp_path: Path, change: dict[str, Any], parts: list[str]
) -> None:
    write_frame_folders(tmp_path)
    bad = write_frame(tmp_path / "val" / "official" / "00003.h5", change=change)
    message = told(NYUDepthV2(str(tmp_path), num_workers=1, val_images=2))
    for part in (str(bad), *parts):
        assert part in message


@pytest.mark.parametrize("keep", [0, 100, 600, -50])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    data = labelled(tmp_path / "a")
    path = tmp_path / "a" / MAT
    path.write_bytes(path.read_bytes()[:keep])
    assert f"Cannot open {path} as HDF5" in told(data)

    write_frame_folders(tmp_path / "b")
    path = tmp_path / "b" / "val" / "official" / "00002.h5"
    path.write_bytes(path.read_bytes()[:keep])
    message = told(NYUDepthV2(str(tmp_path / "b"), num_workers=1, val_images=2))
    assert f"Cannot open {path} as HDF5" in message
    assert "truncated" in message


def test_a_damaged_frame_in_a_whole_file_is_named(tmp_path: Path) -> None:
    data = labelled(tmp_path)
    with h5py.File(tmp_path / MAT, "r+") as file:
        frames = file["depths"].id
        _, chunk = frames.read_direct_chunk((9, 0, 0))
        frames.write_direct_chunk((9, 0, 0), bytes(len(chunk)))
    message = told(data)
    assert "Cannot read frame 9 of 'depths'" in message
    assert str(tmp_path / MAT) in message


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    write_frame_folders(tmp_path)
    data = NYUDepthV2(str(tmp_path), num_workers=1, val_images=2)
    data.setup("test")
    path = tmp_path / "val" / "official" / "00002.h5"
    path.unlink()
    assert told(data).startswith(f"{path} is missing")


@pytest.mark.parametrize("kind", ["external", "soft", "virtual", "storage", "group"])
def test_values_outside_the_file_are_refused(tmp_path: Path, kind: str) -> None:
    write_frame_folders(tmp_path)
    other = write_frame(tmp_path / "secret.h5")
    path = tmp_path / "val" / "official" / "00001.h5"
    with h5py.File(path, "r+") as file:
        del file["depth"]
        if kind == "external":
            file["depth"] = h5py.ExternalLink(str(other), "depth")
        elif kind == "soft":
            file["outside"] = h5py.ExternalLink(str(other), "/")
            file["depth"] = h5py.SoftLink("/outside/depth")
        elif kind == "virtual":
            layout = h5py.VirtualLayout((24, 32), dtype="f4")
            layout[...] = h5py.VirtualSource(str(other), "depth", shape=(24, 32))
            file.create_virtual_dataset("depth", layout)
        elif kind == "storage":
            raw = (str(other), 0, 24 * 32 * 4)
            file.create_dataset("depth", (24, 32), dtype="f4", external=[raw])
        else:
            file.create_group("depth")
    message = told(NYUDepthV2(str(tmp_path), num_workers=0, val_images=2))
    assert str(path) in message
    expected = {
        "external": "is a link to",
        "soft": "is a link to '/outside/depth'",
        "virtual": "lie in other files",
        "storage": "lie in other files",
        "group": "is a group, expected an array",
    }
    assert expected[kind] in message


def test_a_scene_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    data = labelled(tmp_path)
    with h5py.File(tmp_path / MAT, "r+") as file:
        file["scenes"][0, 4] = h5py.Reference()
    assert "frame 4: 'scenes' does not lead to a name" in told(data)


def test_parts_of_two_sizes_are_refused(tmp_path: Path) -> None:
    write_frame_folders(tmp_path)
    small = {"rgb": np.zeros((3, 12, 16), np.uint8), "depth": np.ones((12, 16), np.float32)}
    for path in (tmp_path / "val" / "official").iterdir():
        write_frame(path, change=small)
    message = told(NYUDepthV2(str(tmp_path), num_workers=0, val_images=2))
    assert "train are (24, 32) pixels" in message
    assert "val (12, 16)" in message
