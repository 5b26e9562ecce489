"""Extract a zip or tar archive completely or not at all, and check every member."""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from gzip import BadGzipFile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

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


#: Limits on what an archive may unpack to. A bomb claims far more; photos hardly compress.
_FREE_BYTES = 1 << 30
_MOST_TIMES = 200
_MOST_MEMBERS = 20_000_000
_MOST_LEVELS = 100
_ENCRYPTED = 1  # of the flags of a zip's member


def extract_archive(archive: Path, target: Path, *, inside: str | None = None) -> None:
    """Extract `archive` so that `target` is one of its folders; `target` must not exist.

    The members go to a temporary folder next to `target`, which is renamed at the end: after an
    error or a crash `target` does not exist. Call it under a lock if several processes may.

    Args:
        archive: a .zip, .tar, .tar.gz, .tgz, .tar.bz2 or .tar.xz file.
        target: the folder to make.
        inside: the folder of the archive that becomes `target`; None: its single top folder, or
            everything when there are several.

    Raises:
        ValueError: not an archive by its name, or without the folder `inside`.
        RuntimeError: damaged, truncated or encrypted; a member is a link or would land outside
            `target`; or it unpacks to 1 GiB and more than 200 times its size.
        OSError: no room on the disk.
    """
    temporary = target.with_name(f".{target.name}.extracting")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    temporary.mkdir(parents=True)
    try:
        if archive.suffix.lower() == ".zip":
            _extract_zip(archive, temporary)
        elif archive.suffix.lower() in (".tgz", ".tar") or ".tar." in archive.name.lower():
            try:
                _extract_tar(archive, temporary)
            except (ValueError, RecursionError) as error:  # invalid numbers in a header
                raise tarfile.ReadError(str(error)) from error
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
    except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        raise RuntimeError(
            f"Archive {archive} is damaged: it holds {Path(str(error.filename)).name!r} as a file "
            "and as a folder. Delete it and get it again."
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno,
                f"Archive {archive} cannot be extracted next to {target} ({error.strerror}: "
                f"{error.filename}). Choose another data.root, or another archive.",
            ) from error
        raise OSError(
            error.errno,
            f"There is no room to extract {archive} next to {target} ({error.strerror}). Nothing "
            "was left there. Make room, or set data.root to a folder on another disk.",
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
    elif not name or len(posix.parts) > _MOST_LEVELS:
        problem = "has no name, or is nested too deep"
    elif not is_plain:
        problem = "is a link or a special file"
    else:
        return
    raise RuntimeError(
        f"Archive {archive} is not safe to extract: its member {name!r} {problem}. "
        "Nothing was extracted. Get the archive from its official source."
    )


class _Allowance:
    """Adds up the sizes that members claim, before they are written."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.most_bytes = max(_FREE_BYTES, _MOST_TIMES * archive.stat().st_size)
        self.bytes = self.members = 0

    def take(self, size: int) -> None:
        self.bytes += size
        self.members += 1
        if self.bytes > self.most_bytes or self.members > _MOST_MEMBERS:
            raise RuntimeError(
                f"Archive {self.archive} ({self.archive.stat().st_size:,} bytes) is not safe to "
                f"extract: it would unpack to more than {self.most_bytes:,} bytes or "
                f"{_MOST_MEMBERS:,} files, as a bomb does. Nothing was extracted. If you trust it, "
                "extract it yourself, and set data.root to its folder."
            )


def _extract_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members, allowance = file.infolist(), _Allowance(archive)
        for member in members:
            allowance.take(member.file_size)
            if member.flag_bits & _ENCRYPTED:
                raise RuntimeError(
                    f"Archive {archive} is encrypted (its member {member.filename!r}). Extract it "
                    "yourself, and set data.root to its folder."
                )
            mode = stat.S_IFMT(member.external_attr >> 16)
            _check_member(
                archive, member.filename, is_plain=mode in (0, stat.S_IFREG, stat.S_IFDIR)
            )
        for member in tqdm(members, desc=f"Extracting {archive.name}", delay=2, disable=None):
            file.extract(member, folder)


def _tar_mode(archive: Path) -> Any:
    """The mode, by the first bytes: to find it, tarfile would read a plain archive to its end."""
    kinds = {b"\x1f\x8b": "r:gz", b"BZh": "r:bz2", b"\xfd7zXZ": "r:xz"}
    with archive.open("rb") as file:
        begin = file.read(6)
    return next((mode for magic, mode in kinds.items() if begin.startswith(magic)), "r:")


def _extract_tar(archive: Path, folder: Path) -> None:
    # The members are checked as they come: listing them first would decompress everything twice.
    allowance = _Allowance(archive)
    with tarfile.open(archive, _tar_mode(archive)) as file:
        for member in tqdm(file, desc=f"Extracting {archive.name}", delay=2, disable=None):
            allowance.take(member.size)
            _check_member(archive, member.name, is_plain=member.isfile() or member.isdir())
            if hasattr(tarfile, "data_filter"):
                file.extract(member, folder, filter="data")
            else:  # Python before 3.11.4
                file.extract(member, folder)
        while file.fileobj is not None and file.fileobj.read(1 << 20):
            pass  # gzip compares its checksum at the end, which tarfile does not ask for
