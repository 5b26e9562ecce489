"""Getting data survives what happens to a process: killed for real, twice at once, a full disk."""

from __future__ import annotations

import signal
import time
import zipfile
from functools import partial
from pathlib import Path

import pytest

from datamodules.download import obtain_folder
from tests.support.faults import small_disk
from tests.support.forks import forked

FILES = 3000


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "many.zip"
    with zipfile.ZipFile(path, "w") as file:
        for number in range(FILES):
            file.writestr(f"data/{number:05d}.txt", f"{number}\n" * 50)
    return path


def complete(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    return names == {f"{number:05d}.txt" for number in range(FILES)} and all(
        (folder / name).read_text() == f"{int(name[:5])}\n" * 50 for name in names
    )


def test_two_processes_extract_once_also_after_a_third_was_killed(
    tmp_path: Path, archive: Path
) -> None:
    folder, log = tmp_path / "root" / "data", tmp_path / "said"
    extract = partial(obtain_folder, folder, archive=archive, inside="data")
    with forked(extract, log) as third:
        end = time.monotonic() + 60
        while len(found := list(folder.parent.rglob("*.txt"))) < 100:
            assert time.monotonic() < end
        third.kill()
        assert third.wait() == -signal.SIGKILL
    assert len(found) < FILES
    assert not folder.exists(), "it does not look ready"
    inodes: set[int] = set()
    with forked(extract, log) as one, forked(extract, tmp_path / "other") as two:
        while one.poll() is None or two.poll() is None:
            if folder.exists():  # it appears whole, and is not made a second time
                inodes.add(folder.stat().st_ino)
                assert len(list(folder.glob("*.txt"))) == FILES
    assert (one.returncode, two.returncode) == (0, 0), log.read_text()
    assert len(inodes) <= 1
    assert complete(folder)
    assert {path.name for path in folder.parent.iterdir()} <= {"data", ".data.lock"}


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, archive: Path) -> None:
    with small_disk(tmp_path / "disk", size_mib=2) as disk:
        with pytest.raises(OSError, match=rf"no room to extract {archive}.*data\.root"):
            obtain_folder(disk / "data", archive=archive)
        assert {path.name for path in disk.iterdir()} <= {".data.lock"}
