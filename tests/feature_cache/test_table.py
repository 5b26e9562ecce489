"""A table is whole or not there: processes really killed, files damaged, disks full, two at once.

Row i of the tables here holds 8 times the number i.
"""

from __future__ import annotations

import pickle
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.cache import rows as row_cache
from datamodules.cache.rows import UnwritableError
from kora.feature_cache.table import Column, Layout, Table, open_table
from tests.support.faults import damages, flip, small_disk
from tests.support.forks import Process, forked
from tests.support.kept_tables import OF, filled, numbered, rows_done

LAYOUT = Layout(10, (Column("pooled", (8,), "float32"),), "float32")

#: Of tables that are killed while they are filled.
LONG = Layout(400, LAYOUT.columns, "float32")


def fill_slowly(folder: Path, pause_s: float) -> None:
    """As a run does: fill what is missing, 4 rows at a time, or wait for another."""

    def say(text: str) -> None:
        print(text, flush=True)

    def slowly(missing: Any) -> Iterator[Any]:
        say(f"{len(missing)} from {missing[0]}")
        for block in numbered(LONG)(missing):
            time.sleep(pause_s)
            yield block

    row_cache._MARK_SECONDS = 0
    with row_cache.alone(folder, waiting=lambda: say("waiting")):
        table = open_table(folder, OF, LONG, say=say)
        if len(table.missing):
            table.fill_missing(slowly)
    say("whole")


def opened(folder: Path, layout: Layout = LAYOUT) -> tuple[Table, str]:
    """The table in a folder, and what is said of it, which is one line at most."""
    said: list[str] = []
    table = open_table(folder, OF, layout, say=said.append)
    assert len(said) <= 1
    return table, "".join(said)


def whole(folder: Path, layout: Layout = LAYOUT) -> Table:
    """The table in a folder, which has all its rows."""
    table, said = opened(folder, layout)
    assert said == ""
    assert not len(table.missing)
    return table


def wait_for(done: Callable[[], bool], process: Process) -> None:
    end = time.monotonic() + 120
    while not done() and time.monotonic() < end:
        assert process.poll() is None
        time.sleep(0.01)


def test_rows_come_back_in_any_order_and_in_another_process(tmp_path: Path) -> None:
    filled(tmp_path / "t", LAYOUT)
    table = whole(tmp_path / "t")
    for one in (table, pickle.loads(pickle.dumps(table))):
        assert torch.equal(one.read([7, 0, 7])[:, 3], torch.tensor([7.0, 0.0, 7.0]))


def test_bfloat16_comes_back_as_such(tmp_path: Path) -> None:
    layout = Layout(3, (Column("pooled", (2,), "float32"),), "bfloat16")
    rows = torch.tensor([[1.5, -2.0], [0.25, 3.0], [1e30, 0.0]])
    Table(tmp_path / "t", OF, layout).fill_missing(
        lambda missing: [(missing, layout.pack({"pooled": rows}))]
    )
    assert torch.equal(whole(tmp_path / "t", layout).read([2, 1]), rows[[2, 1]].bfloat16())


def test_where_there_is_none_all_rows_are_missing_and_nothing_is_said(tmp_path: Path) -> None:
    table, said = opened(tmp_path / "t")
    assert (len(table.missing), said) == (10, "")


def test_whatever_happens_to_a_file_the_rows_are_right_and_one_line_says_so_at_most(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "t"
    rows = filled(folder, LAYOUT).read(range(10))
    told = 0
    for damage in damages(folder, flips=20):
        table, said = opened(folder)
        assert "\n" not in said, damage
        assert (str(folder) in said) == bool(said), damage
        told += bool(said)
        table.fill_missing(numbered(LAYOUT))
        assert torch.equal(table.read(range(10)), rows), damage
        assert torch.equal(whole(folder).read(range(10)), rows), damage
    assert told >= 50  # of 66: a table of features has no stamps, and a row may be made again


def test_whatever_happens_to_a_filling_that_was_killed_it_comes_to_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    half_filled(folder)
    rows = torch.arange(10.0)[:, None].expand(10, 8)
    for damage in damages(folder, flips=4):
        assert torch.equal(filled(folder, LAYOUT).read(range(10)), rows), damage
        assert torch.equal(whole(folder).read(range(10)), rows), damage


def test_the_first_damaged_row_is_named_and_only_damaged_ones_are_missing(tmp_path: Path) -> None:
    filled(tmp_path / "t", LAYOUT)
    flip(tmp_path / "t" / "features.npy", 0.8)  # 128 bytes of header, then 320: row 7 of 10
    table, said = opened(tmp_path / "t")
    assert f"{tmp_path / 't' / 'features.npy'} is damaged in row 7: it is filled anew." in said
    assert table.missing.tolist() == [7]
    flip(tmp_path / "t" / "features.npy", 0.9)
    table, said = opened(tmp_path / "t")
    assert "is damaged in row 7 and 1 more: it is filled anew." in said
    assert table.missing.tolist() == [7, 8]


def half_filled(folder: Path) -> None:
    """As a process leaves it that is stopped after eight rows."""

    def stops(missing: Any) -> Iterator[Any]:
        yield from list(numbered(LAYOUT)(missing))[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Table(folder, OF, LAYOUT).fill_missing(stops)


@pytest.mark.parametrize(
    ("damage", "missing"),
    [(None, [8, 9]), ("features.npy", [7, 8, 9]), ("about.json", list(range(10)))],
)
def test_what_is_there_and_whole_is_not_computed_again(
    damage: str | None, missing: list[int], tmp_path: Path
) -> None:
    folder, asked = tmp_path / "t", []
    half_filled(folder)
    if damage is not None:
        flip(folder / damage, 0.8)
    table, said = opened(folder)
    assert bool(said) == (damage is not None)
    assert table.missing.tolist() == missing, "half a table is none"

    def blocks(rows: Any) -> Iterator[Any]:
        asked.extend(rows.tolist())
        yield from numbered(LAYOUT)(rows)

    table.fill_missing(blocks)
    assert asked == missing
    assert table.read(range(10))[:, 0].tolist() == list(range(10))
    whole(folder)


def test_half_a_table_of_another_layout_is_begun_anew(tmp_path: Path) -> None:
    half_filled(tmp_path / "t")
    other = Layout(10, (Column("pooled", (9,), "float32"),), "float32")
    assert filled(tmp_path / "t", other).read([9]).tolist() == [[9.0] * 9]


@pytest.mark.slow
@pytest.mark.parametrize("begun", [False, True])
def test_a_full_disk_is_an_error_and_gets_its_room_back(begun: bool, tmp_path: Path) -> None:
    layout = Layout(400, (Column("pooled", (2048,), "float32"),), "float32")  # 3.1 MiB
    with small_disk(tmp_path / "disk", size_mib=4) as disk:

        def crowded(missing: Any) -> Iterator[Any]:
            with pytest.raises(OSError, match="No space left"):
                (disk / "other").write_bytes(b"\1" * 2**22)
            return numbered(layout, size=16)(missing)

        table = Table(disk / "t", OF, layout)
        if begun:
            table.fill(
                np.arange(4),
                lambda rows, bar: (
                    (rows, 0, {"features": values}) for rows, values in numbered(layout)(rows)
                ),
                title="",
            )
        with pytest.raises(UnwritableError, match="No space left"):
            table.fill_missing(crowded)
        assert [path.name for path in disk.iterdir()] == ["other"]
        (disk / "other").unlink()
        assert shutil.disk_usage(disk).free > 3.9 * 2**20


def test_a_filling_that_is_killed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder, log = tmp_path / "t", tmp_path / "said"
    with forked(partial(fill_slowly, folder, 0.01), log) as first:
        wait_for(lambda: rows_done(folder) >= 40, first)
        first.kill()
        assert first.wait() == -signal.SIGKILL
    done = rows_done(folder)
    assert 40 <= done < 400
    assert len(opened(folder, LONG)[0].missing) == 400 - done
    with forked(partial(fill_slowly, folder, 0), log) as second:
        assert second.wait() == 0, log.read_text()
    assert log.read_text() == f"{400 - done} from {done}\nwhole\n"
    assert whole(folder, LONG).read(range(400))[:, 0].tolist() == list(range(400))


def test_of_two_processes_at_once_one_fills_and_the_other_waits(tmp_path: Path) -> None:
    folder, one, two = tmp_path / "t", tmp_path / "one", tmp_path / "two"
    with forked(partial(fill_slowly, folder, 0.01), one) as first:
        wait_for(lambda: rows_done(folder) >= 20, first)
        first.send_signal(signal.SIGSTOP)  # it may be done before the second has begun
        with forked(partial(fill_slowly, folder, 0), two) as second:
            wait_for(lambda: two.exists() and bool(two.read_text()), second)
            first.send_signal(signal.SIGCONT)
            assert [first.wait(), second.wait()] == [0, 0]
    assert one.read_text() == "400 from 0\nwhole\n"
    assert two.read_text() == "waiting\nwhole\n"


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
