"""Claims about the synthetic data module."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.scenes.render import render
from datamodules.splits import Subset
from datamodules.synthetic import Synthetic


def make(**options: Any) -> Synthetic:
    return Synthetic(
        **{"image_size": 32, "train_images": 120, "test_images": 48, "batch_size": 24, **options}
    )


def test_batches_hold_the_rendered_scene_of_their_index() -> None:
    data = make(style="night", scene_seed=3, maps=["depth_m", "mask"])
    data.setup()
    for split, loader in (("train", data.train_dataloader()), ("test", data.test_dataloader())):
        batch = next(iter(loader))
        expected = render(batch["index"].numpy(), style="night", seed=3, split=split, size=32)
        assert set(batch) == {"image", "label", "index", "depth_m", "mask"}
        for name, column in expected.items():
            assert torch.equal(batch[name], column), (split, name)


def test_maps_are_left_out_unless_asked_for() -> None:
    data = make()
    data.setup("test")
    assert set(next(iter(data.test_dataloader()))) == {"image", "label", "index"}


def test_boxes_enclose_what_shows_of_each_solid_and_leave_the_pictures_alone() -> None:
    data, plain = make(maps=["boxes", "mask"]), make(maps=["mask"])
    data.setup("test")
    plain.setup("test")
    sample, other = data.samples("test", range(48)), plain.samples("test", range(48))
    assert torch.equal(sample["image"], other["image"])
    assert sample["boxes"].dtype == torch.float32
    assert data.box_names == ["sphere", "box", "cylinder", "cone", "torus", "pyramid"]
    assert plain.box_names is None
    hidden = 0
    for mask, boxes, labels, label in zip(
        sample["mask"], sample["boxes"], sample["box_label"], sample["label"], strict=True
    ):
        assert labels[0] == label // 2  # the labelled solid
        for number, (box, kind) in enumerate(zip(boxes.tolist(), labels, strict=True), 1):
            rows, columns = torch.nonzero(mask == number, as_tuple=True)
            if len(rows) < 12:
                assert (box, int(kind)) == ([0, 0, 0, 0], -1)
                hidden += len(rows) > 0
                continue
            ends = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            assert box == [float(end) for end in ends]
    assert hidden


def test_statistics_of_boxes_are_those_of_the_scenes() -> None:
    data = make(maps=["boxes"], val_fraction=0)
    found = data.box_statistics("train")
    labels = data.samples("train", range(120))["box_label"]
    assert found.boxes.tolist() == [int((labels == kind).sum()) for kind in range(6)]
    assert (found.empty, found.crowd, found.outside) == (0, 0, 0)
    with pytest.raises(ValueError, match=r"no image with boxes.*data\.maps: \[boxes\]"):
        make().box_statistics("train")


def test_an_augmentation_that_reflects_is_refused_with_boxes() -> None:
    make(augment="flip_crop")
    with pytest.raises(ValueError, match=r"data\.augment is flip_crop, which reflects"):
        make(augment="flip_crop", maps=["boxes"])


def test_validation_scenes_are_training_scenes_and_no_test_scene_is_either() -> None:
    data = make(val_fraction=0.2)
    data.setup()
    assert data.protocol()["sizes"] == {"train": 96, "val": 24, "test": 48}
    assert not set(data.indices("train")) & set(data.indices("val"))
    images = {
        split: {i.numpy().tobytes() for i in data.images(split, np.arange(n))}
        for split, n in (("train", 96), ("val", 24), ("test", 48))
    }
    assert len(images["train"] | images["val"] | images["test"]) == 168


def test_classes_are_balanced_and_named() -> None:
    summary = make(val_fraction=0).summary()
    assert summary["num_classes"] == 12
    assert summary["class_names"][0] == "plain sphere"
    assert summary["class_names"][11] == "striped pyramid"
    assert summary["image_size"] == [32, 32]
    for split, each in (("train", 10), ("test", 4)):
        counts = summary["splits"][split]
        assert counts["images_per_class_min"] == counts["images_per_class_max"] == each


def test_a_few_shot_subset_renders_only_its_images() -> None:
    data = make(subset=Subset(per_class=2), val_images=12)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert torch.bincount(batch["label"]).tolist() == [2] * 12
    expected = render(batch["index"].numpy(), style="studio", seed=0, size=32)["image"]
    assert torch.equal(batch["image"], expected)


def test_the_seed_of_the_splits_leaves_the_scenes_alone() -> None:
    first, second = make(seed=1), make(seed=2)
    assert first.protocol()["data_sha256"] == second.protocol()["data_sha256"]
    assert first.protocol()["sha256"]["train"] != second.protocol()["sha256"]["train"]
    assert torch.equal(first.images("test", [5]), second.images("test", [5]))


@pytest.mark.parametrize(
    "change",
    [
        {"style": "paint"},
        {"scene_seed": 1},
        {"image_size": 40},
        {"train_images": 132},
        {"test_images": 60},
    ],
)
def test_every_option_of_the_data_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert make(**change).fingerprint() != make().fingerprint()
    assert make(**change).fingerprint() == make(**change).fingerprint()


def test_the_protocol_names_style_and_scenes() -> None:
    protocol = make(style="paint", scene_seed=9).protocol()
    assert (protocol["dataset"], protocol["style"], protocol["scene_seed"]) == (
        "Synthetic",
        "paint",
        9,
    )


def test_images_are_rendered_once_and_only_those_that_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rendered: list[int] = []
    render = Synthetic._render

    def counting(self: Synthetic, part: Any, positions: Any) -> Any:
        rendered.extend(positions.tolist())
        return render(self, part, positions)

    monkeypatch.setattr(Synthetic, "_render", counting)
    data = make(val_fraction=0)
    data.setup("fit")
    assert rendered == []
    dataset = data.loader_dataset("train")
    first = dataset.source[5]
    some = dataset.__getitems__([7, 5, 7])
    assert rendered == data.indices("train")[[5, 7]].tolist()
    whole = pickle.loads(pickle.dumps(dataset)).__getitems__(range(len(dataset)))
    assert sorted(rendered) == data.indices("train").tolist()
    assert torch.equal(some["image"], whole["image"][[7, 5, 7]])
    assert all(torch.equal(first[name], column[5]) for name, column in whole.items())
    assert torch.equal(whole["image"], data.read("train", data.indices("train"))["image"])


def test_a_long_rendering_shows_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    data = make(train_images=2040, val_fraction=0)
    data.setup("fit")
    data.loader_dataset("train").read_ahead()
    assert "Rendering studio scenes (train)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "nite"}, r"data\.style is 'nite'.*Did you mean 'night'"),
        ({"image_size": 8}, r"data\.image_size is 8 pixels; it must be at least 32"),
        ({"scene_seed": -2}, r"data\.scene_seed is -2"),
        ({"train_images": 0}, r"data\.train_images is 0; it must be at least 12"),
        ({"test_images": 11}, r"data\.test_images is 11; it must be at least 12"),
        ({"maps": ["depth"]}, r"data\.maps has 'depth'; it may hold depth_m, mask, boxes"),
        ({"batch_size": 0}, r"data\.batch_size is 0"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
