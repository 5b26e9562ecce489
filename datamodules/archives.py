"""Extract a zip or tar archive: every member checked, and all or nothing."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from gzip import BadGzipFile
from pathlib import Path, PurePosixPath, PureWindowsPath

from tqdm import tqdm

__all__ = ["extract_archive"]

_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    BadGzipFile,
    EOFError,
    NotImplementedError,  # zipfile, for a damaged compression method
)


def extract_archive(archive: Path, target: Path, *, inside: str | None = None) -> None:
    """Extract `archive` so that `target` is one of its folders; `target` must not exist.

    The members go to a temporary folder beside `target`, which is renamed at the end: after an
    error or a crash `target` does not exist. Call it under a lock when several processes may.

    Args:
        archive: a .zip, .tar, .tar.gz, .tgz, .tar.bz2 or .tar.xz file.
        target: the folder to make.
        inside: the folder of the archive that becomes `target`; None: its single top folder, or
            everything when there are several.

    Raises:
        ValueError: not an archive by its name, or without the folder `inside`.
        RuntimeError: damaged or truncated, or a member is a link or would land outside `target`.
    """
    temporary = target.with_name(f".{target.name}.extracting")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    temporary.mkdir(parents=True)
    try:
        if archive.suffix.lower() == ".zip":
            _extract_zip(archive, temporary)
        elif archive.suffix.lower() in (".tgz", ".tar") or ".tar." in archive.name.lower():
            _extract_tar(archive, temporary)
        else:
            raise ValueError(
                f"{archive} does not look like an archive: its name must end in .zip, .tar, "
                ".tar.gz, .tgz, .tar.bz2 or .tar.xz."
            )
        os.rename(_folder_of(temporary, archive, inside), target)
    except _DAMAGED as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise RuntimeError(
            f"Archive {archive} is damaged or truncated ({reason}). Delete it and get it again."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _folder_of(extracted: Path, archive: Path, inside: str | None) -> Path:
    top = sorted(extracted.iterdir())
    if inside is None:
        return top[0] if len(top) == 1 and top[0].is_dir() else extracted
    if not (extracted / inside).is_dir():
        raise ValueError(
            f"Archive {archive} has no folder {inside!r}; it holds "
            f"{', '.join(repr(path.name) for path in top[:5]) or 'nothing'}. "
            "Is it the archive of another data set?"
        )
    return extracted / inside


def _check_member(archive: Path, name: str, *, is_plain: bool) -> None:
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    parts = {*posix.parts, *windows.parts}
    if posix.is_absolute() or windows.is_absolute() or windows.drive or ".." in parts:
        problem = "would be written outside the data folder"
    elif not is_plain:
        problem = "is a link or a special file"
    else:
        return
    raise RuntimeError(
        f"Archive {archive} is not safe to extract: its member {name!r} {problem}. "
        "Nothing was extracted. Get the archive from its official source."
    )


def _extract_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        for member in members:
            mode = stat.S_IFMT(member.external_attr >> 16)
            _check_member(
                archive, member.filename, is_plain=mode in (0, stat.S_IFREG, stat.S_IFDIR)
            )
        for member in tqdm(members, desc=f"Extracting {archive.name}", delay=2, disable=None):
            file.extract(member, folder)


def _extract_tar(archive: Path, folder: Path) -> None:
    # The members are checked as they come: listing them first would decompress everything twice.
    with tarfile.open(archive) as file:
        for member in tqdm(file, desc=f"Extracting {archive.name}", delay=2, disable=None):
            _check_member(archive, member.name, is_plain=member.isfile() or member.isdir())
            if hasattr(tarfile, "data_filter"):
                file.extract(member, folder, filter="data")
            else:  # Python before 3.11.4
                file.extract(member, folder)
