"""Reads checkpoints: checks them before they are used, and never unpickles.

An environment variable can switch off torch's default of `weights_only`. It has no effect on calls
that pass `weights_only=True`, as here.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from kora.console.errors import first_line
from kora.runs.durable import DamagedFileError, has_checksum, read_checked, sweep

__all__ = ["choose_checkpoint", "read_checkpoint", "require_record"]

_FOLDER = 0x10  # torch reads nothing of a record marked so, and returns stale memory
_Kinds = Mapping[str, type | tuple[type, ...]]
#: Keys of every checkpoint of kora, with their types.
_RECORD: _Kinds = {
    "kora.backbone": str, "kora.sha256": str, "kora.adapter": dict, "state_dict": Mapping,
}  # fmt: skip
#: What Lightning needs to load a checkpoint.
_LOADED: _Kinds = {"pytorch-lightning_version": str}
#: What a resumed training needs; `_IF_THERE` holds the parts that older versions did not write.
_RESUMED: _Kinds = {
    **_LOADED, "optimizer_states": list, "lr_schedulers": list, "loops": dict, "callbacks": dict,
    "epoch": int, "global_step": int,
}  # fmt: skip
_IF_THERE: Mapping[str, _Kinds] = {
    "resume": {
        "resume.epoch": int, "resume.batches": int, "resume.rows": int, "resume.settings": dict,
    },
    "callbacks.RunRecord": {"callbacks.RunRecord.fit_seconds": (int, float)},
}  # fmt: skip


def read_checkpoint(path: str | Path, *, map_location: Any = "cpu") -> dict[str, Any]:
    """The content of a checkpoint: tensors and plain types.

    Checked against the SHA-256 stored next to it; if that is missing (the file was copied alone),
    against the CRC-32 of each record inside.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedFileError: It was changed or cut short, or is no checkpoint.
        RuntimeError: It holds pickled objects, which could execute code: they are not loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Checkpoint {path} does not exist.")
    content = read_checked(path)
    _check_records(content, path)
    try:
        loaded = torch.load(io.BytesIO(content), map_location=map_location, weights_only=True)
    except UnpicklingError as error:
        raise RuntimeError(
            f"Checkpoint {path} is refused: it holds pickled objects, which could execute code "
            f"when loaded ({_reason(error)}). Use a checkpoint that kora wrote."
        ) from error
    except Exception as error:  # torch's reader has no errors of its own
        raise DamagedFileError(f"{path} is damaged: {_reason(error)}.") from error
    if not isinstance(loaded, dict):
        raise DamagedFileError(
            f"{path} is no checkpoint: it holds {type(loaded).__name__}, expected a dict. Use a "
            "checkpoint that kora wrote."
        )
    return loaded


def require_record(checkpoint: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The record of a checkpoint about its adapter and frozen weights.

    Args:
        checkpoint: The loaded file.
        source: Name of the file in messages.

    Raises:
        ValueError: It was not written by kora, or lacks a part; lists what is missing.
    """
    record = checkpoint.get("kora")
    if not isinstance(record, dict):
        raise ValueError(
            f"{source} was not written by kora: it does not name its backbone. Give --ckpt_path a "
            "file below a run's checkpoints folder."
        )
    _require(checkpoint, _RECORD, source)
    strange = [
        key for key, value in checkpoint["state_dict"].items() if not isinstance(value, Tensor)
    ]
    if strange:
        raise ValueError(
            f"{source}: state_dict['{strange[0]}'] is no tensor, and kora writes only tensors "
            "there. Use another checkpoint of its folder."
        )
    return record


def _require(checkpoint: Mapping[str, Any], kinds: _Kinds, source: str) -> None:
    wrong = [key for key, kind in kinds.items() if not isinstance(_at(checkpoint, key), kind)]
    if wrong:
        raise ValueError(
            f"{source} lacks {', '.join(wrong)}, which kora always writes. Use another checkpoint "
            "of its folder."
        )


def _at(content: Any, key: str) -> Any:
    """The value under a dotted name; None if there is none."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, Mapping) else None
    return content


def choose_checkpoint(path: Path, *, resume: bool) -> tuple[Path, str | None]:
    """The checkpoint to load, and the reason if it is not the requested one.

    If `path` is damaged, a resumed training uses the newest good checkpoint of its folder. An
    evaluation never uses another checkpoint than the requested one.

    Raises:
        DamagedFileError: It is damaged, and no other checkpoint may or can replace it.
        RuntimeError: It holds pickled objects.
        ValueError: It lacks what Lightning needs to load it or to resume from it.
    """
    folder = path.parent
    places = [folder]
    if folder.name == "checkpoints":  # of a run: its figures and adapter are next to it
        places += [folder.parent, *(path for path in folder.parent.glob("*") if path.is_dir())]
    for place in places:
        sweep(place)
    try:
        content = read_checkpoint(path)
    except DamagedFileError as error:
        others = _good_checkpoints(folder, without=path)
        if resume and others:
            newest = others[0]
            return newest, f"{error} The newest good checkpoint there is used instead: {newest}"
        names = ", ".join(other.name for other in others)
        remedy = f"Good ones in its folder: {names}." if others else "Its folder has no good one."
        raise DamagedFileError(f"{error} {remedy}") from error
    _require(content, _RESUMED if resume else _LOADED, str(path))
    for part, kinds in _IF_THERE.items():
        if resume and _at(content, part) is not None:
            _require(content, kinds, str(path))
    return path, None


def _good_checkpoints(folder: Path, *, without: Path) -> list[Path]:
    """Newest first, by step: file times do not survive every copy."""
    reached: list[tuple[int, float, Path]] = []
    for path in folder.glob("*.ckpt"):
        if path == without:
            continue
        try:
            content = read_checkpoint(path)
            require_record(content, str(path))
        except (RuntimeError, ValueError, OSError):
            continue
        reached.append((int(content.get("global_step", 0)), path.stat().st_mtime, path))
    return [path for *_, path in sorted(reached, reverse=True)]


def _check_records(content: bytes, path: Path) -> None:
    """Refuse a file that is no zip; if no checksum is next to it, check those inside."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = None if has_checksum(path) else _first_bad_record(archive)
    except Exception as error:  # of zlib, struct and others, depending on the damage
        raise DamagedFileError(
            f"{path} is damaged, or was not written by kora: {_reason(error)}."
        ) from error
    if damaged is not None:
        raise DamagedFileError(f"{path} is damaged: its record {damaged} is not what was written.")


def _first_bad_record(archive: zipfile.ZipFile) -> str | None:
    folders = (info.filename for info in archive.infolist() if info.external_attr & _FOLDER)
    return next(folders, None) or archive.testzip()


def _reason(error: BaseException) -> str:
    """The first line of a message without its full stop."""
    return first_line(error).rstrip(". ")
