"""Claims about the mapped cache of the labelled file."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datamodules import NYUDepthV2
from datamodules.loading import as_is
from datamodules.nyu.cache import STEP_M, CachedFrames
from datamodules.recipe import UnreadableImageError
from tests.support.depth_factory import (
    depth_frame,
    write_frame_folders,
    write_labelled,
    write_splits,
)
from tests.support.faults import damages, flip
from tests.support.loaders import read_all

MAT = "nyu_depth_v2_labeled.mat"
FOLDER = "nyu_depth_v2_labeled.depths.cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_labelled(tmp_path / MAT, frames=12)
    write_splits(tmp_path / "splits.mat")
    return tmp_path


def make(root: Path, **options: Any) -> NYUDepthV2:
    return NYUDepthV2(str(root), **{"num_workers": 0, "val_images": 2, **options})


def everything(data: NYUDepthV2) -> dict[str, torch.Tensor]:
    data.setup("test")
    (batch,) = data.test_dataloader()
    return batch


def is_cached(data: NYUDepthV2) -> bool:
    return isinstance(data.layout.reader_of("test")[0], CachedFrames)


def test_it_holds_the_same_images_and_depth_within_a_tenth_of_a_millimetre(root: Path) -> None:
    exact = everything(make(root))
    data = make(root)
    assert not is_cached(data)
    data.prepare_cache()
    assert is_cached(data)  # the module that made it uses it too
    cached = everything(make(root))
    assert torch.equal(cached["image"], exact["image"])
    assert cached["depth_m"].dtype == torch.float32
    error = (cached["depth_m"] - exact["depth_m"]).abs().max().item()
    assert 0 < error <= STEP_M / 2 + 1e-6
    assert [cached["index"].tolist(), cached["label"].tolist()] == [[0, 1, 2, 3], [0] * 4]


def test_missing_stays_missing_and_nothing_else_becomes_it(tmp_path: Path) -> None:
    depths = np.full((12, 32, 24), 1.5, dtype=np.float32)
    depths[:, 0, 0], depths[:, 0, 1], depths[:, 0, 2] = 0, 1e-5, 13.1
    write_labelled(tmp_path / MAT, change={"depths": depths})
    write_splits(tmp_path / "splits.mat")
    make(tmp_path).prepare_cache()
    depth = everything(make(tmp_path))["depth_m"]
    assert depth[0, 0, 0] == 0
    assert depth[0, 1, 0] == pytest.approx(STEP_M)
    assert depth[0, 2, 0] == pytest.approx(13.1)


def test_preparing_says_where_it_lies_and_makes_it_once(root: Path) -> None:
    said = make(root).prepare_cache()
    size = sum((root / FOLDER / name).stat().st_size for name in ("images.npy", "depth.npy"))
    assert said == (
        f"12 frames are in {root / FOLDER} ({size / 2**20:.4g} MiB), "
        "their depth in steps of 0.2 mm."
    )
    before = (root / FOLDER).stat().st_mtime_ns
    assert make(root).prepare_cache() == said  # ready: nothing is made again
    assert (root / FOLDER).stat().st_mtime_ns == before


def test_the_protocol_says_that_depth_is_rounded_and_nothing_else_changes(root: Path) -> None:
    exact = make(root).protocol()
    make(root).prepare_cache()
    cached = make(root).protocol()
    assert exact.pop("depth_rounding") == "none"
    assert cached.pop("depth_rounding") == "steps of 0.2 mm (cache)"
    assert cached == exact


def test_each_kind_of_depth_has_its_own_cache(root: Path) -> None:
    make(root).prepare_cache()
    raw = make(root, depth="raw")
    assert not is_cached(raw)
    raw.prepare_cache()
    assert (everything(make(root, depth="raw"))["depth_m"][..., :2] == 0).all()
    assert (everything(make(root))["depth_m"] > 0).all()


def change_time(root: Path) -> None:
    os.utime(root / MAT, ns=(1, 1))


def other_file(root: Path) -> None:
    write_labelled(root / MAT, frames=13)


def other_depth(root: Path) -> None:
    shutil.rmtree(root / FOLDER)
    make(root, depth="raw").prepare_cache()
    (root / FOLDER.replace("depths", "raw")).rename(root / FOLDER)


def a_missing_frame(root: Path) -> None:
    rows = np.load(root / FOLDER / "rows.npy")
    rows["ready"][3] = False
    np.save(root / FOLDER / "rows.npy", rows)


@pytest.mark.parametrize("spoil", [change_time, other_file, other_depth, a_missing_frame])
def test_a_stale_or_damaged_cache_is_ignored_with_a_warning_and_made_again(
    root: Path, spoil: Any
) -> None:
    make(root).prepare_cache()
    spoil(root)
    data = make(root)
    with pytest.warns(UserWarning, match=rf"{FOLDER} is not used.*kora data prepare"):
        batch = everything(data)
    assert np.array_equal(batch["depth_m"][0].numpy(), depth_frame(8)[1])
    make(root).prepare_cache()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_cached(make(root))


@pytest.mark.parametrize(("name", "workers"), [("images.npy", 0), ("depth.npy", 1)])
def test_a_flipped_byte_is_told_with_file_and_frame_and_prepare_makes_it_again(
    root: Path, name: str, workers: int
) -> None:
    exact = everything(make(root))
    make(root).prepare_cache()
    flip(root / FOLDER / name, 0.8)  # in frame 9 of 12, which is a test frame
    data = make(root, num_workers=workers)
    data.setup("test")
    with pytest.raises(RuntimeError, match=rf"^\S*{name} is damaged: frame 9 .*kora data prepare"):
        read_all(data.test_dataloader())
    make(root).prepare_cache()
    mended = everything(make(root))
    assert torch.equal(mended["image"], exact["image"])


def test_whatever_happens_to_a_file_it_is_told_and_the_depth_is_never_another(root: Path) -> None:
    said_of_it = make(root).prepare_cache()
    exact = everything(make(root))
    told_of = 0
    for damage in damages(root / FOLDER, flips=10):
        found, said = attempt(root)
        told_of += len(said)
        assert len(said) <= 1, damage
        for told in said:
            assert re.search(rf"{FOLDER}.*`kora data prepare --config \.\.\.` to make", told), (
                damage
            )
        if found is not None:
            torch.testing.assert_close(found["depth_m"], exact["depth_m"], atol=STEP_M, rtol=0)
            assert torch.equal(found["image"], exact["image"]), damage
        if said or "about.json" in damage:
            assert make(root).prepare_cache() == said_of_it, damage
            assert torch.equal(everything(make(root))["depth_m"], exact["depth_m"]), damage
    assert told_of > 10


def attempt(root: Path) -> tuple[dict[str, torch.Tensor] | None, list[str]]:
    """The frames if they can be read, and what is said, as a warning or as an error."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found, error = everything(make(root)), []
        except UnreadableImageError as problem:
            found, error = None, [str(problem)]
    return found, [*(str(one.message) for one in said), *error]


def test_a_cache_that_vanishes_is_told_by_the_worker_in_one_sentence(root: Path) -> None:
    make(root).prepare_cache()
    data = make(root)
    data.setup("test")
    dataset = data.loader_datasets["test"].source
    copy = pickle.loads(pickle.dumps(dataset))  # as a spawned worker gets it
    (root / FOLDER / "depth.npy").unlink()
    with pytest.raises(RuntimeError, match=rf"^The cache .*{FOLDER} was changed.*Run again\.$"):
        read_all(DataLoader(copy, num_workers=1, collate_fn=as_is))


def test_a_bad_frame_stops_it_and_leaves_nothing_behind(tmp_path: Path) -> None:
    depths = np.full((12, 32, 24), 1.5, dtype=np.float32)
    depths[10, 0, 0] = -1
    write_labelled(tmp_path / MAT, change={"depths": depths})
    write_splits(tmp_path / "splits.mat")
    with pytest.raises(RuntimeError, match="frame 10: 'depths' is -1"):
        make(tmp_path).prepare_cache()
    depths[10, 0, 0] = 15
    write_labelled(tmp_path / MAT, change={"depths": depths})
    with pytest.raises(ValueError, match=r"frame 10: 'depths' reaches 15 m.* at most 13\.1 m"):
        make(tmp_path).prepare_cache()
    visible = {path.name for path in tmp_path.iterdir() if path.suffix != ".lock"}
    assert visible == {MAT, "splits.mat"}
    assert not is_cached(make(tmp_path))


def test_it_may_lie_elsewhere(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("fast") / "disk"
    make(root, cache=str(elsewhere)).prepare_cache()
    assert (elsewhere / FOLDER / "about.json").is_file()
    assert is_cached(make(root, cache=str(elsewhere)))
    assert not is_cached(make(root))


def test_the_per_frame_layout_needs_none(tmp_path: Path) -> None:
    write_frame_folders(tmp_path)
    assert make(tmp_path).prepare_cache() is None
