"""Claims about the files that caches are made of."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from datamodules.cache_files import array_header, map_array, new_folder, require_room


def write(path: Path, array: np.ndarray) -> Path:
    with path.open("wb") as file:
        file.write(array_header(array.shape, array.dtype) + array.tobytes())
    return path


def test_a_folder_appears_whole_and_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    for content in ("old", "new"):
        with new_folder(folder) as staging:
            (staging / content).write_text(content)
            assert not (folder / content).exists()
        assert [path.name for path in folder.iterdir()] == [content]
    assert list(tmp_path.iterdir()) == [folder]


def test_after_an_error_the_folder_is_what_it_was_and_nothing_else_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "old").write_text("old")
    with pytest.raises(FileNotFoundError), new_folder(folder) as staging:
        (staging / "new" / "half").write_text("in a folder that is not there")
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [folder]


def test_an_array_is_mapped_as_it_was_written(tmp_path: Path) -> None:
    array = np.arange(24, dtype="<u2").reshape(2, 3, 4)
    path = write(tmp_path / "a.npy", array)
    mapped = map_array(path, shape=(2, 3, 4), kind=np.uint16)
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, array)
    assert np.array_equal(np.load(path), array)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(ValueError, match="is no file"):
        map_array(tmp_path / "a.npy", shape=(2,), kind=np.uint8)


@pytest.mark.parametrize(("shape", "kind"), [((2, 4, 3), np.uint16), ((2, 3, 4), np.int16)])
def test_another_array_than_expected_is_refused(
    tmp_path: Path, shape: tuple[int, ...], kind: type
) -> None:
    path = write(tmp_path / "a.npy", np.zeros((2, 3, 4), dtype="<u2"))
    with pytest.raises(ValueError, match=r"a\.npy does not begin as an array"):
        map_array(path, shape=shape, kind=kind)


def test_a_file_of_another_length_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npy", np.zeros((2, 3, 4), dtype="<u2"))
    for content in (b"", path.read_bytes() + b"0"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.npy has {len(content)} bytes, expected 176"):
            map_array(path, shape=(2, 3, 4), kind=np.uint16)


def test_more_than_the_disk_has_is_told_with_the_remedy(tmp_path: Path) -> None:
    require_room(tmp_path / "cache", 1)
    with pytest.raises(OSError, match=r"needs 1099511627776 MiB, but \d+ MiB are.*data\.cache"):
        require_room(tmp_path / "cache", 2**60)
