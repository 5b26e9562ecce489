"""Claims about the core of the three caches: rows that are made once and mapped by everyone.

Row i of the caches here holds i + 1 in the array `bytes`, and 256 times that in `words`.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.cache import rows as row_cache
from datamodules.cache.rows import RowCache, UnwritableError, alone, map_array, new_folder
from datamodules.recipe import UnreadableImageError
from tests.support.faults import Trap, damages, flip, small_disk

ALL = np.arange(10)
OF = {"source": "s", "size": [3, 4]}


def cache(folder: Path, *, of: dict[str, Any] = OF, rows: int = 10, width: int = 4) -> RowCache:
    arrays = {"bytes": ((rows, 3, width), np.uint8), "words": ((rows, width), "<u2")}
    return RowCache(folder, of, arrays)


def blocks(positions: np.ndarray, bar: Any, *, width: int = 4, size: int = 4) -> Iterator[Any]:
    for start in range(0, len(positions), size):
        some = positions[start : start + size]
        rows = np.repeat(some[:, None] + 1, width, axis=1)
        batch = {
            "bytes": np.repeat(rows[:, None], 3, axis=1).astype(np.uint8),
            "words": (256 * rows).astype("<u2"),
        }
        yield some, np.stack([some, 10 * some], axis=1), batch
        bar.update(len(some))


def filled(folder: Path, positions: np.ndarray = ALL) -> RowCache:
    made = cache(folder)
    made.fill(positions, blocks, title="Filling")
    return made


def numbers(rows: RowCache) -> list[int]:
    """What the rows hold, as both arrays say it."""
    maps = rows.maps()
    found = maps["words"][:, 0] // 256
    assert np.array_equal(maps["bytes"][:, 2, 3], found)
    return found.tolist()


def read(rows: RowCache, positions: np.ndarray) -> dict[str, np.ndarray]:
    return {name: array[positions] for name, array in rows.maps().items()}


def test_rows_are_written_in_any_order_and_the_others_are_made_later(tmp_path: Path) -> None:
    filled(tmp_path / "c", np.array([7, 2, 8]))
    loaded = cache(tmp_path / "c").load()
    assert np.flatnonzero(loaded.ready).tolist() == [2, 7, 8]
    asked: list[int] = []

    def noted(positions: np.ndarray, bar: Any) -> Iterator[Any]:
        asked.extend(positions.tolist())
        return blocks(positions, bar)

    loaded.fill(ALL, noted, title="Filling")
    assert asked == [0, 1, 3, 4, 5, 6, 9]
    again = cache(tmp_path / "c").load()
    assert again.ready.all()
    assert numbers(again) == list(range(1, 11))
    assert again.records["stamp"].tolist() == [[i, 10 * i] for i in range(10)]
    assert not len(again.drop_damaged())


def test_the_files_are_ones_that_numpy_reads(tmp_path: Path) -> None:
    filled(tmp_path / "c")
    arrays = {path.name: np.load(path, allow_pickle=False) for path in tmp_path.glob("c/*.npy")}
    assert {name: array.shape for name, array in arrays.items()} == {
        "bytes.npy": (10, 3, 4), "words.npy": (10, 4), "rows.npy": (10,),
    }  # fmt: skip
    assert OF.items() <= json.loads((tmp_path / "c" / "about.json").read_text()).items()


def test_what_is_not_written_takes_no_room(tmp_path: Path) -> None:
    large = cache(tmp_path / "c", rows=100, width=2**14)
    large.fill(np.array([50]), lambda *a: blocks(*a, width=2**14), title="")
    stat = (tmp_path / "c" / "bytes.npy").stat()
    assert stat.st_size > 100 * 3 * 2**14
    if stat.st_blocks * 512 >= stat.st_size:
        pytest.skip("this file system knows no sparse files")
    assert stat.st_blocks * 512 < 5 * 3 * 2**14


def test_a_row_is_marked_after_its_bytes_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the time of each wait for the disk, no row is marked that was not waited for."""
    monkeypatch.setattr(row_cache, "_MARK_SECONDS", 0)
    marked: list[int] = []

    def fsync(handle: int) -> None:
        marked.append(int(np.load(tmp_path / "c" / "rows.npy")["ready"].sum()))

    monkeypatch.setattr(os, "fsync", fsync)
    filled(tmp_path / "c")
    assert marked == sorted(marked)
    assert marked[:4] == [0, 0, 4, 4], "two arrays and four rows a block"
    assert cache(tmp_path / "c").load().ready.all()


def test_an_error_of_the_data_keeps_what_is_done(tmp_path: Path) -> None:
    def unreadable(positions: np.ndarray, bar: Any) -> Iterator[Any]:
        yield from list(blocks(positions, bar))[:2]
        raise FileNotFoundError("row 8")

    with pytest.raises(FileNotFoundError, match="row 8"):
        cache(tmp_path / "c").fill(ALL, unreadable, title="Filling")
    found = cache(tmp_path / "c").load()
    assert np.flatnonzero(found.ready).tolist() == list(range(8))
    assert not len(found.drop_damaged())


def test_a_damaged_row_is_named_with_its_array_and_can_be_written_again(tmp_path: Path) -> None:
    filled(tmp_path / "c")
    flip(tmp_path / "c" / "words.npy", 0.99)
    found = cache(tmp_path / "c").load()
    some = np.array([3, 9, 0])
    assert found.damaged(some, read(found, some)) == [(1, "words")]
    assert found.drop_damaged().tolist() == [9]
    assert not found.ready[9]
    found.fill(ALL, blocks, title="Filling")
    assert numbers(cache(tmp_path / "c").load()) == list(range(1, 11))
    assert not len(cache(tmp_path / "c").load().drop_damaged())


def test_a_row_is_compared_by_the_first_read_of_each_process(tmp_path: Path) -> None:
    filled(tmp_path / "c")
    found = cache(tmp_path / "c").load()
    assert found.damaged(ALL, found.maps()) == []
    flip(tmp_path / "c" / "bytes.npy", 0.99)
    assert found.damaged(ALL, found.maps()) == [], "it was right when it was read"
    other = pickle.loads(pickle.dumps(found))
    assert other.damaged(ALL, other.maps()) == [(9, "bytes")]


def test_pickled_it_carries_no_rows(tmp_path: Path) -> None:
    large = cache(tmp_path / "c", width=2**14)
    large.fill(ALL, lambda *a: blocks(*a, width=2**14), title="")
    content = pickle.dumps(large)
    assert len(content) < 2000
    assert numbers(pickle.loads(content)) == list(range(1, 11))


def test_one_that_vanishes_or_is_replaced_by_another_is_told_in_one_sentence(
    tmp_path: Path,
) -> None:
    sent = pickle.dumps(filled(tmp_path / "c"))
    shutil.rmtree(tmp_path / "c")
    for _ in range(2):
        with pytest.raises(UnreadableImageError, match=r"c was changed while.*Run again\.$"):
            pickle.loads(sent).maps()
        other = cache(tmp_path / "c", width=5)
        other.fill(ALL, lambda *a: blocks(*a, width=5), title="")


def test_what_it_was_made_from_must_be_the_same(tmp_path: Path) -> None:
    filled(tmp_path / "c")
    with pytest.raises(ValueError, match=r"from other files or in another way \(size\)$"):
        cache(tmp_path / "c", of={**OF, "size": [3, 5]}).load()
    with pytest.raises(FileNotFoundError):
        cache(tmp_path / "d").load()


def test_whatever_happens_to_a_file_the_rows_are_right_or_it_is_told(tmp_path: Path) -> None:
    filled(tmp_path / "c")
    told = 0
    for damage in damages(tmp_path / "c"):
        try:
            found = cache(tmp_path / "c").load()
        except (OSError, ValueError):
            told += 1
            continue
        bad = found.drop_damaged()
        told += len(bad) > 0
        right = np.array(numbers_of(found)) == ALL + 1
        assert right[found.ready].all(), damage
    assert told >= 185  # of 208: a changed stamp is for those who stamped it to notice


def numbers_of(rows: RowCache) -> list[int]:
    """As `numbers`, of rows that may be damaged: 0 where they are."""
    words, content = rows.maps()["words"], rows.maps()["bytes"]
    same = (words == words[:, :1]).all(1) & (content == (words[:, :1] // 256)[:, None]).all((1, 2))
    return np.where(same & (words[:, 0] % 256 == 0), words[:, 0] // 256, 0).tolist()


@pytest.mark.parametrize("name", ["about.json", "rows.npy", "bytes.npy"])
def test_a_pipe_is_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    filled(tmp_path / "c")
    (tmp_path / "c" / name).unlink()
    os.mkfifo(tmp_path / "c" / name)
    with pytest.raises(ValueError, match=f"{name} is no file"):
        cache(tmp_path / "c").load()


@pytest.mark.parametrize("name", ["about.json", "rows.npy", "bytes.npy"])
def test_nothing_is_ever_unpickled(name: str, tmp_path: Path) -> None:
    filled(tmp_path / "c")
    trap = np.array([Trap(tmp_path / "sprung")] * 10, dtype=object)
    with (tmp_path / "c" / name).open("wb") as file:
        np.save(file, trap, allow_pickle=True)
    with pytest.raises(ValueError, match=r"\w"):
        cache(tmp_path / "c").load()
    assert not (tmp_path / "sprung").exists()


def test_more_than_the_disk_has_is_told_with_the_remedy_before_anything_is_made(
    tmp_path: Path,
) -> None:
    def never(positions: np.ndarray, bar: Any) -> Iterator[Any]:
        raise AssertionError
        yield

    with (
        alone(tmp_path / "c"),
        pytest.raises(UnwritableError, match=r"needs \d{7,} MiB, but \d+ MiB are.*data\.cache"),
    ):
        cache(tmp_path / "c", width=2**38).fill(ALL, never, title="Filling")
    assert {path.name for path in tmp_path.iterdir()} <= {".c.lock"}


@pytest.mark.parametrize("begun", [False, True])
def test_a_disk_that_fills_up_is_an_error_and_only_what_was_begun_then_is_removed(
    begun: bool, tmp_path: Path
) -> None:
    def filling(positions: np.ndarray, bar: Any) -> Iterator[Any]:
        with pytest.raises(OSError, match="No space left"):
            (disk / "other").write_bytes(b"\1" * 2**21)
        return blocks(positions, bar, width=2**13)

    with small_disk(tmp_path / "disk", size_mib=1) as disk:
        made = cache(disk / "c", width=2**13)
        if begun:
            made.fill(ALL[:2], lambda *a: blocks(*a, width=2**13), title="Filling")
        with pytest.raises(UnwritableError, match="No space left") as error:
            made.fill(ALL, filling, title="Filling")
        assert error.value.errno == errno.ENOSPC
        assert {path.name for path in disk.iterdir()} == {"other"} | ({"c"} if begun else set())
        if begun:
            kept = cache(disk / "c", width=2**13).load()
            assert kept.ready[:2].all()
            assert not len(kept.drop_damaged())


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


def test_what_a_killed_process_left_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / ".c.new").mkdir()
    (tmp_path / ".c.new" / "bytes.npy").write_bytes(b"half")
    assert numbers(filled(tmp_path / "c")) == list(range(1, 11))
    assert list(tmp_path.iterdir()) == [tmp_path / "c"]


def test_one_process_at_a_time_and_the_other_is_told(tmp_path: Path) -> None:
    folder, said = tmp_path / "made" / "c", []
    for _ in range(2):  # a lock that nobody holds is no reason to wait
        with alone(folder, waiting=lambda: said.append(1)):
            pass
    assert said == []
    with alone(folder):
        process = os.fork()
        if process == 0:
            try:
                with alone(folder, waiting=lambda: (tmp_path / "told").touch()):
                    (tmp_path / "entered").touch()
            finally:
                os._exit(0)
        wait_for((tmp_path / "told").exists)
        assert not (tmp_path / "entered").exists()
    assert os.waitpid(process, 0)[1] == 0
    assert (tmp_path / "entered").exists()


def wait_for(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_parent_that_cannot_be_made_is_an_unwritable_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableError, match="Not a directory"), alone(tmp_path / "file/x/c"):
        pass


def write(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def test_an_array_is_mapped_as_it_was_written(tmp_path: Path) -> None:
    array = np.arange(24, dtype="<u2").reshape(2, 3, 4)
    path = write(tmp_path / "a.npy", array)
    mapped = map_array(path, shape=(2, 3, 4), kind=np.uint16)
    assert isinstance(mapped.base, np.memmap)
    assert not mapped.flags.writeable
    assert np.array_equal(mapped, array)


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
