"""Claims about what all data modules share, on a data set in memory and Lightning's own loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.cli import LightningArgumentParser

from datamodules import ImageDataModule, ImageFolder, Subset
from datamodules.splits import IntArray, index_sha256


class Numbers(ImageDataModule):
    """60 training and 12 test images of 3 classes; image i is filled with i."""

    num_classes = 3
    class_names: list[str] = ["a", "b", "c"]  # noqa: RUF012
    image_size = (4, 4)
    dataset_name: ClassVar[str] = "Numbers"
    extra: bool = False
    reads: int = 0

    def read_labels(self, part: str) -> IntArray:
        return np.arange(60 if part == "train" else 12) % 3

    def read(self, part: str, positions: IntArray) -> dict[str, torch.Tensor]:
        self.reads += 1
        values = torch.from_numpy(positions).to(torch.uint8)
        columns = {"image": values.view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()}
        if self.extra:
            columns["depth_m"] = torch.zeros(len(positions), 4, 4)
        return columns

    def fingerprint(self) -> str:
        return "0" * 64


class Recorder(LightningModule):
    """Keeps the batches that reach each step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[dict[str, torch.Tensor]]] = {}

    def record(self, stage: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.seen.setdefault(stage, []).append(batch)
        return self.weight * 1.0

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.record("train", batch)

    def validation_step(self, batch: dict[str, torch.Tensor]) -> None:
        self.record("val", batch)

    def test_step(self, batch: dict[str, torch.Tensor]) -> None:
        self.record("test", batch)

    def predict_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.record("predict", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(epochs: int = 1) -> Trainer:
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def indices(batches: list[dict[str, torch.Tensor]]) -> list[int]:
    return torch.cat([batch["index"] for batch in batches]).tolist()


@pytest.mark.filterwarnings("ignore")
def test_each_stage_sees_its_own_images_once_an_epoch() -> None:
    data, model = Numbers(batch_size=16, eval_batch_size=5), Recorder()
    trainer(epochs=2).fit(model, data)
    trainer().test(model, data, verbose=False)
    trainer().predict(model, data)
    first, second = (indices(model.seen["train"][i : i + 4]) for i in (0, 4))
    assert sorted(first) == sorted(second) == data.indices("train").tolist()
    assert first != second
    assert indices(model.seen["test"]) == indices(model.seen["predict"]) == list(range(12))
    assert set(indices(model.seen["val"])) == set(data.indices("val").tolist())
    assert max(len(batch["index"]) for batch in model.seen["test"]) == 5
    for batch in (batch for batches in model.seen.values() for batch in batches):
        assert torch.equal(batch["image"][:, 0, 0, 0].long(), batch["index"])
        assert torch.equal(batch["label"], batch["index"] % 3)


@pytest.mark.filterwarnings("ignore")
def test_without_validation_fit_runs_and_no_image_is_held_back() -> None:
    data, model = Numbers(val_fraction=0), Recorder()
    trainer().fit(model, data)
    assert data.val_dataloader() == []
    assert "val" not in model.seen
    assert sorted(indices(model.seen["train"])) == list(range(60))


@pytest.mark.filterwarnings("ignore")
def test_only_training_batches_are_augmented() -> None:
    class Ramp(Numbers):
        def read(self, part: str, positions: IntArray) -> dict[str, torch.Tensor]:
            columns = super().read(part, positions)
            columns["image"] = torch.arange(4, dtype=torch.uint8).expand(len(positions), 3, 4, 4)
            return columns

    torch.manual_seed(0)
    data, model = Ramp(augment="flip", batch_size=64), Recorder()
    trainer().fit(model, data)
    trainer().test(model, data, verbose=False)
    first = {stage: batches[0]["image"][:, 0, 0, 0] for stage, batches in model.seen.items()}
    assert set(first["train"].tolist()) == {0, 3}
    assert set(first["val"].tolist()) == set(first["test"].tolist()) == {0}
    assert model.seen["train"][0]["image"].dtype == torch.uint8


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("augment", ["flip", "flip_crop", "flip_crop_color"])
def test_maps_are_augmented_with_their_image(augment: Any) -> None:
    class Ramp(Numbers):
        image_size = (8, 8)

        def read(self, part: str, positions: IntArray) -> dict[str, torch.Tensor]:
            ramp = torch.arange(8, dtype=torch.uint8).expand(len(positions), 8, 8)
            return {"image": ramp[:, None].expand(-1, 3, 8, 8) * 20, "depth_m": ramp / 4 + 0.25}

    torch.manual_seed(0)
    data, model = Ramp(augment=augment, batch_size=64), Recorder()
    trainer().fit(model, data)
    (batch,) = model.seen["train"]
    measured = batch["depth_m"] > 0
    assert measured.all() == (augment == "flip")
    levels = torch.round(batch["image"][:, 0] / 20)
    if augment != "flip_crop_color":  # which changes the levels
        assert torch.equal(levels[measured], (batch["depth_m"][measured] - 0.25) * 4)
    falls = batch["depth_m"][:, 3, 2] > batch["depth_m"][:, 3, 5]
    assert 0 < falls.sum() < len(falls)


@pytest.mark.filterwarnings("ignore")
def test_a_map_of_another_size_cannot_be_augmented() -> None:
    class Wrong(Numbers):
        def read(self, part: str, positions: IntArray) -> dict[str, torch.Tensor]:
            columns = super().read(part, positions)
            return {**columns, "depth_m": torch.zeros(len(positions), 8, 8)}

    with pytest.raises(ValueError, match=r"'flip'.*depth_m.*8, 8.*use augment: none"):
        trainer().fit(Recorder(), Wrong(augment="flip"))


def test_further_targets_reach_the_batch() -> None:
    data = Numbers(batch_size=7)
    data.extra = True
    assert next(iter(data.train_dataloader()))["depth_m"].shape == (7, 4, 4)


def test_order_of_training_does_not_depend_on_torchs_random_state() -> None:
    orders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        orders.append(indices(list(Numbers(seed=5).train_dataloader())))
    assert orders[0] == orders[1]


def test_seed_comes_from_the_option_then_from_lightning_then_is_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert Numbers().protocol()["seed"] == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # so that the change below is undone
    seed_everything(7, verbose=False)
    assert Numbers().protocol()["seed"] == 7
    assert Numbers(seed=3).protocol()["seed"] == 3
    assert Numbers().protocol()["sha256"] == Numbers(seed=7).protocol()["sha256"]
    assert Numbers().protocol()["sha256"] != Numbers(seed=3).protocol()["sha256"]


def test_setup_decodes_what_the_stage_needs_and_only_once() -> None:
    data = Numbers()
    data.setup_splits()
    data.summary(), data.protocol()
    assert data.reads == 0
    data.setup("test")
    assert data.reads == 1
    data.setup("test")
    assert data.reads == 1
    data.setup("fit")
    data.setup(None)
    assert data.reads == 3


def test_images_by_place_in_a_split_before_and_after_setup() -> None:
    data = Numbers()
    data.setup_splits()
    before = data.images("val", [2, 0])
    data.setup("fit")
    assert torch.equal(data.images("val", np.array([2, 0])), before)
    assert before[:, 0, 0, 0].tolist() == data.indices("val")[[2, 0]].tolist()


def test_protocol_is_plain_and_complete() -> None:
    data = Numbers(subset=Subset(per_class=5), val_images=6, seed=1)
    protocol = data.protocol()
    assert json.loads(json.dumps(protocol)) == protocol
    assert protocol["sizes"] == {"train": 15, "val": 6, "test": 12}
    assert protocol["official_split"] == {"train": "train", "val": "train", "test": "test"}
    assert protocol["subset"] == {"per_class": 5, "fraction": None, "how": "stratified"}
    assert protocol["sha256"]["train"] == index_sha256(data.indices("train"))


def test_saved_splits_hold_the_indices_and_their_hashes(tmp_path: Path) -> None:
    data = Numbers()
    path = data.save_splits(tmp_path / "run")
    record = json.loads(path.read_text())
    assert record["indices"]["val"] == data.indices("val").tolist()
    for split, values in record["indices"].items():
        assert index_sha256(np.array(values)) == record["protocol"]["sha256"][split]
    assert [file.name for file in path.parent.iterdir()] == ["splits.json"]


def test_summary_counts_images_a_class() -> None:
    summary = Numbers(subset=Subset(fraction=0.03, how="first"), val_images=0).summary()
    assert summary["image_size"] == [4, 4]
    assert summary["splits"]["train"] == {
        "images": 2,
        "classes": 2,
        "images_per_class_min": 0,
        "images_per_class_max": 1,
        "official_split": "train",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size is 0; it must be at least 1"),
        ({"eval_batch_size": 0}, "data.eval_batch_size is 0"),
        ({"num_workers": -1}, "data.num_workers is -1"),
        ({"val_images": -5}, "data.val_images is -5"),
        ({"seed": -1}, "data.seed is -1"),
        ({"val_fraction": 1.0}, r"data.val_fraction is 1.0; .* use val_images"),
        ({"augment": "mixup"}, "'mixup'; use one of"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Numbers(**options)


def test_workers_deliver_the_same_batches() -> None:
    alone = indices(list(Numbers(seed=0).train_dataloader()))
    assert indices(list(Numbers(seed=0, num_workers=1).train_dataloader())) == alone


@pytest.mark.parametrize(
    ("class_path", "init_args"),
    [
        ("datamodules.CIFAR", "{variant: 100, archive: a.tar.gz}"),
        ("datamodules.TinyImageNet", "{classes: '100:200', val_layout: folders}"),
        ("datamodules.TinyImageNet", "{classes: [3, 1, 2]}"),
        ("datamodules.TinyImageNet", "{classes: [n01443537, n01629819]}"),
        ("datamodules.TinyImageNet", "{cache: false}"),
        ("datamodules.ImageFolder", "{root: x, image_size: [32, 48], cache: true}"),
        ("datamodules.ImageFolder", "{root: x, image_size: 32, resize: stretch}"),
    ],
)
def test_every_data_module_is_configured_from_yaml(class_path: str, init_args: str) -> None:
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(ImageDataModule, "data", subclass_mode=True)
    common = "batch_size: 8, subset: {per_class: 5}, augment: flip"
    text = f"data: {{class_path: {class_path}, init_args: {{{common}, {init_args[1:-1]}}}}}"
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    data = instantiate(parser.parse_string(text)).data
    assert f"datamodules.{type(data).__name__}" == class_path
    assert data.subset == Subset(per_class=5)
    assert data.batch_size == 8
    if isinstance(data, ImageFolder):
        assert data.image_size in ((32, 48), (32, 32))
