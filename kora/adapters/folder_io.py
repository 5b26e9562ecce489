"""The adapter folder: safetensors weights and a JSON that says what they belong to.

`adapter_model.safetensors` holds `adapter.*` and `head.*`; `adapter_config.json` names the
strategy with its arguments, the backbone with the SHA-256 of its frozen weights, the data, and the
SHA-256 of the first file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from kora import __version__
from kora.adapters import Strategy, describe
from kora.adapters.checkpoint_files import read_checkpoint, require_record
from kora.adapters.folder import (
    ADAPTER_CONFIG,
    ADAPTER_FORMAT,
    ADAPTER_WEIGHTS,
    check_keys,
    expand,
    read_adapter_config,
    read_adapter_tensors,
)
from kora.backbone.vit import Backbone
from kora.runs.config import with_defaults
from kora.runs.durable import record_sha256, write_atomically

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "check_keys",
    "check_same_adapter",
    "load_adapter",
    "read_adapter_config",
    "recall_adapter",
    "save_adapter",
]


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
    # An older record is of other weights: without one, the folder of a killed process is none.
    (folder / ADAPTER_CONFIG).unlink(missing_ok=True)
    write_atomically(folder / ADAPTER_WEIGHTS, lambda path: path.write_bytes(weights))
    record = {
        "format": ADAPTER_FORMAT,
        "kora_version": __version__,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "adapter": describe(adapter) | adapter.origins(),
        "backbone": {
            "name": backbone.name,
            "image_size": backbone.image_size,
            "sha256": backbone.sha256,
            **backbone.normalisation,
        },
        **(extra or {}),
    }
    record = json.loads(json.dumps(record))  # the types that a reader will find
    text = json.dumps(record | {"record_sha256": record_sha256(record)}, indent=2) + "\n"
    write_atomically(folder / ADAPTER_CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
    return folder


def load_adapter(folder: str | Path, adapter: Strategy, backbone: Backbone) -> dict[str, Any]:
    """Load the adapter (not the head) of a folder into an attached strategy; returns its record.

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
    adapter.verify({k.removeprefix("adapter."): v for k, v in stored.items()}, str(folder))
    with torch.no_grad():
        for name, tensor in mine_tensors.items():
            tensor.copy_(stored[name])
    return {"folder": str(folder), **record}


def recall_adapter(file: str | Path, adapter: Strategy) -> None:
    """Give a strategy that is not attached yet what a folder or checkpoint of it holds of others.

    Raises:
        FileNotFoundError: If it is no adapter folder, or there is no such checkpoint.
        ValueError: If it is of another format, or a checkpoint of something else.
        RuntimeError: If it is damaged.
    """
    path = expand(file)
    if path.suffix == ".ckpt":
        content = read_checkpoint(path)
        record = require_record(content, f"Checkpoint {path}")["adapter"]
        tensors = content["state_dict"]
    else:
        record, tensors = read_adapter_config(path)["adapter"], read_adapter_tensors(path)
    of_adapter = {k: v for k, v in tensors.items() if k.startswith("adapter.")}
    adapter.recall(
        record, {k.removeprefix("adapter."): v for k, v in of_adapter.items()}, str(path)
    )


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
    wrong = [
        f"{key}={other.get(key)!r} there, {ours.get(key)!r} here"
        for key in dict.fromkeys([*ours, *other])
        if key not in adapter.locations and ours.get(key) != other.get(key)
    ]
    if wrong:
        raise ValueError(f"{source} has {'; '.join(wrong)}. Make model.adapter equal to it.")
