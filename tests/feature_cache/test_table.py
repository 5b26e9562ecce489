"""A table is whole or not there: processes really killed, files damaged, disks full, two at once.

Row i of the tables here holds 8 times the number i.
"""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kora.feature_cache.table import (
    Column,
    Layout,
    Table,
    UnwritableError,
    alone,
    fill,
    open_table,
    rows_done,
)
from kora.runs.durable import DamagedFileError
from tests.support.faults import damages, flip, small_disk, truncate
from tests.support.kept_tables import OF, numbered

LAYOUT = Layout(10, (Column("pooled", (8,), "float32"),), "float32")

#: Fills a table of 4,000 rows, 20 at a time, slowly enough to be killed; or waits for another.
FILLER = """
import sys, time
from pathlib import Path
from kora.feature_cache.table import Column, Layout
from kora.feature_cache.table import alone, fill, open_table
from tests.support.kept_tables import OF, numbered
layout = Layout(4000, (Column("pooled", (8,), "float32"),), "float32")
folder, pause = Path(sys.argv[1]), float(sys.argv[2])
def slowly(first):
    print(f"from {first}", flush=True)
    for block in numbered(layout, size=20)(first):
        time.sleep(pause)
        yield block
with alone(folder, say=lambda text: print(text, flush=True)):
    if open_table(folder, OF) is None:
        fill(folder, OF, layout, slowly)
print("whole", flush=True)
"""


def filled(folder: Path) -> Table:
    return fill(folder, OF, LAYOUT, numbered(LAYOUT))


def filler(folder: Path, *, pause: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FILLER, str(folder), str(pause)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_rows(folder: Path, rows: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while rows_done(folder) < rows and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_rows_come_back_in_any_order_and_in_another_process(tmp_path: Path) -> None:
    filled(tmp_path / "t")
    table = open_table(tmp_path / "t", OF)
    assert table is not None
    for one in (table, pickle.loads(pickle.dumps(table))):
        assert torch.equal(one.read([7, 0, 7])[:, 3], torch.tensor([7.0, 0.0, 7.0]))
    assert len(pickle.dumps(table)) < 2000, "the map is not handed on"


def test_bfloat16_comes_back_as_such(tmp_path: Path) -> None:
    layout = Layout(3, (Column("pooled", (2,), "float32"),), "bfloat16")
    rows = torch.tensor([[1.5, -2.0], [0.25, 3.0], [1e30, 0.0]])
    fill(tmp_path / "t", OF, layout, lambda first: iter([layout.pack({"pooled": rows})]))
    table = open_table(tmp_path / "t", OF)
    assert table is not None
    assert torch.equal(table.read([2, 1]), rows[[2, 1]].bfloat16())


def test_where_there_is_none_none_is_opened(tmp_path: Path) -> None:
    assert open_table(tmp_path / "t", OF) is None


@pytest.mark.parametrize("name", ["rows.npy", "about.json"])
@pytest.mark.parametrize("place", [0.02, 0.5, 0.99])
def test_a_changed_byte_is_noticed(name: str, place: float, tmp_path: Path) -> None:
    filled(tmp_path / "t")
    flip(tmp_path / "t" / name, place)
    with pytest.raises(DamagedFileError, match=str(tmp_path / "t")):
        open_table(tmp_path / "t", OF)


@pytest.mark.parametrize("name", ["rows.npy", "about.json"])
def test_a_file_that_is_cut_short_longer_or_gone_is_noticed(name: str, tmp_path: Path) -> None:
    filled(tmp_path / "t")
    path = tmp_path / "t" / name
    whole = path.read_bytes()
    truncate(path, 0.7)
    with pytest.raises(DamagedFileError):
        open_table(tmp_path / "t", OF)
    path.write_bytes(whole + b"\0")
    with pytest.raises(DamagedFileError):
        open_table(tmp_path / "t", OF)
    path.unlink()
    with pytest.raises(DamagedFileError, match="cannot be read"):
        open_table(tmp_path / "t", OF)


def test_whatever_happens_to_a_file_the_rows_are_right_or_it_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    rows = filled(folder).read(range(10))
    told = 0
    for damage in damages(folder):
        table, error = attempt(folder)
        if table is not None:
            assert torch.equal(table.read(range(10)), rows), damage
        else:
            assert str(folder) in error, damage
            assert "\n" not in error, damage
            told += 1
    assert told >= 110  # the name behind a checksum may be any


def attempt(folder: Path) -> tuple[Table | None, str]:
    """The table if it can be opened, and why not."""
    try:
        return open_table(folder, OF), ""
    except DamagedFileError as error:
        return None, str(error)


def test_whatever_happens_to_a_filling_that_was_killed_it_comes_to_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    half_filled(folder)
    rows = torch.from_numpy(np.concatenate(list(numbered(LAYOUT)(0))))
    for damage in damages(folder.with_name("t.filling"), flips=8):
        shutil.rmtree(folder, ignore_errors=True)
        assert rows_done(folder) >= 0
        assert torch.equal(filled(folder).read(range(10)), rows), damage


def test_the_first_damaged_row_is_named(tmp_path: Path) -> None:
    filled(tmp_path / "t")
    flip(tmp_path / "t" / "rows.npy", 0.8)  # 128 bytes of header, then 320: row 7 of 10
    with pytest.raises(DamagedFileError, match="damaged from row 4 on"):  # its block is 4 to 7
        open_table(tmp_path / "t", OF)


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "t")
    with pytest.raises(DamagedFileError, match="of something else"):
        open_table(tmp_path / "t", {**OF, "sites": ["fc1"]})


def test_a_damaged_table_is_replaced(tmp_path: Path) -> None:
    filled(tmp_path / "t")
    truncate(tmp_path / "t" / "rows.npy")
    filled(tmp_path / "t")
    assert open_table(tmp_path / "t", OF) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def half_filled(folder: Path) -> None:
    """As a process leaves it that is killed after eight rows."""

    def stops(first: int) -> Iterator[Any]:
        yield from list(numbered(LAYOUT)(first))[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(folder, OF, LAYOUT, stops)


@pytest.mark.parametrize(("damage", "first"), [(None, 8), ("rows.npy", 4), ("about.json", 0)])
def test_what_is_there_and_whole_is_not_computed_again(
    damage: str | None, first: int, tmp_path: Path
) -> None:
    folder, began = tmp_path / "t", []
    half_filled(folder)
    assert open_table(folder, OF) is None, "half a table is none"
    assert rows_done(folder) == 8
    if damage is not None:
        flip(tmp_path / "t.filling" / damage, 0.95)

    def blocks(row: int) -> Iterator[Any]:
        began.append(row)
        yield from numbered(LAYOUT)(row)

    table = fill(folder, OF, LAYOUT, blocks)
    assert began == [first]
    assert table.read(range(10))[:, 0].tolist() == list(range(10))
    assert open_table(folder, OF) is not None


def test_half_a_table_of_another_layout_is_begun_anew(tmp_path: Path) -> None:
    half_filled(tmp_path / "t")
    other = Layout(10, (Column("pooled", (9,), "float32"),), "float32")
    table = fill(tmp_path / "t", OF, other, numbered(other))
    assert table.read([9]).tolist() == [[9.0] * 9]


def test_an_error_of_the_data_keeps_what_is_done(tmp_path: Path) -> None:
    def unreadable(first: int) -> Iterator[Any]:
        yield next(numbered(LAYOUT)(first))
        raise FileNotFoundError("image 5")

    with pytest.raises(FileNotFoundError, match="image 5"):
        fill(tmp_path / "t", OF, LAYOUT, unreadable)
    assert rows_done(tmp_path / "t") == 4


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_gets_its_room_back(tmp_path: Path) -> None:
    layout = Layout(400, (Column("pooled", (2048,), "float32"),), "float32")  # 3.1 MiB
    with small_disk(tmp_path / "disk", size_mib=2) as disk:
        with pytest.raises(UnwritableError, match="No space left"):
            fill(disk / "t", OF, layout, numbered(layout, size=16))
        assert list(disk.iterdir()) == []
        assert shutil.disk_usage(disk).free > 1.9 * 2**20


@pytest.mark.slow
def test_a_filling_that_is_killed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    first = filler(folder, pause=0.02)
    wait_for_rows(folder, 400, first)
    first.kill()
    first.communicate()
    done = rows_done(folder)
    assert 400 <= done < 4000
    assert not folder.exists()
    second = filler(folder, pause=0)
    out, err = second.communicate(timeout=120)
    assert out == f"from {done}\nwhole\n", err
    table = open_table(folder, OF)
    assert table is not None
    assert table.read(range(4000))[:, 0].tolist() == list(range(4000))


@pytest.mark.slow
def test_of_two_processes_at_once_one_fills_and_the_other_waits(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    first = filler(folder, pause=0.05)
    wait_for_rows(folder, 20, first)
    second = filler(folder, pause=0)
    told = [process.communicate(timeout=240)[0] for process in (first, second)]
    assert told[0] == "from 0\nwhole\n"
    assert told[1] == "waiting for another process that fills the same feature cache.\nwhole\n"


def test_a_lock_that_nobody_holds_is_no_reason_to_wait(tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        with alone(tmp_path / "t", say=said.append):
            pass
    assert said == []


def test_the_file_is_one_that_numpy_reads(tmp_path: Path) -> None:
    filled(tmp_path / "t")
    rows = np.load(tmp_path / "t" / "rows.npy", allow_pickle=False)
    assert rows.shape == (10, 8)
    about = json.loads((tmp_path / "t" / "about.json").read_text())
    assert about["of"] == OF


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "pooled": torch.randn(4, 8, generator=generator),
        "tokens": torch.randn(4, 3, 2, generator=generator).bfloat16(),
        "none": torch.zeros(4, 0, 8),
        "number": torch.randn(4, generator=generator).double(),
    }


def test_float32_gives_back_every_bit_in_its_own_type() -> None:
    given = {**tensors(), "number": torch.tensor([0.5, 1, 2, 3], dtype=torch.float64)}
    layout = Layout.of(given, rows=4, kind="float32")
    rows = layout.pack(given)
    assert rows.shape == (4, layout.width) == (4, 8 + 6 + 0 + 1)
    assert rows.nbytes == 4 * layout.row_bytes
    found = layout.unpack(torch.from_numpy(rows))
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(("kind", "step"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_the_bytes_round_within_half_a_step(kind: str, step: float) -> None:
    given = tensors()
    layout = Layout.of(given, rows=4, kind=kind)
    rows = torch.from_numpy(layout.pack(given))
    assert layout.row_bytes == 2 * layout.width
    found = layout.unpack(rows.view(getattr(torch, kind)))
    assert found["pooled"].dtype == torch.float32
    error = (found["pooled"] - given["pooled"]).abs() / given["pooled"].abs()
    assert 0 < error.max() <= step


def test_a_number_that_is_too_large_for_float16_is_an_error() -> None:
    given = {"pooled": torch.full((1, 2), 1e5)}
    with pytest.raises(ValueError, match=r"too large for float16. Use .*bfloat16"):
        Layout.of(given, rows=1, kind="float16").pack(given)


def test_what_was_not_finite_before_stays_so() -> None:
    given = {"pooled": torch.tensor([[torch.inf, torch.nan]])}
    layout = Layout.of(given, rows=1, kind="float16")
    found = layout.unpack(torch.from_numpy(layout.pack(given)))["pooled"]
    torch.testing.assert_close(found, given["pooled"], equal_nan=True)


def test_a_layout_is_written_and_read() -> None:
    layout = Layout.of(tensors(), rows=7, kind="bfloat16")
    assert Layout.from_dict(layout.to_dict()) == layout
