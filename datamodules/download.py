"""Get a data folder: use it, extract it, or download it; safe for several processes at once.

Own code because neither torchvision's helpers nor pooch resume a download, lock, and extract
atomically.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from datamodules.archives import extract_archive
from datamodules.locks import locked

__all__ = ["download", "expand_path", "file_md5", "obtain_folder"]

#: Environment variable, set while a command reads a run, maybe a stranger's (kora/runs/trust.py).
_READS_A_RUN = "KORA_TRUST"

_CHUNK_BYTES = 1 << 16  # what a broken connection can lose
_TIMEOUT_SECONDS = (10, 60)  # connect, and between two pieces
_ATTEMPTS = 4
_SOURCE_FILE = ".source.json"


def expand_path(path: str | os.PathLike[str], *, key: str) -> Path:
    """Path with ~ and environment variables filled in.

    Raises:
        ValueError: it names a variable that is not set.
    """
    expanded = os.path.expanduser(os.path.expandvars(os.fspath(path)))
    unset = re.search(r"\$\{?(\w+)", expanded)
    if unset:
        raise ValueError(
            f"{key} is {os.fspath(path)!r}, but the environment variable {unset[1]} is not set. "
            f"Set it (export {unset[1]}=/some/folder), or write the folder itself."
        )
    return Path(expanded)


def file_md5(path: Path) -> str:
    """MD5 of a file, in hexadecimal: the checksum that these data sets publish."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, _md5).hexdigest()


def obtain_folder(
    folder: Path,
    *,
    archive: Path | None = None,
    inside: str | None = None,
    url: str | None = None,
    md5: str | None = None,
) -> Path:
    """Make sure that the extracted `folder` exists; returns it.

    An existing folder is used as it is. Otherwise it is extracted from `archive`, a local file
    with any checksum, or from the official archive at `url`, which is downloaded next to `folder`
    unless it is there. A folder made here records its archive.

    Raises:
        FileNotFoundError: `archive` does not exist, or there is nothing to extract or download.
        ValueError: the folder was made from another archive than the one asked for.
        RuntimeError: no network, a wrong checksum, or a damaged or unsafe archive.
    """
    if archive is not None and not archive.is_file() and not _is_filled(folder):
        instead = f"to download {url}" if url else f"and put the extracted folder at {folder}"
        raise FileNotFoundError(
            f"data.archive: there is no file {archive}. Check the path, or leave `archive` out "
            f"{instead}."
        )
    if not _is_filled(folder):
        if archive is None and url is None:  # raised before anything is made on the disk
            raise FileNotFoundError(
                f"data.root: there is no data in {folder}. Put the data there, or set data.archive "
                "to an archive that holds it."
            )
        _require_own(folder, archive)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / f".{folder.name}.lock"):
            if not _is_filled(folder):  # another process may have made it while this one waited
                _make_folder(folder, archive=archive, inside=inside, url=url, md5=md5)
    _check_source(folder, archive=archive, md5=md5)
    return folder


def _require_own(folder: Path, archive: Path | None) -> None:
    """Refuse a run's config, which may be anybody's, that would fill a folder with anything.

    An official archive, whose MD5 is known, may be unpacked within the working directory. Any other
    might hold modules, and the folder be one from which Python imports.

    Raises:
        ValueError: The folder is outside the working directory, or the archive is not official.
    """
    if _READS_A_RUN not in os.environ:
        return
    remedy = "If you trust it: kora data prepare with a config of your own"
    if not folder.resolve().is_relative_to(Path.cwd()):
        raise ValueError(
            f"data.root: the config of a run would fill {folder}, which is outside of the working "
            f"directory. {remedy}, or set data.root."
        )
    if archive is not None:
        raise ValueError(
            f"data.archive: the config of a run would unpack {archive} into {folder}. {remedy}."
        )


def download(url: str, path: Path, *, md5: str, key: str = "data.archive") -> None:
    """Download `url` to `path`; resumes a broken download, and checks the MD5 before renaming.

    `key` is the option for a file that is there already, for messages.

    Raises:
        RuntimeError: no network, an answer other than the file, or a wrong checksum.
    """
    part = path.with_name(f".{path.name}.part")
    by_hand = (
        f"Without a download: get it elsewhere, put it at {path} (md5 {md5}), or set {key} to "
        "where it is, and run again."
    )
    for fresh in (False, True):
        resumed = part.exists() and part.stat().st_size > 0
        _download_part(url, part, by_hand=by_hand)
        found = file_md5(part)
        if found == md5:
            os.replace(part, path)
            return
        part.unlink()
        if fresh or not resumed:  # a resumed file may be half old and half new: try once more
            break
    raise RuntimeError(
        f"The download of {url} has md5 {found}, expected {md5}, so it was deleted. The file on "
        f"the server may have changed, or a proxy may answer instead of it. {by_hand}"
    )


def _download_part(url: str, part: Path, *, by_hand: str) -> None:
    """Fetch what `part` lacks, over several connections if one breaks."""
    for attempt in range(_ATTEMPTS):
        try:
            _stream(url, part)
            return
        except requests.RequestException as error:
            status = getattr(error.response, "status_code", None)
            # Without an answer, a part on disk shows that there was a network.
            again = part.exists() if status is None else status >= 500 or status in (408, 429)
            if not again or attempt == _ATTEMPTS - 1:
                raise RuntimeError(
                    f"Could not download {url} ({_reason(error)}). {by_hand}"
                ) from error
            time.sleep(2**attempt)


def _stream(url: str, part: Path) -> None:
    done = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS) as answer:
        if answer.status_code == 416:  # nothing is left to send; the checksum decides
            return
        answer.raise_for_status()
        begins = f"bytes {done}-"
        if answer.status_code != 206 or not answer.headers.get("Content-Range", "").startswith(
            begins
        ):
            done = 0  # the server sends the whole file
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length else None
        with (
            part.open("ab" if done else "wb") as file,
            tqdm(
                total=total,
                initial=done,
                unit="B",
                unit_scale=True,
                desc=f"Downloading {url.rsplit('/', 1)[-1]}",
                disable=None,
            ) as bar,
        ):
            for chunk in answer.iter_content(_CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and part.stat().st_size < total:
            raise requests.ConnectionError("the connection closed early")


def _make_folder(
    folder: Path, *, archive: Path | None, inside: str | None, url: str | None, md5: str | None
) -> None:
    if archive is None:
        assert url is not None
        assert md5 is not None
        archive = folder.parent / url.rsplit("/", 1)[-1]
        if not archive.exists():
            download(url, archive, md5=md5)
        elif (found := file_md5(archive)) != md5:
            raise RuntimeError(
                f"{archive} has md5 {found}, expected {md5}: it is truncated or another file. "
                "Delete it and run again. To use it as it is, set data.archive to it."
            )
    source = {"archive": archive.name, "bytes": archive.stat().st_size, "md5": file_md5(archive)}
    staging = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
    extract_archive(archive, staging, inside=inside)
    (staging / _SOURCE_FILE).write_text(json.dumps(source) + "\n", encoding="utf-8")
    os.replace(staging, folder)  # an empty folder may be there


def _check_source(folder: Path, *, archive: Path | None, md5: str | None) -> None:
    """Refuse a folder that was made from another archive than the one asked for."""
    try:
        source: dict[str, Any] = json.loads((folder / _SOURCE_FILE).read_text(encoding="utf-8"))
        _ = source["md5"], source["bytes"], source["archive"]
    except FileNotFoundError:
        return  # extracted by hand: used as it is
    except (ValueError, TypeError, LookupError) as error:
        raise RuntimeError(
            f"{folder / _SOURCE_FILE} is damaged, so nobody knows which archive the folder was "
            f"made of. Delete {folder} and run again."
        ) from error
    if archive is None:
        same = md5 is None or source["md5"] == md5
        wanted = "the official archive"
    else:
        same = not archive.is_file() or source["bytes"] == archive.stat().st_size
        wanted = str(archive)
    if not same:
        raise ValueError(
            f"{folder} was extracted from {source['archive']} (md5 {source['md5']}), but this run "
            f"asks for {wanted}. Use another data.root, or delete the folder, or set data.archive "
            "to the archive that it came from."
        )


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _reason(error: requests.RequestException) -> str:
    if error.response is not None:
        return f"HTTP status {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "the server did not answer in time"
    if isinstance(error, requests.ConnectionError):
        return "no network, or the server cannot be reached"
    return str(error)


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)
