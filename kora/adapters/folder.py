"""The adapter folder: safetensors weights and a JSON that says what they belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from kora import __version__
from kora.adapters import Strategy, describe
from kora.adapters.checkpoint_files import read_checkpoint, require_record
from kora.backbone.vit import Backbone
from kora.runs.adapter_config import ADAPTER_CONFIG, ADAPTER_FORMAT, read_adapter_config
from kora.runs.config import with_defaults
from kora.runs.durable import (
    expand,
    plainly,
    record_sha256,
    write_atomically,
    write_text,
)

__all__ = [
    "ADAPTER_WEIGHTS",
    "check_keys",
    "check_same_adapter",
    "describe_whole",
    "load_adapter",
    "read_adapter_tensors",
    "recall_adapter",
    "save_adapter",
    "without_prefix",
    "write_record",
]

ADAPTER_WEIGHTS = "adapter_model.safetensors"

_DTYPES = {
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.uint8, torch.int32, torch.int64, torch.bool,
}  # fmt: skip


def read_adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter folder by name: `adapter.*` and `head.*`, on the CPU.

    Raises:
        FileNotFoundError: If it is no adapter folder.
        RuntimeError: If the file is missing or has changed, or a number in it is not finite.
    """
    path = folder / ADAPTER_WEIGHTS
    expected = read_adapter_config(folder).get("weights_sha256")
    try:
        with open(path, "rb", opener=plainly) as file:
            content = file.read()
        found = hashlib.sha256(content).hexdigest()
        if expected not in (None, found):  # None: from a version that stored no hash
            raise RuntimeError(
                f"Adapter weights {path} cannot be read: they are damaged, as their SHA-256 is "
                f"{found[:12]}, but {ADAPTER_CONFIG} says {str(expected)[:12]}. Train it again."
            )
        tensors = load(content)
    except (SafetensorError, OSError) as error:
        raise RuntimeError(
            f"Adapter weights {path} cannot be read: {error}. Train it again."
        ) from error
    strange = [name for name, tensor in tensors.items() if tensor.dtype not in _DTYPES]
    if strange:
        raise RuntimeError(
            f"Adapter weights {path} cannot be used: '{strange[0]}' is of "
            f"{tensors[strange[0]].dtype}, which nothing here trains. Train it again."
        )
    diverged = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if diverged:
        raise RuntimeError(
            f"Adapter weights {path} are of a run that diverged: '{diverged[0]}' holds numbers "
            "that are not finite. Train it again with a lower learning rate."
        )
    return tensors


def check_keys(mine: Mapping[str, Tensor], theirs: Mapping[str, Any], source: str) -> None:
    """Refuse any difference in keys, shapes or number types, and list it.

    Raises:
        ValueError: With the first few differences.
    """
    wrong = [f"'{key}' is missing" for key in sorted(mine.keys() - theirs.keys())]
    wrong += [f"'{key}' is unknown here" for key in sorted(theirs.keys() - mine.keys())]
    wrong += [
        f"'{key}' has shape {tuple(theirs[key].shape)}, expected {tuple(mine[key].shape)}"
        for key in sorted(mine.keys() & theirs.keys())
        if theirs[key].shape != mine[key].shape
    ]
    wrong += [
        f"'{key}' is of {theirs[key].dtype}, expected {mine[key].dtype}"
        for key in sorted(mine.keys() & theirs.keys())
        if theirs[key].is_floating_point() != mine[key].is_floating_point()
    ]
    if wrong:
        more = f" (and {len(wrong) - 4} more)" if len(wrong) > 4 else ""
        raise ValueError(
            f"{source} does not fit this model: {'; '.join(wrong[:4])}{more}. Use the config.yaml "
            "that was written with it."
        )


def save_adapter(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    adapter: Strategy,
    backbone: Backbone,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write an adapter folder; each file appears whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    weights = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    # The old record is of other weights: without it, a killed process leaves no adapter folder.
    (folder / ADAPTER_CONFIG).unlink(missing_ok=True)
    write_atomically(folder / ADAPTER_WEIGHTS, lambda path: path.write_bytes(weights))
    record = {
        "format": ADAPTER_FORMAT,
        "kora_version": __version__,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "adapter": describe_whole(adapter),
        "backbone": {
            "name": backbone.name,
            "image_size": backbone.image_size,
            "sha256": backbone.sha256,
            **backbone.normalisation,
        },
        **(extra or {}),
    }
    write_record(folder, record)
    return folder


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the JSON of an adapter folder, with the checksum of its content.

    Raises:
        OSError: If it cannot be written.
    """
    plain = json.loads(json.dumps(record))  # the types that a reader will find
    text = json.dumps(plain | {"record_sha256": record_sha256(plain)}, indent=2) + "\n"
    write_text(folder / ADAPTER_CONFIG, text)


def load_adapter(folder: str | Path, adapter: Strategy, backbone: Backbone) -> dict[str, Any]:
    """Load the adapter (not the head) of a folder into an attached strategy; return its record.

    Raises:
        FileNotFoundError: If the folder is no adapter folder.
        ValueError: If strategy, backbone, weights of the backbone, or any key or shape differ.
        RuntimeError: If a file is damaged.
    """
    folder = expand(folder)
    record = read_adapter_config(folder)
    check_same_adapter(adapter, record["adapter"], f"Adapter {folder}")
    theirs = record["backbone"]
    if theirs["sha256"] != backbone.sha256:
        raise ValueError(
            f"Adapter {folder} was trained on '{theirs['name']}' at {theirs.get('image_size')} "
            f"pixels with weights {theirs['sha256'][:12]}; this run has '{backbone.name}' at "
            f"{backbone.image_size} pixels with {backbone.sha256[:12]}. Set model.backbone to the "
            "one it was trained on."
        )
    stored = read_adapter_tensors(folder)
    mine_tensors = {f"adapter.{name}": tensor for name, tensor in adapter.tensors().items()}
    stored = {k: v for k, v in stored.items() if not k.startswith("head.")}
    check_keys(mine_tensors, stored, f"{folder / ADAPTER_WEIGHTS}")
    if adapter.earlier_runs is not None:
        adapter.earlier_runs.verify(without_prefix(stored, "adapter."), str(folder))
    with torch.no_grad():
        for name, tensor in mine_tensors.items():
            tensor.copy_(stored[name])
    return {"folder": str(folder), **record}


def describe_whole(adapter: Strategy) -> dict[str, Any]:
    """Class path, arguments, and the earlier runs it builds on, in plain types."""
    runs = adapter.earlier_runs
    return describe(adapter) | ({} if runs is None else runs.origins())


def without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with the prefix, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def recall_adapter(file: str | Path, adapter: Strategy, *, alone: bool = False) -> list[str]:
    """Let a saved file of a strategy that is not attached yet replace folders of earlier runs.

    The file, an adapter folder or a checkpoint, is read only if such folders are missing. Returns
    the folders that it replaces. `alone` has it replace all of them, whatever lies there now.

    Raises:
        FileNotFoundError: If it is no adapter folder, or there is no such checkpoint.
        ValueError: If it is of another format, or a checkpoint of something else.
        RuntimeError: If it is damaged.
    """
    runs = adapter.earlier_runs
    missing = [] if runs is None else runs.missing()
    if runs is None or not (missing or alone):
        return []
    path = expand(file)
    if path.suffix == ".ckpt":
        content = read_checkpoint(path)
        record = require_record(content, f"Checkpoint {path}")["adapter"]
        tensors = content["state_dict"]
    else:
        record, tensors = read_adapter_config(path)["adapter"], read_adapter_tensors(path)
    runs.recall(record, without_prefix(tensors, "adapter."), str(path), alone=alone)
    return [] if runs.missing() else missing


def check_same_adapter(adapter: Strategy, theirs: Mapping[str, Any], source: str) -> None:
    """Refuse another strategy, or the same one with other arguments.

    Raises:
        ValueError: With what differs.
    """
    mine = describe(adapter)
    if mine["class_path"] != theirs["class_path"]:
        raise ValueError(
            f"{source} is of {theirs['class_path']}; this run has {mine['class_path']}. Make "
            "model.adapter equal to it."
        )
    ours, other = mine["init_args"], with_defaults(theirs)["init_args"]
    elsewhere = adapter.earlier_runs and adapter.earlier_runs.argument
    wrong = [
        f"{key}={other.get(key)!r} there, {ours.get(key)!r} here"
        for key in dict.fromkeys([*ours, *other])
        if key != elsewhere and ours.get(key) != other.get(key)
    ]
    if wrong:
        raise ValueError(f"{source} has {'; '.join(wrong)}. Make model.adapter equal to it.")
