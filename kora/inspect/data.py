"""The data of a finished run, from the config.yaml in its folder.

Shapes: n images of the test set, B images a batch
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from datamodules.base import ImageDataModule
from datamodules.loading import begin_worker
from kora.runs.results import RunResult
from kora.tasks import AdapterTask
from kora.training.lightning_cli import KoraCLI, parse

__all__ = [
    "has_changed",
    "image_batches",
    "parsed_config",
    "run_data",
    "run_datamodule",
    "shuffled_batches",
    "spread",
    "test_loader",
    "training_batch",
]


def run_datamodule(folder: Path) -> Any:
    """The data module of a run, ready to test.

    Paths in the config are relative to where the command is started, as they were in the run.

    Raises:
        FileNotFoundError: The run has no config.yaml, or a file that it names is gone.
    """
    cli = parsed_config(folder)
    options = cli.options.clone()
    options.model = None  # neither its weights nor its sources are needed
    datamodule = cli.parser_of("fit").instantiate(options).data
    with _data_named_by(folder / "config.yaml"):
        datamodule.prepare_data()
        datamodule.setup("test")
    return datamodule


@contextmanager
def _data_named_by(config: Path) -> Iterator[None]:
    """Say of a file that is gone where its name stands."""
    try:
        yield
    except FileNotFoundError as error:
        remedy = f"{config} names it: if the data have moved, correct data there."
        raise FileNotFoundError(f"{error} {remedy}") from error


def parsed_config(folder: Path) -> KoraCLI:
    """The config of a run, parsed.

    Raises:
        FileNotFoundError: The run has no config.yaml.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist, so the data of this run are not known. Every run writes it "
            "next to its results.json; give the whole folder of a run, "
            "runs/<experiment>/<strategy>/seed<k>/version_<n>."
        )
    return parse(["fit", "--config", str(path)])


def has_changed(datamodule: Any, result: RunResult) -> bool:
    """Whether the test data differs from that of the run, as far as both are known."""
    now: dict[str, Any] = getattr(datamodule, "protocol", dict)()
    parts = [
        (p.get("data_sha256"), p.get("sha256", {}).get("test")) for p in (result.protocol, now)
    ]
    return any(a != b for a, b in zip(*parts, strict=True) if a is not None and b is not None)


def test_loader(datamodule: Any) -> DataLoader[Any]:
    """The loader of the whole test set.

    Raises:
        ValueError: There are several, or its length is not known.
    """
    loader = datamodule.test_dataloader()
    if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__len__"):
        raise ValueError(
            f"{type(datamodule).__name__} gives no single test DataLoader over a data set with a "
            "length, so images cannot be drawn from it at random. Give it one."
        )
    return loader


def shuffled_batches(
    loader: DataLoader[Any], images: int, *, batch_size: int, least: int, seed: int
) -> tuple[DataLoader[Any], int]:
    """A loader of `images` random images of another loader, and how many of them are left out.

    They are drawn without replacement. A last batch of fewer than `least` images is left out.
    """
    dataset: Any = loader.dataset
    order = np.random.default_rng(seed).permutation(len(dataset))[:images]
    parts: Sequence[Any] = [order[i : i + batch_size] for i in range(0, images, batch_size)]
    left_out = len(parts[-1]) if len(parts[-1]) < least else 0
    kept = [part.tolist() for part in (parts[:-1] if left_out else parts)]
    made: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=kept,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=begin_worker,
    )
    return made, left_out


Split = Literal["train", "val", "test"]


def run_data(run: Path) -> tuple[ImageDataModule, AdapterTask]:
    """The data module of a run with its splits chosen, and its task, not built.

    The task's backbone has random weights: only the task's loss settings are needed.

    Raises:
        FileNotFoundError: There is no config, or no data.
        ValueError: The data module is of another kind, or the data has changed.
    """
    cli = parsed_config(run)
    cli.options.model.init_args.backbone.init_args.weights = "random"
    made = cli.parser.instantiate(cli.config)[cli.command]
    if not isinstance(made.data, ImageDataModule):
        raise ValueError(
            f"{run}: {type(made.data).__name__} is no ImageDataModule, so single images cannot be "
            "read from it. Give a run whose data module is one of datamodules."
        )
    with _data_named_by(run / "config.yaml"):
        made.data.prepare_data()
        made.data.setup_splits()
    _require_same(made.data, run / "splits.json")
    return made.data, made.model


def spread(size: int, number: int) -> NDArray[np.int64]:
    """At most `number` places of `size`, ascending and evenly spread, as files may be by class."""
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
    """At most `number` training images with labels and maps, evenly spread, not augmented."""
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
            f"The data is not that of the run: its hash is {str(theirs[0])[:12]} in {record}, and "
            f"{mine['data_sha256'][:12]} here (or the splits differ). Bring back the data of the "
            "run, or run again."
        )
