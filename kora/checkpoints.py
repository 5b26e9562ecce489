"""The adapter folder: safetensors weights and a JSON that says what they belong to.

`adapter_model.safetensors` holds `adapter.*` and `head.*`; `adapter_config.json` names the
strategy with its arguments, the backbone with the SHA-256 of its frozen weights, and the data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kora import __version__
from kora.adapters import Strategy, describe
from kora.backbones import Backbone
from kora.results import write_atomically

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "check_keys",
    "check_same_adapter",
    "load_adapter",
    "read_adapter_config",
    "save_adapter",
]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def save_adapter(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    adapter: Strategy,
    backbone: Backbone,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write an adapter folder; each file appears whole or not at all."""
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomically(folder / ADAPTER_WEIGHTS, lambda path: save_file(plain, path))
    record = {
        "format": 1,
        "kora_version": __version__,
        "adapter": describe(adapter),
        "backbone": {
            "name": backbone.name,
            "image_size": backbone.image_size,
            "sha256": backbone.sha256,
        },
        **(extra or {}),
    }
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(folder / ADAPTER_CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
    return folder


def load_adapter(folder: str | Path, adapter: Strategy, backbone: Backbone) -> dict[str, Any]:
    """Load the adapter (not the head) of a folder into an attached strategy; returns its record.

    Raises:
        FileNotFoundError: If the folder is no adapter folder.
        ValueError: If strategy, backbone, weights of the backbone, or any key or shape differ.
        RuntimeError: If a file is damaged.
    """
    folder = Path(os.path.expandvars(folder)).expanduser()
    record = read_adapter_config(folder)
    check_same_adapter(adapter, record["adapter"], f"Adapter {folder}")
    if record["backbone"]["sha256"] != backbone.sha256:
        raise ValueError(
            f"Adapter {folder} was trained on '{record['backbone']['name']}' with weights "
            f"{record['backbone']['sha256'][:12]}; this run has '{backbone.name}' with "
            f"{backbone.sha256[:12]}. Set model.backbone to the one it was trained on."
        )
    path = folder / ADAPTER_WEIGHTS
    try:
        stored = load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise RuntimeError(
            f"Adapter weights {path} cannot be read: {error}. Train it again."
        ) from error
    mine_tensors = {f"adapter.{name}": tensor for name, tensor in adapter.tensors().items()}
    check_keys(
        mine_tensors, {k: v for k, v in stored.items() if not k.startswith("head.")}, f"{path}"
    )
    with torch.no_grad():
        for name, tensor in mine_tensors.items():
            tensor.copy_(stored[name])
    return {"folder": str(folder), **record}


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The JSON of an adapter folder.

    Raises:
        FileNotFoundError: If there is none.
        RuntimeError: If it cannot be read.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no adapter folder: it has no {ADAPTER_CONFIG}. Every run writes one as "
            "runs/<experiment>/<strategy>/seed<k>/version_<n>/adapter."
        )
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        record["adapter"]["class_path"], record["adapter"]["init_args"]
        record["backbone"]["name"], record["backbone"]["sha256"]
    except (ValueError, TypeError, KeyError) as error:
        raise RuntimeError(f"{path} is damaged: {error!r}. Train the adapter again.") from error
    return record


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
    ours, other = mine["init_args"], theirs["init_args"]
    wrong = [
        f"{key}={other.get(key)!r} there, {ours.get(key)!r} here"
        for key in dict.fromkeys([*ours, *other])
        if ours.get(key) != other.get(key)
    ]
    if wrong:
        raise ValueError(f"{source} has {'; '.join(wrong)}. Make model.adapter equal to it.")


def check_keys(mine: Mapping[str, Tensor], theirs: Mapping[str, Any], source: str) -> None:
    """Refuse any difference in keys or shapes, and list it.

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
    if wrong:
        more = f" (and {len(wrong) - 4} more)" if len(wrong) > 4 else ""
        raise ValueError(
            f"{source} does not fit this model: {'; '.join(wrong[:4])}{more}. Use the config.yaml "
            "that was written beside it."
        )
