"""Faults that tests cause for real: bytes that flip, pickles that act, disks that are small."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

__all__ = ["Trap", "damages", "flip", "small_disk", "truncate"]


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
