"""Faults that tests cause for real: bytes that flip, pickles that act, disks that are small.

Also file systems without locks, and processes with little memory to share or without root's rights.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

__all__ = [
    "Trap",
    "damages",
    "flip",
    "forbid_locks",
    "obey_modes",
    "share_little",
    "small_disk",
    "truncate",
]


class Trap:
    """Whoever unpickles it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def flip(path: Path, place: float = 0.5) -> None:
    """Change one byte, at a share of the file's length."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x20
    with path.open("r+b") as file:  # in place: nothing else of the file changes
        file.write(content)


def truncate(path: Path, share: float = 0.5) -> None:
    """Keep the first part of a file."""
    os.truncate(path, int(share * path.stat().st_size))


def damages(path: Path, *, flips: int = 50) -> Iterator[str]:
    """Damage each file of a folder, or one file, again and again; yields what was done.

    Each is cut to nothing and to its half, and has single bytes changed; all else of the folder is
    as it was at first.
    """
    saved = path.with_name(f"{path.name}.saved")
    (shutil.copytree if path.is_dir() else shutil.copy2)(path, saved)
    files = sorted(p for p in saved.rglob("*") if p.is_file()) if saved.is_dir() else [saved]
    for file in files:
        whole, random = file.read_bytes(), Random(0)
        contents = {"nothing": b"", "its half": whole[: len(whole) // 2]}
        for _ in range(flips):
            changed, place = bytearray(whole), random.randrange(len(whole))
            changed[place] ^= random.randrange(1, 256)
            contents[f"byte {place} changed to {changed[place]}"] = bytes(changed)
        for what, content in contents.items():
            if saved.is_dir():
                shutil.rmtree(path, ignore_errors=True)
                shutil.copytree(saved, path)
            target = path / file.relative_to(saved)
            target.write_bytes(content)
            yield f"{target.name}: {what}"


@contextmanager
def small_disk(folder: Path, *, size_mib: int) -> Iterator[Path]:
    """A real file system of that size, mounted at a folder; skips where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def forbid_locks(number: int) -> None:
    """Let every lock of this process and its children fail with an errno, by Linux's seccomp.

    On x86_64: what its program then meets is a file system without locks, in C libraries such as
    SQLite too.
    """
    load, equal, leave = 0x20, 0x15, 0x06  # of classic BPF
    flock, fcntl, allow, errno = 73, 72, 0x7FFF0000, 0x00050000
    program = [
        (load, 0, 0, 0),  # the number of the system call
        (equal, 6, 0, flock),
        (equal, 0, 6, fcntl),
        (load, 0, 0, 24),  # its second argument
        *((equal, 3 - k, 0, command) for k, command in enumerate((6, 7, 37))),  # F_SETLK, -W, OFD
        (equal, 0, 1, 38),
        (leave, 0, 0, errno | number),
        (leave, 0, 0, allow),
    ]
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    held = ctypes.create_string_buffer(code, len(code))
    filter_ = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(program), ctypes.addressof(held))
    )
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, seccomp, by_filter = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(seccomp, by_filter, filter_):
        raise OSError(ctypes.get_errno(), "seccomp is not allowed here")


def share_little(size: str) -> None:
    """Give this process and its children a /dev/shm of that size; only root may."""
    libc, mounts = ctypes.CDLL(None, use_errno=True), 0x20000  # CLONE_NEWNS
    if libc.unshare(mounts):
        raise OSError(ctypes.get_errno(), "namespaces are not allowed here")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"]
    subprocess.run(mount, check=True)


def obey_modes() -> None:
    """Let the modes of files bind this process, whoever runs it, as they bind any but root."""
    libc = ctypes.CDLL(None, use_errno=True)
    version, override, read_search = 0x20080522, 1, 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    header, held = (ctypes.c_uint32 * 2)(version, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, held)
    held[0] &= ~(1 << override | 1 << read_search)
    if libc.capset(header, held):
        raise OSError(ctypes.get_errno(), "rights cannot be given up here")
