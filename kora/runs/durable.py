"""Write files completely or not at all, even if the process, the machine or the disk fails.

A file is written under another name in its own folder, forced to the disk and then renamed, so its
name never leads to half a file. If a checksum is asked for, it is next to the file in the form of
`sha256sum` (`sha256sum -c last.ckpt.sha256` checks it). Two files cannot be replaced in one step.
So the new checksum is written as `.sha256.next` before the file is renamed, and renamed after it:
in between, either checksum may be that of the file. A JSON record that people read contains its
checksum instead, under `record_sha256`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "CHECKSUM",
    "DamagedFileError",
    "expand",
    "has_checksum",
    "has_other_content",
    "let_be_read",
    "out_folder",
    "plainly",
    "read_checked",
    "read_json",
    "record_sha256",
    "remove_checked",
    "require_room",
    "sweep",
    "temporary_in",
    "user_cache",
    "write_atomically",
    "write_text",
]

CHECKSUM = ".sha256"
_OWN_CHECKSUM = "record_sha256"
_ANNOUNCED = ".sha256.next"
_TEMPORARY = re.compile(r"\.kora-(?P<host>.+)-(?P<process>\d+)-[0-9a-f]{8}\.tmp")
_FOREIGN_SECONDS = 24 * 3600  # then a file of another machine counts as abandoned
_MIB = 2**20
_MASK = os.umask(0o022)  # it can only be read by setting it, which is no business of a thread
os.umask(_MASK)


class DamagedFileError(RuntimeError):
    """The content of a file is not what was written."""


def write_atomically(
    path: str | Path, write: Callable[[Path], object], *, checksum: bool = False
) -> Path:
    """Let `write` fill a temporary file next to `path`, then rename it; returns `path`.

    Whatever happens, `path` has either its old or its complete new content. A missing folder is
    made. `write` is called with the temporary path. With `checksum`, the SHA-256 is kept, too.

    Raises:
        OSError: It cannot be written (disk full, read-only); the old content is kept.
    """
    path = Path(path)
    temporary = temporary_in(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        let_be_read(temporary)
        _force(temporary)
        if checksum:
            _announce(path, _sha256_of(temporary))
        os.replace(temporary, path)
        _force(path.parent)
        if checksum:
            os.replace(_beside(path, _ANNOUNCED), _beside(path, CHECKSUM))
    except OSError as error:
        kept = " The file that was there before is kept." if path.exists() else ""
        raise OSError(
            f"{path} cannot be written: {error.strerror or error}.{kept} Make room, or choose a "
            "folder that can be written to."
        ) from error
    finally:
        _discard(temporary)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write a file of text, as `write_atomically` does; what is no UTF-8 in a path is escaped."""
    told = {"encoding": "utf-8", "errors": "backslashreplace"}
    return write_atomically(path, lambda target: target.write_text(text, **told))


def read_checked(path: Path) -> bytes:
    """The content of a file, after a comparison with its checksum if it has one.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedFileError: It was changed or cut short after it was written.
    """
    while True:
        before = path.stat()
        content = path.read_bytes()
        found, expected = _sha256(content), _known_checksums(path)
        if not expected or found in expected:
            return content
        after = path.stat()
        if (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns):
            raise DamagedFileError(
                f"{path} is damaged: its SHA-256 is {found[:12]}, but {path.name}{CHECKSUM} says "
                f"{expected[-1][:12] or 'nothing'}. It was changed or cut short after it was "
                "written."
            )  # otherwise another process has just replaced it


def has_checksum(path: Path) -> bool:
    """Whether `read_checked` has something to compare the file with."""
    return bool(_known_checksums(path))


def record_sha256(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record's content: sorted JSON without spaces and without the key itself."""
    content = {key: value for key, value in record.items() if key != _OWN_CHECKSUM}
    return _sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def has_other_content(record: Mapping[str, Any]) -> bool:
    """Whether a record is not what was written; one without the key is accepted."""
    return record.get(_OWN_CHECKSUM) not in (None, record_sha256(record))


def remove_checked(path: Path) -> None:
    """Remove a file, if it is there, with its checksums."""
    for name in (path, _beside(path, CHECKSUM), _beside(path, _ANNOUNCED)):
        name.unlink(missing_ok=True)


def sweep(folder: Path) -> list[Path]:
    """Remove the temporary files that dead processes left in a folder; returns them.

    Files of other machines are removed after a day, by the clock of the disk: whether their process
    lives is unknown here, and clocks of machines differ.
    """
    swept = []
    for path in folder.glob(".kora-*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match is not None and _is_stray(path, match["host"], int(match["process"])):
            path.unlink(missing_ok=True)
            swept.append(path)
    return swept


def require_room(folder: Path, size: int, *, in_all: int = 0) -> None:
    """Refuse a folder that cannot take a file of `size` bytes, and `in_all` bytes altogether.

    A file is allocated for a moment, as only this shows permissions, quotas and limits (root may
    write despite the mode, and nobody can write to a read-only disk).

    Raises:
        OSError: The folder has no room, or cannot be written; says which.
    """
    probe = temporary_in(folder)
    try:
        with probe.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS
                file.write(bytes(min(size, _MIB)))
            reason = "too little room" if _free(folder) < in_all - size else None
    except OSError as error:
        reason = error.strerror or str(error)
    finally:
        _discard(probe)
    if reason is not None:
        needed = max(size, in_all) / _MIB
        raise OSError(
            f"{folder} cannot take the files of this run: {reason} ({needed:.1f} MiB are needed, "
            f"{_free(folder) / _MIB:.1f} MiB are free). Make room, or set --runs_dir to a folder "
            "on another disk that can be written to."
        )


def _announce(path: Path, digest: str) -> None:
    """Write the checksum of the file that is about to be moved to `path`."""
    announced, current = _beside(path, _ANNOUNCED), _beside(path, CHECKSUM)
    if announced.exists():  # left by a killed process: is it the file's?
        if path.exists() and _first_word(announced) == _sha256_of(path):
            os.replace(announced, current)
        else:
            announced.unlink()
    temporary = temporary_in(path.parent)
    try:
        temporary.write_text(f"{digest}  {path.name}\n", encoding="utf-8")
        _force(temporary)
        os.replace(temporary, announced)
    finally:
        _discard(temporary)
    _force(path.parent)


def _known_checksums(path: Path) -> list[str]:
    """The announced checksum first: in the other order, a rename in between could hide it."""
    texts = [_first_word(_beside(path, suffix)) for suffix in (_ANNOUNCED, CHECKSUM)]
    return [text for text in texts if text is not None]


def _first_word(path: Path) -> str | None:
    """The checksum in a file: empty if it holds none, None if there is no such file."""
    try:
        with open(path, encoding="utf-8", errors="replace", opener=plainly) as file:
            return file.read(1000).partition(" ")[0]
    except FileNotFoundError:
        return None


def plainly(path: str, flags: int) -> int:
    """An `opener` for files in other people's folders: refuses devices, and pipes, which can block.

    Raises:
        OSError: It is a pipe or a device, or a link that would be written to.
    """
    if flags & (os.O_WRONLY | os.O_RDWR):
        flags |= os.O_NOFOLLOW
    handle = os.open(path, flags | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "It is a pipe or a device, and no file", path)
    return handle


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def temporary_in(folder: Path) -> Path:
    """A new name that `sweep` knows, without the file's own: Lightning searches it for numbers."""
    name = f".kora-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    return folder / name


def _discard(temporary: Path) -> None:
    try:
        temporary.unlink(missing_ok=True)
    except OSError:  # the error that led here says more
        return


def _is_stray(path: Path, host: str, process: int) -> bool:
    if host == socket.gethostname():
        return process == os.getpid() or not _is_alive(process)
    try:
        with tempfile.TemporaryFile(dir=path.parent) as now:
            return os.fstat(now.fileno()).st_mtime - path.stat().st_mtime > _FOREIGN_SECONDS
    except OSError:  # it is gone, or the folder takes no file
        return False


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it lives, and is another user's
        return True
    return True


def _force(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot do that for folders
            raise
    finally:
        os.close(handle)


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def let_be_read(file: Path) -> None:
    """Give a file the usual mode: safetensors makes files that only their owner can read."""
    file.chmod(0o666 & ~_MASK)


def user_cache() -> Path:
    """KoRA's folder in the user's cache; of a user without a home, in that for temporary files."""
    folder = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    homeless = folder.startswith("~")  # as a user of a container may be
    return Path(tempfile.gettempdir() if homeless else folder) / "kora"


def read_json(path: Path, *, remedy: str) -> Any:
    """The content of a JSON file that KoRA wrote.

    Raises:
        FileNotFoundError: There is none.
        RuntimeError: It is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # covers undecodable bytes
        raise RuntimeError(f"{path} is damaged: no JSON ({error}). {remedy}") from error


def out_folder(given: str | Path) -> Path:
    """The folder that an option `--out` names, expanded.

    Raises:
        ValueError: It is a file.
    """
    folder = expand(given)
    if folder.is_file():
        raise ValueError(f"--out {given} is a file; name a folder.")
    return folder


def expand(folder: str | Path) -> Path:
    """The folder with `~` and environment variables expanded."""
    return Path(os.path.expandvars(folder)).expanduser()
