"""What a loader reads can be exchanged after the loader was made."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

import datamodules.recipe
from datamodules import ImageFolder, Synthetic
from datamodules.loading import ArrayDataset
from datamodules.replaceable import ReplaceableDataset
from tests.support.data_factory import write_class_folders


def small(**options: Any) -> Synthetic:
    sizes = {"train_images": 36, "test_images": 12, "val_images": 12, "batch_size": 10}
    data = Synthetic(image_size=32, seed=0, **{**sizes, **options})
    data.setup()
    return data


def numbers(n: int) -> ArrayDataset:
    return ArrayDataset({"kept": torch.arange(n)})


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_made_before_read_what_stands_in_from_then_on(workers: int) -> None:
    data = small(num_workers=workers)
    loaders = {"train": data.train_dataloader(), "val": data.val_dataloader()}
    data.loader_dataset("train").replacement, data.loader_dataset("val").replacement = (
        numbers(24),
        numbers(12),
    )
    for split, loader in loaders.items():
        batches = list(loader)
        assert [set(batch) for batch in batches] == [{"kept"}] * len(batches)
        rows = torch.cat([batch["kept"] for batch in batches])
        assert rows.sort().values.tolist() == list(range(len(data.indices(split))))


def test_the_rows_are_those_that_the_images_would_have_had() -> None:
    data = small()
    loader = data.train_dataloader()
    index = torch.cat([batch["index"] for batch in loader])
    data.loader_dataset("train").replacement = numbers(24)
    rows = torch.cat([batch["kept"] for batch in loader])
    assert np.array_equal(data.indices("train")[rows.numpy()], index.numpy())


def test_images_are_read_as_before_for_pictures() -> None:
    data = small()
    before = data.images("val", [3])
    data.loader_dataset("val").replacement = numbers(12)
    assert torch.equal(data.images("val", [3]), before)
    data.loader_dataset("val").replacement = None
    assert "image" in next(iter(data.val_dataloader()))


def rest_of(data: Any, split: Any) -> Any:
    dataset = data.loader_dataset(split)
    return dataset.without_images(labels=data.labels(split), indices=data.indices(split))


def test_without_images_the_maps_are_left() -> None:
    data = small(maps=["depth_m"])
    batch = rest_of(data, "val").__getitems__([2, 0])
    whole = next(iter(data.val_dataloader()))
    assert set(batch) == {"label", "index", "depth_m"}
    assert all(torch.equal(column, whole[name][[2, 0]]) for name, column in batch.items())


def test_image_files_are_not_decoded_for_their_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_class_folders(tmp_path / "files")
    data = ImageFolder(str(root), image_size=(16, 16), val_fraction=0.2, batch_size=4, seed=0)
    data.setup()
    whole = next(iter(data.val_dataloader()))
    rest = rest_of(data, "val")
    monkeypatch.setattr(datamodules.recipe.Image, "open", None)  # it would fail
    batch = rest.__getitems__(range(len(whole["label"])))
    assert torch.equal(batch["label"], whole["label"])
    assert torch.equal(batch["index"], whole["index"])


class Frames(Dataset[dict[str, Tensor]]):
    """Reads images and maps together, one at a time."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, row: int) -> dict[str, Any]:
        image = torch.full((3, 2, 2), row, dtype=torch.uint8)
        return {"image": image, "depth_m": torch.ones(2, 2) * row, "label": 0, "index": row}


def test_a_data_set_of_another_kind_gives_its_maps_too() -> None:
    zeros, places = np.zeros(5, dtype=np.int64), np.arange(5)
    rest = pickle.loads(pickle.dumps(ReplaceableDataset(Frames()))).without_images(
        labels=zeros, indices=places
    )
    batch = rest.__getitems__([4, 1])
    assert set(batch) == {"depth_m", "label", "index"}
    assert batch["depth_m"][:, 0, 0].tolist() == [4, 1]
    assert rest[3]["index"] == 3
