"""Claims about files that are there as a whole or not at all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from kora.runs.durable import (
    DamagedFileError,
    has_checksum,
    read_checked,
    remove_checked,
    require_room,
    sweep,
    user_cache,
    write_atomically,
)
from tests.support.faults import flip, small_disk, truncate

MIB = 2**20


def write(path: Path, content: bytes) -> Path:
    return write_atomically(path, lambda p: p.write_bytes(content), checksum=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_checksum_beside_a_file_is_one_of_sha256sum(tmp_path: Path) -> None:
    write(tmp_path / "a.ckpt", b"old")
    write(tmp_path / "a.ckpt", b"new")
    assert read_checked(tmp_path / "a.ckpt") == b"new"
    assert names(tmp_path) == ["a.ckpt", "a.ckpt.sha256"]
    check = ["sha256sum", "--check", "--strict", "a.ckpt.sha256"]
    assert subprocess.run(check, cwd=tmp_path, capture_output=True).stdout == b"a.ckpt: OK\n"


@pytest.mark.parametrize("spoil", [flip, truncate, lambda path: path.write_bytes(b"")])
def test_a_file_that_was_changed_is_named(spoil: object, tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt", b"content")
    spoil(path)
    with pytest.raises(DamagedFileError, match=r"a\.ckpt is damaged: its SHA-256 .*says ed7002b"):
        read_checked(path)


def test_a_file_without_a_checksum_is_read_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt", b"content")
    path.with_name("a.ckpt.sha256").unlink()
    assert not has_checksum(path)
    assert read_checked(path) == b"content"
    remove_checked(path)
    remove_checked(path)
    assert names(tmp_path) == []


def killed_before(step: str, path: Path, content: bytes) -> None:
    """Write `content` in a process that kills itself at its n-th move or removal."""
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from kora.runs.durable import write_atomically\n"
        "replace, left = os.replace, [int(sys.argv[1])]\n"
        "def until(*names):\n"
        "    left[0] -= 1\n"
        "    if not left[0]:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(*names)\n"
        "os.replace = until\n"
        "content = sys.argv[3].encode()\n"
        "write_atomically(sys.argv[2], lambda p: p.write_bytes(content), checksum=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, step, str(path), content.decode()])
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("step", "content"), [("1", b"old"), ("2", b"old"), ("3", b"new")])
def test_a_kill_between_any_two_steps_leaves_a_file_with_its_checksum(
    step: str, content: bytes, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.ckpt", b"old")
    killed_before(step, path, b"new")
    assert read_checked(path) == content
    killed_before("2", path, b"newer")  # and once more, before anything was put in order
    assert read_checked(path) == content
    flip(path)
    with pytest.raises(DamagedFileError):
        read_checked(path)
    write(path, b"newest")
    assert read_checked(path) == b"newest"
    sweep(tmp_path)
    assert names(tmp_path) == ["a.ckpt", "a.ckpt.sha256"]


def test_whoever_reads_while_another_writes_never_sees_damage(tmp_path: Path) -> None:
    path, end = write(tmp_path / "a.ckpt", b"0" * MIB), time.monotonic() + 1.5

    def keep_writing() -> None:
        while time.monotonic() < end:
            write(path, os.urandom(MIB))

    writer = threading.Thread(target=keep_writing)
    writer.start()
    read = {read_checked(path)[:8] for _ in iter(lambda: time.monotonic() < end, False)}
    writer.join()
    assert len(read) > 1


def test_only_what_dead_processes_left_is_swept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()

    def temporary(process: int, machine: str = host, *, hours: float = 0) -> str:
        path = tmp_path / f".kora-{machine}-{process}-0123abcd.tmp"
        path.write_bytes(b"half")
        then = time.time() - 3600 * hours
        os.utime(path, (then, then))
        return path.name

    gone = {temporary(dead.pid), temporary(dead.pid, "other-host", hours=25)}
    kept = {temporary(os.getppid()), temporary(dead.pid, "other-host-2", hours=23)}
    kept |= {"mine.tmp", ".kora-notes.tmp"}
    for name in ("mine.tmp", ".kora-notes.tmp"):
        (tmp_path / name).touch()
    assert {path.name for path in sweep(tmp_path)} == gone
    assert set(names(tmp_path)) == kept


def test_a_file_that_a_machine_with_another_clock_writes_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".kora-other-host-1-0123abcd.tmp"
    path.write_bytes(b"half")
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 3 * 24 * 3600)  # of this machine
    assert sweep(tmp_path) == []
    ahead = clock() + 3 * 24 * 3600
    os.utime(path, (ahead, ahead))  # by the clock of the other
    monkeypatch.undo()
    assert sweep(tmp_path) == []
    assert names(tmp_path) == [path.name]


def test_a_full_disk_keeps_the_old_file_and_says_so(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_mib=4) as disk:
        old = b"o" * 2 * MIB
        path = write(disk / "a.ckpt", old)
        with pytest.raises(OSError, match=r"a\.ckpt cannot be written: No space left .* is kept"):
            write(path, b"n" * 3 * MIB)
        assert read_checked(path) == old
        assert names(disk) == ["a.ckpt", "a.ckpt.sha256"]
        with pytest.raises(OSError, match=r"b\.ckpt cannot be written: No space .* device\. Make"):
            write(disk / "b.ckpt", b"n" * 3 * MIB)
        assert names(disk) == ["a.ckpt", "a.ckpt.sha256"]
        (disk / "filler").write_bytes(b"f" * (2 * MIB - 4 * 4096))  # not even a checksum fits
        with pytest.raises(OSError, match=r"cannot be written: No space left .* is kept"):
            write(path, b"n" * 3 * 4096)
        assert read_checked(path) == old


def test_room_is_asked_of_the_disk_itself(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_mib=4) as disk:
        require_room(disk, 3 * MIB)
        with pytest.raises(OSError, match=r"disk cannot take .*No space.*5\.0 MiB.* --runs_dir"):
            require_room(disk, 5 * MIB)
        with pytest.raises(OSError, match=r"too little room \(6\.0 MiB are needed, 4\.0 MiB are"):
            require_room(disk, 1 * MIB, in_all=6 * MIB)
        assert names(disk) == []
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(OSError, match=r"cannot take .*Read-only file system.*--runs_dir"):
            require_room(disk, 1)


def test_a_limit_on_the_size_of_files_is_found(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from kora.runs.durable import require_room\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "require_room(Path(sys.argv[1]), 1 << 20)\n"
        "require_room(Path(sys.argv[1]), 1 << 21)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True)
    assert b"File too large (2.0 MiB are needed" in done.stderr
    assert names(tmp_path) == []


def test_the_cache_of_a_user_is_below_the_home_or_where_there_is_none_with_temporary_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache() == tmp_path / ".cache/kora"
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # without a home
    assert user_cache() == Path(tempfile.gettempdir()) / "kora"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert user_cache() == tmp_path / "x/kora"
