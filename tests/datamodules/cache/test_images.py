"""Claims about the mapped cache of image files, and about what faults do to it."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import time
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch

from datamodules.cache.images import ImageCache, ImageFiles, open_images
from datamodules.recipe import ImageRecipe, UnreadableImageError
from tests.support.data_factory import write_class_folders
from tests.support.faults import damages, flip, small_disk, truncate
from tests.support.forks import forked

SIZE = (24, 32)
ALL = np.arange(24)
CROP = ImageRecipe("crop", SIZE)


@pytest.fixture
def files(tmp_path: Path) -> ImageFiles:
    """24 images of mixed sizes and formats."""
    return files_in(write_class_folders(tmp_path / "mine"))


def files_in(root: Path, **options: Any) -> ImageFiles:
    paths = sorted(path for path in (root / "train").rglob("*") if path.is_file())
    return ImageFiles(paths, **{"folder": root, "recipe": CROP, "what": "mine", **options})


def read(cache: ImageCache, positions: np.ndarray = ALL) -> torch.Tensor:
    return cache.read(positions)["image"]


def quiet(folder: Path, files: ImageFiles, positions: np.ndarray = ALL) -> torch.Tensor:
    """What the cache holds, and nothing is said."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read(open_images(folder, files, positions), positions)


def test_files_of_another_folder_are_others_wherever_the_process_is(
    files: ImageFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files.folder)
    here = replace(files, folder=Path("."))
    left, right = (
        replace(here, paths=[Path(f"{side}/{n}.bmp") for n in range(3)]).identity() for side in "LR"
    )
    assert left != right
    outside = replace(here, paths=[Path("/elsewhere/0.bmp")]).identity()
    assert outside != replace(here, paths=[Path("/else/0.bmp")]).identity()


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_it_gives_the_bytes_that_decoding_gives_in_any_order(
    files: ImageFiles, tmp_path: Path, fit: Any
) -> None:
    files = replace(files, recipe=replace(CROP, fit=fit))
    cache = open_images(tmp_path / "cache", files, ALL)
    order = np.random.default_rng(0).permutation(24)
    for chosen in (order, order[:5], np.array([3, 3])):
        image = read(cache, chosen)
        assert image.dtype == torch.uint8
        assert image.is_contiguous()
        assert torch.equal(image, files.decode(chosen))


def test_a_process_that_opens_it_again_compares_again(files: ImageFiles, tmp_path: Path) -> None:
    """The folder may have been made again since: by a run that decodes other rows of it."""
    folder, few = tmp_path / "cache", ALL[:2]
    cache = open_images(folder, files, ALL)
    expected = read(cache)
    sent = pickle.dumps(cache)
    shutil.rmtree(folder)
    open_images(folder, files, few)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(read(pickle.loads(sent)), expected)


def test_what_is_read_may_be_written_to_and_the_cache_stays(
    files: ImageFiles, tmp_path: Path
) -> None:
    cache = open_images(tmp_path / "cache", files, ALL)
    read(cache).zero_()
    assert torch.equal(read(cache), files.decode(ALL))


def spoil_source(path: Path) -> None:
    """Replace an image by noise, so that nobody can see it but by decoding it."""
    stat = path.stat()
    path.write_bytes(b"\0" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_only_what_is_asked_for_is_decoded_and_only_once(files: ImageFiles, tmp_path: Path) -> None:
    exact = files.decode(ALL)
    some = np.array([2, 3, 9])
    open_images(tmp_path / "cache", files, some)
    for position in some:
        spoil_source(files.paths[position])
    cache = open_images(tmp_path / "cache", files, ALL)
    assert torch.equal(read(cache), exact)


def other_content(files: ImageFiles, folder: Path) -> None:
    shutil.copy(files.paths[9], files.paths[1])


def other_time(files: ImageFiles, folder: Path) -> None:
    os.utime(files.paths[1], ns=(1, 1))


def no_images(files: ImageFiles, folder: Path) -> None:
    (folder / "images.npy").unlink()


def bad_record(files: ImageFiles, folder: Path) -> None:
    (folder / "about.json").write_text("[]")


def of_another_pillow(files: ImageFiles, folder: Path) -> None:
    shutil.rmtree(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PIL, "__version__", "1.0")
        open_images(folder, files, ALL)


@pytest.mark.parametrize(
    "spoil", [other_content, other_time, no_images, bad_record, of_another_pillow]
)
def test_a_stale_or_damaged_cache_is_made_again_and_one_line_says_so(
    files: ImageFiles, tmp_path: Path, spoil: Any
) -> None:
    folder = tmp_path / "cache"
    open_images(folder, files, ALL)
    spoil(files, folder)
    with pytest.warns(UserWarning, match=rf"^The cache {folder} is made again: .*\.$") as said:
        cache = open_images(folder, files, ALL)
    assert len(said) == 1
    assert torch.equal(read(cache), files.decode(ALL))
    assert torch.equal(quiet(folder, files), files.decode(ALL))


def test_whatever_happens_to_a_file_the_images_are_right_and_one_line_says_so_at_most(
    files: ImageFiles, tmp_path: Path
) -> None:
    folder, exact = tmp_path / "cache", files.decode(ALL)
    open_images(folder, files, ALL)
    told = 0
    for damage in damages(folder, flips=8):
        ImageCache.told.clear()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert torch.equal(read(open_images(folder, files, ALL)), exact), damage
        assert len(said) <= 1, damage
        assert torch.equal(quiet(folder, files), exact), damage
        told += len(said)
    assert told >= 27  # of 30: to decode one image once more needs no word


def test_the_line_names_the_image_that_changed_or_the_option(
    files: ImageFiles, tmp_path: Path
) -> None:
    open_images(tmp_path / "cache", files, ALL)
    os.utime(files.paths[7], ns=(1, 1))
    with pytest.warns(
        UserWarning, match=f"images that changed since: 1, the first is {files.paths[7]}"
    ):
        open_images(tmp_path / "cache", files, ALL)
    with pytest.warns(UserWarning, match=r"in another way \(fit\)"):
        open_images(tmp_path / "cache", replace(files, recipe=replace(CROP, fit="stretch")), ALL)


def test_a_changed_image_that_nobody_asks_for_changes_nothing(
    files: ImageFiles, tmp_path: Path
) -> None:
    open_images(tmp_path / "cache", files, ALL)
    os.utime(files.paths[7], ns=(1, 1))
    quiet(tmp_path / "cache", files, np.array([0, 1]))


def test_a_run_at_work_keeps_its_images_while_another_makes_the_cache_again(
    files: ImageFiles, tmp_path: Path
) -> None:
    exact = files.decode(ALL)
    at_work = open_images(tmp_path / "cache", files, ALL)
    other_content(files, tmp_path / "cache")
    with pytest.warns(UserWarning, match="made again"):
        open_images(tmp_path / "cache", files, ALL)
    assert torch.equal(read(at_work), exact)


def test_a_flipped_byte_is_noticed_by_the_first_read_and_mended(
    files: ImageFiles, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    exact = read(open_images(folder, files, ALL))
    flip(folder / "images.npy")
    cache = open_images(folder, files, ALL)
    with pytest.warns(UserWarning, match=rf"{folder} is damaged: the image of .*checksum") as said:
        assert torch.equal(read(cache), exact)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(read(cache), exact)
    assert torch.equal(quiet(folder, files), exact)


def test_an_image_that_cannot_be_decoded_or_is_gone_is_named_and_the_others_are_kept(
    files: ImageFiles, tmp_path: Path
) -> None:
    open_images(tmp_path / "cache", files, ALL[:10])
    truncate(files.paths[20])
    with pytest.raises(UnreadableImageError, match=f"Cannot read the image {files.paths[20]}"):
        open_images(tmp_path / "cache", files, ALL)
    quiet(tmp_path / "cache", files, ALL[:10])
    files.paths[20].unlink()
    with pytest.raises(UnreadableImageError, match=rf"{files.paths[20]} \(No such file"):
        open_images(tmp_path / "cache", files, ALL)


def test_a_complete_cache_on_a_read_only_disk_is_used(files: ImageFiles, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_mib=2) as disk:
        open_images(disk / "cache", files, ALL)
        (disk / ".cache.lock").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert torch.equal(quiet(disk / "cache", files), files.decode(ALL))


@dataclass(frozen=True)
class Counted(ImageFiles):
    """Says what it decodes, and takes long."""

    def decode(self, positions: Any, bar: Any = None) -> torch.Tensor:
        print(len(positions), flush=True)
        time.sleep(0.2)
        return super().decode(positions, bar)


def open_and_compare(folder: Path, files: ImageFiles, expected: np.ndarray) -> None:
    cache = open_images(folder, Counted(**vars(files)), ALL)
    print(np.array_equal(read(cache).numpy(), expected))


def test_of_two_processes_at_once_one_decodes_and_both_read_the_same(
    files: ImageFiles, tmp_path: Path
) -> None:
    folder, logs = tmp_path / "cache", [tmp_path / "one", tmp_path / "two"]
    work = partial(open_and_compare, folder, files, files.decode(ALL).numpy())
    with forked(work, logs[0]) as one, forked(work, logs[1]) as two:
        assert [one.wait(), two.wait()] == [0, 0]
    assert sorted(log.read_text() for log in logs) == ["24\nTrue\n", "True\n"]
