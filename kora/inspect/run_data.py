"""The data of a finished run, from the config.yaml in its folder.

Shapes: n images of the test set, B images a batch
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from datamodules.loading import begin_worker
from kora.runs.results import RunResult
from kora.training.lightning_cli import KoraCLI, parse

__all__ = ["has_changed", "parsed_config", "run_datamodule", "shuffled_batches", "test_loader"]


def run_datamodule(folder: Path) -> Any:
    """The data module of a run, ready to test.

    Paths in the config are relative to where the command is started, as they were in the run.

    Raises:
        FileNotFoundError: The run has no config.yaml.
    """
    cli = parsed_config(folder)
    options = cli.options.clone()
    options.model = None  # neither its weights nor its sources are needed
    datamodule = cli._parser("fit").instantiate(options).data
    datamodule.prepare_data()
    datamodule.setup("test")
    return datamodule


def parsed_config(folder: Path) -> KoraCLI:
    """The config of a run, parsed.

    Raises:
        FileNotFoundError: The run has no config.yaml.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist, so the data of this run are not known. Every run writes it "
            "beside its results.json; give the whole folder of a run, "
            "runs/<experiment>/<strategy>/seed<k>/version_<n>."
        )
    return parse(["fit", "--config", str(path)])


def has_changed(datamodule: Any, result: RunResult) -> bool:
    """Whether the test data is other data than that of the run, as far as both can tell."""
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
            "length, and images could not be drawn from it at random. Give it one."
        )
    return loader


def shuffled_batches(
    loader: DataLoader[Any], images: int, *, batch_size: int, least: int, seed: int
) -> tuple[DataLoader[Any], int]:
    """A loader of so many images of another one, drawn at random; and how many are left out.

    Args:
        loader: Its data set, workers and collate function are used.
        images: n at most; drawn without replacement.
        batch_size: B.
        least: A last batch of fewer images is left out.
        seed: Of the draw.
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
