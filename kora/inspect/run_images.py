"""Single images of the data of a finished run, which must be the data of its record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from datamodules.base import ImageDataModule
from kora.inspect.run_data import parsed_config
from kora.tasks import AdapterTask

__all__ = ["image_batches", "run_data", "spread", "training_batch"]

Split = Literal["train", "val", "test"]


def run_data(run: Path) -> tuple[ImageDataModule, AdapterTask]:
    """The data module of a run with its splits chosen, and its task, not built.

    The task's backbone has random weights: it is there for what the config says of the loss.

    Args:
        run: Folder with config.yaml, and splits.json where the data was audited.

    Raises:
        FileNotFoundError: There is no config, or the data is not there.
        ValueError: The data is of another kind, or not what it was.
    """
    cli = parsed_config(run)
    cli.options.model.init_args.backbone.init_args.weights = "random"
    made = cli.parser.instantiate(cli.config)[cli.command]
    if not isinstance(made.data, ImageDataModule):
        raise ValueError(
            f"{run}: {type(made.data).__name__} is no ImageDataModule, so that single images "
            "cannot be asked for. Read a run on one of datamodules."
        )
    made.data.prepare_data()
    made.data.setup_splits()
    _require_same(made.data, run / "splits.json")
    return made.data, made.model


def spread(size: int, number: int) -> NDArray[np.int64]:
    """At most `number` places of `size`, ascending and evenly spread: files may lie by class."""
    return np.unique(np.linspace(0, size - 1, min(size, number)).round().astype(np.int64))


def image_batches(
    data: ImageDataModule, split: Split, places: Sequence[int] | NDArray[np.int64], *, size: int
) -> Iterator[Tensor]:
    """uint8 images (B, 3, H, W) at these places of a split, with a progress bar."""
    with tqdm(total=len(places), desc="Reading", unit="image", disable=None) as bar:
        for start in range(0, len(places), size):
            images = data.images(split, places[start : start + size])
            yield images
            bar.update(len(images))


def training_batch(data: ImageDataModule, number: int) -> dict[str, Tensor]:
    """At most so many training images with labels and maps, evenly spread, not augmented."""
    places = spread(len(data.indices("train")), number)
    labels = torch.from_numpy(data.labels("train")[places])
    return {**data.samples("train", places), "label": labels}


def _require_same(data: ImageDataModule, record: Path) -> None:
    """Refuse data that has changed since the run."""
    if not record.is_file():
        return
    try:
        kept = json.loads(record.read_text(encoding="utf-8"))["protocol"]
        theirs = kept["data_sha256"], kept["sha256"]
    except (ValueError, TypeError, KeyError) as error:  # repr would print all of the file
        reason = f"{type(error).__name__}: {error}"
        raise RuntimeError(f"{record} is damaged ({reason}). Remove it, or run again.") from error
    mine = data.protocol()
    if (mine["data_sha256"], mine["sha256"]) != theirs:
        raise ValueError(
            f"The data is not that of the run: {record} says {str(theirs[0])[:12]} of it, and here "
            f"it is {mine['data_sha256'][:12]} (or its splits differ). Bring back the data of the "
            "run, or run again."
        )
